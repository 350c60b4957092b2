"""Checks of logits. An example with a NaN or infinite logit counts as misclassified."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, "... classes"]

_LARGEST = 1e30  # differences of finite logits stay finite
_SAME_OUTPUT = 1e-4  # largest difference of normalised outputs between forward passes of one model
_SAME_SUM = 1e-5  # largest difference of the sum of a softmax from 1
MISCLASSIFIED = -1


def at_least_float32(floats: Float[Array, "..."]) -> Float[Array, "..."]:
    """Cast logits or images of lower precision to float32.

    In half precision, constants of losses underflow and perturbations of images are rounded.
    """
    return floats if jnp.finfo(floats.dtype).bits >= 32 else floats.astype(jnp.float32)


def finite_logits(logits: Logits) -> Logits:
    """Cast logits to at least float32, and set rows with a NaN or infinite value to NaN.

    `losses.margin` and `predicted_class` count NaN as misclassified. Rows with values beyond 1e30
    are scaled down, so that differences stay finite and no two logits become equal.
    """
    logits = at_least_float32(logits)
    valid = jnp.isfinite(logits).all(axis=-1, keepdims=True)
    largest = jnp.abs(lax.stop_gradient(logits)).max(axis=-1, keepdims=True)
    scale = jnp.where(valid, jnp.maximum(largest / _LARGEST, 1), 1)
    return jnp.where(valid, logits / scale, jnp.nan)


def predicted_class(logits: Logits) -> Int[Array, "..."]:
    """Return the class of the largest logit, or `MISCLASSIFIED` if a logit is not finite."""
    valid = jnp.isfinite(logits).all(axis=-1)
    return jnp.where(valid, logits.argmax(axis=-1), MISCLASSIFIED)


def are_probabilities(outputs: Logits) -> Bool[Array, "..."]:
    """Return whether the outputs of an example are in [0, 1] with sum 1, as those of a softmax."""
    inside = (outputs >= -_SAME_SUM) & (outputs <= 1 + _SAME_SUM)
    return inside.all(axis=-1) & (jnp.abs(outputs.sum(axis=-1) - 1) < _SAME_SUM)


def outputs_differ(outputs: Float[Array, "passes batch classes"]) -> Bool[Array, "batch"]:
    """Return whether the outputs of an image differ between forward passes, beyond rounding."""
    norms = jnp.linalg.norm(outputs, axis=-1, keepdims=True).max(axis=0)
    spread = outputs.max(axis=0) - outputs.min(axis=0)
    return (spread > _SAME_OUTPUT * norms).any(axis=-1)
