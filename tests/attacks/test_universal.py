"""Universal perturbations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SHAPE, WEIGHTS, examples, linear

from jaxadv.attacks import universal_perturbation
from jaxadv.core.logits import predicted_class

KEY = jax.random.key(0)
IMAGES, LABELS = examples(n=24, low=0.3, high=0.7)
BUDGET = {"eps": 0.1, "step_size": 0.02, "num_steps": 20}


def find(logits_fn=LOGITS_FN, images=IMAGES, labels=LABELS, **changes):
    return universal_perturbation(KEY, logits_fn, images, labels, **{**BUDGET, **changes})


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_of_one_class_are_moved_against_its_weights(norm):
    """Of two classes the gradients of all images are parallel."""
    weights = WEIGHTS[:, :2] / 10
    delta = find(linear(weights), labels=jnp.zeros(24, jnp.int32), norm=norm)
    direction = weights[:, 1] - weights[:, 0]
    if norm == "linf":
        expected = 0.1 * np.sign(direction)
    else:
        expected = 0.1 * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(delta.ravel(), expected, atol=1e-5)
    assert delta.shape == SHAPE


def test_images_that_are_misclassified_by_far_do_not_pull():
    """Nine images of class 0 pull the first value down, one of class 1 pulls it up."""

    def logits_fn(key, images):
        first, lost = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return jnp.stack([first - 40 * lost, jnp.zeros_like(first)], axis=1)

    labels = jnp.array([0] * 9 + [1], jnp.int32)
    for lost, expected in ((0.0, -0.1), (0.9, 0.1)):  # a loss of 0.5 or of 36 nats
        images = jnp.full((10, 1, 1, 2), 0.5).at[:9, 0, 0, 1].set(lost).at[9, 0, 0, 1].set(0)
        delta = find(logits_fn, images, labels, batch_size=10)
        np.testing.assert_allclose(delta[0, 0, 0], expected, atol=1e-6)


def test_it_fools_images_that_it_has_not_seen(digits_net):
    images, labels = digits_net.images, digits_net.labels
    half = len(images) // 2
    delta = universal_perturbation(
        KEY, digits_net.logits_fn, images[:half], labels[:half], eps=0.25, step_size=0.02,
        num_steps=100, batch_size=64,
    )  # fmt: skip
    signs = jax.random.rademacher(KEY, delta.shape, jnp.float32)

    def accuracy(perturbation):
        moved = jnp.clip(images[half:] + perturbation, 0, 1)
        return (predicted_class(digits_net.logits_fn(None, moved)) == labels[half:]).mean()

    assert np.abs(delta).max() <= 0.25 + 1e-6
    assert accuracy(delta) < accuracy(0.25 * signs) - 0.1


def test_every_image_is_used_before_any_is_used_again():
    seen = []

    def logits_fn(key, images):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), images)
        return LOGITS_FN(key, images)

    find(logits_fn, num_steps=3, batch_size=8, eps=0.0)
    jax.effects_barrier()
    rows = np.concatenate(seen).reshape(-1, 48)
    unique = np.unique(rows, axis=0)
    np.testing.assert_allclose(unique, np.unique(np.asarray(IMAGES).reshape(-1, 48), axis=0))


def test_gradients_that_are_nan_do_not_count():
    def broken(key, images):
        logits = LOGITS_FN(key, images)
        return jnp.where((images.mean(axis=(1, 2, 3)) > 0.5)[:, None], jnp.nan, logits)

    assert np.isfinite(find(broken)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "norm is 'l1': it must be one of linf, l2"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eps": jnp.ones(24)}, "eps is Array"),
        ({"labels": LABELS + 5}, "labels lie in"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images are empty"),
    ],
)
def test_invalid_arguments_are_errors(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find(**changes)
