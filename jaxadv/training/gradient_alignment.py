"""Gradient alignment (GradAlign; Andriushchenko & Flammarion, 2020)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxadv.attacks.threat import THREATS, random_perturbation
from jaxadv.core.devices import AXIS
from jaxadv.core.losses import cross_entropy
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey


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
    authors' code. Images with a gradient of zero do not count. The authors compute the gradients in
    training mode; here the model decides, and a training step passes its evaluation mode.

    The result is for the share of one device: its mean over the devices is that of the batch.

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

    at_image, is_image_zero = _unit(lax.stop_gradient(input_gradient(images)))
    at_noisy, is_noisy_zero = _unit(input_gradient(images + noise))
    counts = ~(is_image_zero | is_noisy_zero)
    differences = jnp.where(counts, 1 - (at_image * at_noisy).sum(axis=-1), 0)
    num_counts = lax.psum(counts.sum(), AXIS)
    return differences.sum() * lax.psum(1, AXIS) / jnp.maximum(num_counts, 1)


def _unit(
    gradients: Float[Array, "batch pixels"],
) -> tuple[Float[Array, "batch pixels"], Bool[Array, "batch"]]:
    """Return the gradients divided by their length, and which are zero."""
    # Scaled first: squares of the tiny gradients of a confident model would underflow to zero.
    largest = lax.stop_gradient(jnp.abs(gradients).max(axis=-1, keepdims=True))
    scaled = gradients / jnp.where(largest > 0, largest, 1)
    square = (scaled**2).sum(axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(largest > 0, square, 1))
    return scaled / length, (largest == 0)[:, 0]
