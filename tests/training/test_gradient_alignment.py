import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks.threat import THREATS, random_perturbation
from jaxadv.training.gradient_alignment import gradient_misalignment

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 2, 2, 1))
LABELS = jnp.array([0, 1, 0])
IDS = jnp.arange(3)


def misalignment(logits_fn, eps=0.5, images=IMAGES):
    return gradient_misalignment(KEY, logits_fn, images, LABELS, IDS, jnp.float32(eps))


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
