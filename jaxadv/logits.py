"""Logits that are not finite: no class is predicted, and the example counts as misclassified."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Logits = Float[Array, "... classes"]

_LARGEST = 1e30  # differences of finite logits stay finite
MISCLASSIFIED = -1


def at_least_single(floats: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns logits or images in single precision or better.

    In half precision constants of losses underflow, and what is added to an image is rounded.
    """
    return floats if jnp.finfo(floats.dtype).bits >= 32 else floats.astype(jnp.float32)


def finite_logits(logits: Logits) -> Logits:
    """Returns logits in single precision or better; a row with a NaN or infinite value is NaN.

    Whatever follows from such a row is NaN too, which `losses.margin` and `predicted_class` count
    as misclassified. Rows beyond 1e30 are scaled down, so that differences are finite and no two
    logits become equal.
    """
    logits = at_least_single(logits)
    valid = jnp.isfinite(logits).all(axis=-1, keepdims=True)
    largest = jnp.abs(lax.stop_gradient(logits)).max(axis=-1, keepdims=True)
    scale = jnp.where(valid, jnp.maximum(largest / _LARGEST, 1), 1)
    return jnp.where(valid, logits / scale, jnp.nan)


def predicted_class(logits: Logits) -> Int[Array, "..."]:
    """Returns the class of the largest logit, or `MISCLASSIFIED` where a logit is not finite."""
    valid = jnp.isfinite(logits).all(axis=-1)
    return jnp.where(valid, logits.argmax(axis=-1), MISCLASSIFIED)
