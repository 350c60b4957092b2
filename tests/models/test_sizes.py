"""Images of all sizes and numbers of channels are accepted, or refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.core.devices import AXIS
from jaxadv.core.types import UserError
from jaxadv.gan.networks import Discriminator, Generator
from jaxadv.models import make_model
from jaxadv.models.checks import check_model

SMALLEST = {
    "net": 16,
    "bignet": 16,
    "biggernet": 16,
    "fastnet": 16,
    "smallnet": 16,
    "wrn_7_1": 1,
    "vit_1_32": 4,
}


def gradient(name, shape):
    """Return the gradient of a loss of a model with respect to images of this shape."""
    model = make_model(name, num_classes=3)
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.random(shape), jnp.float32)
    variables = jax.tree.map(  # from numpy: initialisers take long to compile
        lambda leaf: jnp.asarray(generator.normal(0, 0.1, leaf.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )
    variables |= {
        "batch_stats": jax.tree.map(jnp.ones_like, variables.get("batch_stats", {})),
    }
    return jax.jit(jax.grad(lambda images: (model.apply(variables, images) ** 2).sum()))(images)


@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_the_smallest_images_are_accepted_with_any_number_of_channels(name, side, num_channels):
    found = gradient(name, (2, side, side, num_channels))
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("size", [(17, 23), (19, 16)])
@pytest.mark.parametrize("name", SMALLEST)
def test_odd_and_rectangular_images_are_accepted(name, size):
    found = gradient(name, (2, *size, 1))
    assert found.shape == (2, *size, 1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_smaller_images_are_refused_in_one_line(name, side, axis):
    size = [side + 1, side + 1]
    size[axis] = side - 1
    message = (
        rf"takes images of {side} x {side} pixels or more, not {size[0]} x {size[1]}: use larger"
    )
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    with pytest.raises(UserError, match=message) as raised:
        jax.eval_shape(make_model(name, num_classes=3).init, jax.random.key(0), images)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [(8, 8), (4, 20), (32, 32)])
def test_the_discriminator_accepts_multiples_of_four(size):
    assert discriminate((*size, 1)).shape == (2,)
    assert discriminate((*size, 3)).shape == (2,)


@pytest.mark.parametrize("size", [(31, 32), (32, 30), (28, 5)])
def test_the_discriminator_refuses_other_sizes_in_one_line(size):
    with pytest.raises(UserError, match="multiples of 4") as raised:
        discriminate((*size, 3))
    assert "\n" not in str(raised.value)


def discriminate(image_shape):
    module = Discriminator(num_classes=3, features=8, num_blocks=2)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    logits, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), images, labels)
    return logits


@pytest.mark.parametrize(("shape", "num_classes"), [((28, 28, 1), 10), ((64, 64, 3), 100)])
@pytest.mark.parametrize("name", [*SMALLEST, "wrn_25_2"])
def test_other_data_sets_are_accepted(name, shape, num_classes):
    check_model(make_model(name, num_classes, axis_name=AXIS), shape, num_classes)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_the_generator_makes_images_of_the_channels_of_the_data(num_channels):
    module = Generator(num_classes=3, num_channels=num_channels, features=2, num_blocks=1)
    latents = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    images, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), latents, labels)
    assert images.shape == (2, 8, 8, num_channels)
