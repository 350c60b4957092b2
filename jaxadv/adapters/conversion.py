"""Conversion of images in [0, 1] to those that a model expects."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.core.types import UserError


class Conversion(NamedTuple):
    """Scaling, normalisation and layout of images, in this order, in NumPy or JAX.

    Attributes:
      bounds: range of the pixels.
      mean: of each channel, or of all; empty: 0.
      std: standard deviation, likewise; empty: 1.
      channels_first: whether the channels move to axis 1.
    """

    bounds: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels_first: bool = False

    def __call__(self, images: Any) -> Any:
        """Convert floats in [0, 1] of shape (n, height, width, channels).

        Raises:
          UserError: mean or std have another number of channels than the images.
        """
        xp = jnp if isinstance(images, jax.Array) else np
        low, high = self.bounds
        if self.bounds != (0, 1):
            images = low + (high - low) * images
        if self.mean:
            images = images - xp.asarray(self._per_channel("mean", images), images.dtype)
        if self.std:
            images = images / xp.asarray(self._per_channel("std", images), images.dtype)
        return images.transpose(0, 3, 1, 2) if self.channels_first else images

    def _per_channel(self, name: str, images: Any) -> tuple[float, ...]:
        values, channels = getattr(self, name), images.shape[-1]
        if len(values) not in (1, channels):
            raise UserError(
                f"{name} has {len(values)} values, but the images have shape {images.shape}: pass "
                f"one value per channel, {channels}, or one for all"
            )
        return values


def make_conversion(mean: Any, std: Any, bounds: Any, channels_first: bool | None) -> Conversion:
    """Return the conversion of the arguments of `wrap`.

    Raises:
      UserError: a value is invalid.
    """
    limits = _floats("bounds", bounds)
    if len(limits) != 2 or limits[0] >= limits[1]:
        raise UserError(
            f"bounds is {bounds!r}: pass the smallest and the largest pixel, as in (0, 255)"
        )
    means, stds = _floats("mean", mean), _floats("std", std)
    if means and not limits[0] <= min(means) <= max(means) <= limits[1]:
        raise UserError(
            f"mean is {mean!r}, which is outside of bounds {limits}: pass bounds=(0, 255) if the "
            "model expects pixels from 0 to 255, else divide mean and std by 255"
        )
    if stds and min(stds) <= 0:
        raise UserError(f"std is {std!r}: it must be above 0")
    return Conversion((limits[0], limits[1]), means, stds, bool(channels_first))


def _floats(name: str, values: Any) -> tuple[float, ...]:
    if values is None:
        return ()
    try:
        # Flattened, because (3, 1, 1) is the shape of PyTorch's normalisations.
        numbers = tuple(np.asarray(values, np.float64).ravel().tolist())
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {values!r}: pass a number, or one per channel") from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UserError(f"{name} is {values!r}: pass a finite number, or one per channel")
    return numbers
