"""Validation of images, and their conversion to floats in [0, 1]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxadv.core.types import Images, UserError

_ROUNDING = 1e-6  # error in float32 of an image that is normalised and back


def to_float(images: Array) -> Images:
    """Convert images to float32 in [0, 1]; uint8 is divided by 255.

    Raises:
      UserError: another type, or floats outside [0, 1]; see `check_images`.
    """
    check_images(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    # The clip removes the rounding error that `check_images` allows.
    return jnp.clip(images.astype(jnp.float32), 0, 1)


def scale_to_unit(
    images: np.ndarray, bounds: tuple[int | float, int | float]
) -> Float[np.ndarray, "batch height width channels"]:
    """Scale float images from their bounds to [0, 1], as float32.

    Raises:
      UserError: the images lie outside of the bounds.
    """
    low, high = bounds
    scaled = images if (low, high) == (0, 1) else (images.astype(np.float64) - low) / (high - low)
    if jnp.issubdtype(images.dtype, jnp.floating) and outside_of_range(scaled):
        _refuse_nan(images)
        raise UserError(
            f"the images are {images.dtype} with values from {images.min():.9g} to "
            f"{images.max():.9g}: they must lie in bounds={bounds}; for other values pass bounds, "
            "such as bounds=(0, 255)"
        )
    check_images(scaled)
    return np.clip(scaled, 0, 1).astype(np.float32)


def check_images(images: Array | np.ndarray) -> None:
    """Check that images have four axes and are uint8, or floats in [0, 1] up to rounding.

    The range is checked outside compiled functions only.

    Raises:
      UserError: the images have another shape or type, or values outside [0, 1].
    """
    dtype = images.dtype
    if images.ndim != 4:
        raise UserError(
            f"the images have shape {images.shape}: use (n, height, width, channels), with one "
            "channel for grayscale images"
        )
    if dtype == jnp.uint8:
        return
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"the images are {dtype}: use uint8 from 0 to 255, or floats from 0 to 1")
    if outside := outside_of_range(images):
        _refuse_nan(images)
        raise UserError(
            f"the images are {dtype} with values from {outside[0]:.9g} to {outside[1]:.9g}: use "
            "floats from 0 to 1, or uint8 from 0 to 255"
        )


def _refuse_nan(images: Array | np.ndarray) -> None:
    broken = np.isnan(np.asarray(images)).any(axis=tuple(range(1, images.ndim)))
    if broken.any():
        raise UserError(
            f"{broken.sum()} of {len(images)} images contain NaN, the first is number "
            f"{broken.argmax()}: remove them, or correct their preprocessing"
        )


def outside_of_range(images: Array | np.ndarray) -> tuple[float, float] | None:
    """Return the smallest and the largest value if they exceed [0, 1] by more than rounding.

    For traced images, whose values are unknown, return None.
    """
    if not is_concrete(images) or not images.size:
        return None
    low, high = map(float, value_range(images))
    tolerance = max(_ROUNDING, float(jnp.finfo(images.dtype).eps))
    inside = low >= -tolerance and high <= 1 + tolerance  # False for NaN
    return None if inside else (low, high)


def value_range(array: Array | np.ndarray) -> tuple[Any, Any]:
    """Return the smallest and the largest value of a concrete array."""
    # Inside `jax.jit` the operations would be traced, and a traced value cannot be compared.
    with jax.ensure_compile_time_eval():
        return array.min().item(), array.max().item()


def is_concrete(value: Any) -> bool:
    """Return whether a value is concrete, not traced."""
    return not isinstance(value, jax.core.Tracer)
