"""Gradient alignment (GradAlign; Andriushchenko & Flammarion, 2020)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxadv.attacks.threat import THREATS, random_perturbation
from jaxadv.core.losses import cross_entropy
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey

_TINY = 1e-20


def gradient_misalignment(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    example_ids: Int[Array, "batch"],
    eps: Float[Array, ""],
) -> Float[Array, ""]:
    """Return 1 minus the mean cosine between input gradients at an image and at a noisy version.

    This is the regulariser of eq. 3. It is large where a one-step attack fails, which precedes
    catastrophic overfitting. No gradient flows through the input gradient at the image, as in the
    authors' code. Images with a gradient of zero do not count.

    Args:
      key: of the noise.
      logits_fn: `(key, images) -> logits`.
      images: shape (batch, height, width, channels).
      labels: shape (batch,).
      example_ids: shape (batch,); the noise of an example depends on its id.
      eps: radius of the uniform noise, in L-inf.
    """
    noise_key, model_key = jax.random.split(key)
    noise = random_perturbation(THREATS["linf"], noise_key, example_ids, images, eps)

    def input_gradient(images: Images) -> Float[Array, "batch pixels"]:
        gradient = jax.grad(lambda x: cross_entropy(logits_fn(model_key, x), labels).sum())(images)
        return gradient.reshape(len(images), -1)

    at_image = lax.stop_gradient(input_gradient(images))
    at_noisy = input_gradient(images + noise)
    products = (at_image * at_noisy).sum(axis=-1)
    squares = (at_image**2).sum(axis=-1) * (at_noisy**2).sum(axis=-1)
    counts = squares > _TINY
    cosines = jnp.where(counts, products / jnp.sqrt(jnp.where(counts, squares, 1)), 0)
    return 1 - cosines.sum() / jnp.maximum(counts.sum(), 1)
