"""The published architectures beside the same networks in PyTorch, where it is installed."""

import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES
from random_weights import random_state_dict, state_dict_shapes, variable_shapes
from test_published_architectures import LOGITS, random_images

from jaxadv.models.state_dicts import to_variables

torch = pytest.importorskip("torch")
networks = pytest.importorskip("benchmarks.torch_architectures")


def torch_images_of(images):
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_shapes_are_those_of_pytorch(name):
    model, shape = ARCHITECTURES[name]
    arrays = networks.state_dict(networks.make_torch(model, shape))
    assert {key: array.shape for key, array in arrays.items()} == state_dict_shapes(model, shape)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_the_stored_example_come_from_pytorch(name):
    model, shape = ARCHITECTURES[name]
    network = networks.make_torch(model, shape)
    arrays = networks.state_dict(network)
    for key, array in random_state_dict(model, shape).items():
        arrays[key][...] = array  # shares its memory with the network
    logits = network(torch_images_of(random_images(shape)))
    np.testing.assert_allclose(logits[0].detach(), LOGITS[name], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_input_gradients_are_those_of_pytorch(name):
    model, shape = ARCHITECTURES[name]
    network, images = networks.make_torch(model, shape), random_images(shape)
    networks.randomise(network, seed=1)
    variables = to_variables(networks.state_dict(network), variable_shapes(model, shape))

    def loss(images, variables):
        logits = model.apply(variables, images)
        return jax.nn.logsumexp(logits, axis=1).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(images, variables)
    torch_images = torch_images_of(images).requires_grad_()
    expected = network(torch_images)
    expected.logsumexp(1).sum().backward()
    expected, expected_gradients = expected.detach().numpy(), torch_images.grad.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(
        gradients.transpose(0, 3, 1, 2),
        expected_gradients,
        atol=1e-5 * abs(expected_gradients).max(),
    )
