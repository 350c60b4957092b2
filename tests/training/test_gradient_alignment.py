import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv.attacks.threat import THREATS, random_perturbation
from jaxadv.core.convolution import convolution
from jaxadv.core.devices import AXIS
from jaxadv.models import layers, make_model
from jaxadv.models.ops import ACTIVATIONS
from jaxadv.training.gradient_alignment import gradient_misalignment

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 2, 2, 1))
LABELS = jnp.array([0, 1, 0])
IDS = jnp.arange(3)


def misalignment(logits_fn, eps=0.5, images=IMAGES, num_devices=1):
    """Return the mean over devices, each of which has a share of the images."""

    def of_share(images, labels, ids):
        return gradient_misalignment(KEY, logits_fn, images, labels, ids, jnp.float32(eps))

    shares = [
        array.reshape(num_devices, -1, *array.shape[1:])
        for array in (images, LABELS[: len(images)], IDS[: len(images)])
    ]
    return jax.vmap(of_share, axis_name=AXIS)(*shares).mean()


def linear(_, images):
    return images.reshape(len(images), -1) @ jnp.array([[1.0, -1.0], [2.0, 0.5], [0, 3], [1, 1]])


def curved(scale):
    def logits_fn(_, images):
        return jnp.stack([scale * (images**2).sum((1, 2, 3)), 0 * images.sum((1, 2, 3))], axis=1)

    return logits_fn


def test_gradients_of_a_linear_model_are_aligned():
    assert float(misalignment(linear)) == pytest.approx(0, abs=1e-6)


def test_the_cosine_of_a_quadratic_model_is_that_of_the_images():
    noise_key, _ = jax.random.split(KEY)
    noise = random_perturbation(THREATS["linf"], noise_key, IDS, IMAGES, jnp.float32(0.5))
    assert float(jnp.abs(noise).max()) > 0.3
    clean, noisy = (np.asarray(x, np.float64).reshape(3, -1) for x in (IMAGES, IMAGES + noise))
    lengths = np.linalg.norm(clean, axis=1) * np.linalg.norm(noisy, axis=1)
    expected = 1 - ((clean * noisy).sum(1) / lengths).mean()
    assert float(misalignment(curved(1.0))) == pytest.approx(expected, rel=1e-5)


def test_images_without_a_gradient_do_not_count():
    """The gradient of a quadratic model is zero at a black image."""
    black = IMAGES.at[1].set(0.0)
    found = misalignment(curved(1.0), eps=0.0, images=black)
    assert float(found) == pytest.approx(0, abs=1e-6)


def test_the_mean_over_devices_is_that_of_the_batch():
    """One of two devices has only an image without a gradient."""
    images = IMAGES[:2].at[1].set(0.0)
    model = no_gradient_below(0.01)
    one, two = (float(misalignment(model, images=images, num_devices=n)) for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-6)
    assert one == pytest.approx(float(misalignment(model, images=images[:1])), rel=1e-6)
    assert one > 1e-3


def no_gradient_below(threshold):
    """A quadratic model of images whose mean is above the threshold, and a constant one of others.

    Noise moves the mean of a black image to either side, but not to that of the others.
    """

    def logits_fn(_, images):
        is_dark = (jnp.abs(images) < 0.5 + threshold).all((1, 2, 3))
        first = jnp.where(is_dark, 0, (images**2).sum((1, 2, 3)))
        return jnp.stack([first, jnp.zeros_like(first)], axis=1)

    return logits_fn


@pytest.mark.parametrize("scale", [1e-12, 1.0])
def test_small_gradients_count(scale):
    assert float(misalignment(curved(scale))) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_its_gradient_in_a_kernel_is_that_of_plain_pools(activation, monkeypatch):
    """A second derivative, which the custom gradient of pooled convolutions must pass on."""
    model = make_model("net", 10, activation=activation)
    images = jax.random.uniform(jax.random.key(3), (2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(4), images)

    def gradient():
        def loss(variables):
            return misalignment(lambda _, x: model.apply(variables, x), eps=0.1, images=images)

        return jax.jit(jax.grad(loss))(variables)

    def plain(images, kernel, bias, activation, *, padding):
        outputs = convolution(images, kernel, padding=padding) + bias
        return nn.max_pool(ACTIVATIONS[activation](outputs), (2, 2), (2, 2))

    ours = gradient()
    monkeypatch.setattr(layers, "pooled_convolution", plain)
    expected = gradient()
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1e-3
    chex.assert_trees_all_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_no_gradient_flows_through_the_clean_image():
    """Compare with a finite difference in a weight that acts at the noisy images only."""

    def loss(weight, of_clean=1.0):
        def logits_fn(_, images):
            is_clean = (images == IMAGES).all()
            strength = jnp.where(is_clean, of_clean, weight)
            first = images[:, 0, 0, 0]
            other = (images**2).sum((1, 2, 3))
            return jnp.stack([first + strength * other, jnp.zeros_like(first)], axis=1)

        return misalignment(logits_fn)

    step = 1e-2
    expected = (loss(1 + step) - loss(1 - step)) / (2 * step)

    def shared(weight):
        return loss(weight, of_clean=weight)

    assert abs(float(expected)) > 1e-3
    assert float(jax.grad(shared)(1.0)) == pytest.approx(float(expected), rel=2e-2)
