"""PyTorch modules: their logits and gradients, without a trace in the module."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_cnn import (
    DENSE_CHW,
    IMAGES,
    KEY,
    LABELS,
    NUM_PARAMETERS,
    VARIABLES,
    Linen,
    assert_logits,
    expected_logits,
)

from jaxadv.adapters.checks import check_classifier, check_examples
from jaxadv.adapters.pytorch import torch_functions
from jaxadv.adapters.wrap import wrap
from jaxadv.attacks import pgd, square
from jaxadv.core.types import UserError

torch = pytest.importorskip("torch")
PIXELS = np.asarray(IMAGES)
CHANNELS_FIRST = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))


def refused(message):
    return pytest.raises(UserError, match=re.escape(message))


class Function(torch.nn.Module):
    """A linear layer, and a function of its logits or of its images."""

    def __init__(self, of_logits=lambda logits: logits, of_images=lambda images: images):
        super().__init__()
        self.dense = torch.nn.Linear(108, 5)
        self.of_logits, self.of_images = of_logits, of_images
        self.eval()

    def forward(self, images):
        return self.of_logits(self.dense(self.of_images(images).flatten(1)))


def linen_pull_back(cotangent):
    linen = wrap(Linen(), VARIABLES)
    (gradient,) = jax.vjp(lambda x: linen(KEY, x), IMAGES)[1](jnp.asarray(cotangent))
    return np.asarray(gradient).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_logits_and_gradients_are_those_of_the_network(torch_model, as_array):
    forward, forward_for_gradient = torch_functions(torch_model)
    images = as_array(CHANNELS_FIRST)
    logits, pull_back = forward_for_gradient(images)
    np.testing.assert_allclose(logits, expected_logits(PIXELS), atol=1e-4)
    np.testing.assert_array_equal(forward(images), logits)
    for seed in range(2):  # a pull-back can be used again
        cotangent = np.random.default_rng(seed).normal(size=logits.shape).astype(np.float32)
        gradient = pull_back(as_array(cotangent))
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, linen_pull_back(cotangent), atol=1e-4)


def test_the_module_and_its_input_are_left_as_they_were(torch_model):
    torch_model[0].weight.requires_grad_(False)
    forward, forward_for_gradient = torch_functions(torch_model)
    images = CHANNELS_FIRST.copy()
    forward(images)
    logits, pull_back = forward_for_gradient(images)
    pull_back(np.ones_like(logits))
    assert [p.requires_grad for p in torch_model.parameters()] == [False] + [True] * 5
    assert all(parameter.grad is None for parameter in torch_model.parameters())
    np.testing.assert_array_equal(images, CHANNELS_FIRST)


def test_modules_may_write_to_their_input():
    model = Function(of_images=lambda images: images.mul_(2))
    forward, forward_for_gradient = torch_functions(model)
    images = jnp.asarray(CHANNELS_FIRST)
    logits, pull_back = forward_for_gradient(images)
    np.testing.assert_array_equal(forward(images), logits)
    np.testing.assert_array_equal(images, CHANNELS_FIRST)
    gradient = pull_back(np.eye(5, dtype=np.float32)[LABELS])
    weights = model.dense.weight.detach().numpy()
    np.testing.assert_allclose(gradient.reshape(8, -1), 2 * weights[LABELS], rtol=1e-6)


def test_gradients_work_where_the_caller_has_switched_them_off(torch_model):
    _, forward_for_gradient = torch_functions(torch_model)
    with torch.no_grad():
        logits, pull_back = forward_for_gradient(CHANNELS_FIRST)
        assert np.abs(pull_back(np.ones_like(logits))).max() > 0


def test_images_get_the_precision_of_the_weights():
    model = Function().to(torch.float64)
    logits = torch_functions(model)[0](CHANNELS_FIRST)
    assert logits.dtype == np.float32
    expected = CHANNELS_FIRST.reshape(8, -1) @ model.dense.weight.detach().numpy().T
    np.testing.assert_allclose(logits - model.dense.bias.detach().numpy(), expected, atol=1e-5)


def test_images_that_the_model_detaches_have_no_gradient():
    model = Function(of_images=lambda images: images.detach())
    _, pull_back = torch_functions(model)[1](CHANNELS_FIRST)
    with refused("the logits of Function have no gradient with respect to the images: remove to"):
        pull_back(np.ones((8, 5), np.float32))


def test_modules_in_training_mode_are_refused(torch_model):
    torch_model[1].train()
    with refused("Sequential is in training mode: call model.eval() first"):
        wrap(torch_model)
    with refused("Sequential holds its weights: write model.load_state_dict(variables), then jax"):
        wrap(torch_model.eval(), torch_model.state_dict())


FAILURES = {
    "tuple": (lambda logits: (logits, logits), "Function returns a tuple: wrap a torch.nn.Module"),
    "vector": (lambda logits: logits[:, 0], "Function returns shape (8,) for images of shape (8, "),
    "no gradient": (lambda logits: logits.detach(), "logits of Function have no gradient with"),
    "error": (lambda logits: logits @ logits, "Function fails on images of shape (8, 3, 6, 6): R"),
}


@pytest.mark.parametrize(("of_logits", "message"), FAILURES.values(), ids=FAILURES)
def test_failures_say_what_to_do(of_logits, message):
    with refused(message):
        torch_functions(Function(of_logits))[1](CHANNELS_FIRST)


def attack(classifier):
    options = {"eps": 0.2, "step_size": 0.05, "num_steps": 3}
    return np.asarray(pgd(KEY, classifier, IMAGES, LABELS, **options))


def test_logits_are_those_of_the_network(torch_model):
    classifier = wrap(torch_model, mean=(0.1, 0.2, 0.3), std=0.5)
    assert_logits(classifier, IMAGES, expected_logits((PIXELS - [0.1, 0.2, 0.3]) / 0.5))
    assert classifier.num_parameters == NUM_PARAMETERS
    assert check_classifier(classifier, check_examples(PIXELS, LABELS)) == (5, [])


def test_attacks_see_the_current_weights(torch_model):
    classifier, linen = wrap(torch_model), wrap(Linen(), VARIABLES)
    before = attack(classifier)
    np.testing.assert_allclose(before, attack(linen), atol=1e-5)
    torch_model[-1].load_state_dict(
        {"weight": torch.tensor(-DENSE_CHW), "bias": torch_model[-1].bias}
    )
    assert np.abs(attack(classifier) - before).max() > 0.1
    found = square(KEY, classifier, IMAGES, LABELS, eps=0.2, num_queries=3)
    assert np.abs(found.images - IMAGES).max() > 0.1


def test_the_wrong_layout_names_the_option(torch_model):
    with refused("Sequential fails on images of shape (8, 6, 6, 3), but accepts shape (8, 3,"):
        attack(wrap(torch_model, channels_first=False))


def test_noise_must_be_declared():
    classifier = wrap(Function(lambda logits: logits + torch.randn_like(logits)))
    with refused("Function returns other logits when it is called again"):
        check_classifier(classifier, check_examples(PIXELS, LABELS))
