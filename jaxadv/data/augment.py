"""Random data augmentation on the device."""

import re
from collections.abc import Callable

import dm_pix as pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxadv.core.types import Images, PRNGKey, UserError

Image = Float[Array, "height width channels"]
AugmentFn = Callable[[Key[Array, "batch"], Images], Images]
"""`(keys, images) -> images` in [0, 1], with one key for each example."""

_CROP_PADDING = 1 / 8  # of each side, on both of its ends: 4 of 32 pixels
_JITTER = 0.2  # a common strength; the study does not state its own


_FLIPPED_SOURCES = frozenset(
    {
        "cifar10",
        "cifar100",
        "imagenet2012",
        "imagenet_resized",
        "imagenette",
        "imagewang",
        "stl10",
    }
)
"""Data sets whose mirrored images keep their class, by the first part of `config.data.source`."""


def default_augmentation(source: str) -> str:
    """Return the augmentation of a data source: "flip" where it is known to keep the classes.

    >>> default_augmentation("imagenette/160px-v2:1.0.0"), default_augmentation("mnist")
    ('flip', 'none')

    Args:
      source: value of `config.data.source`.
    """
    return "flip" if re.split("[/:]", source)[0] in _FLIPPED_SOURCES else "none"


def make_augment(name: str) -> AugmentFn:
    """Return an augmentation of a batch, to run inside a compiled step.

    - "none": no augmentation.
    - "flip": horizontal flip with probability 1/2.
    - "flip_crop": flip; a random crop of the original size from the image padded with black pixels,
      on each side an eighth of its length.
    - "flip_crop_jitter": the same; brightness shifted by up to 0.2, contrast and saturation
      multiplied by a factor in [0.8, 1.2]; clipping to [0, 1]. Saturation is changed in RGB images
      only.

    The augmentation of an example depends on its key only, not on the rest of the batch.

    Raises:
      UserError: unknown name.
    """
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise UserError(f"data.augmentation={name!r} is not an augmentation: use one of {known}")
    return jax.vmap(AUGMENTATIONS[name])


def _none(_: PRNGKey, image: Image) -> Image:
    return image


def _flip(key: PRNGKey, image: Image) -> Image:
    return pix.random_flip_left_right(key, image)


def _flip_crop(key: PRNGKey, image: Image) -> Image:
    flip_key, crop_key = jax.random.split(key)
    return _crop(crop_key, _flip(flip_key, image))


def _flip_crop_jitter(key: PRNGKey, image: Image) -> Image:
    flip_key, crop_key, jitter_key = jax.random.split(key, 3)
    return _jitter(jitter_key, _crop(crop_key, _flip(flip_key, image)))


def _crop(key: PRNGKey, image: Image) -> Image:
    height, width = (round(_CROP_PADDING * side) for side in image.shape[:2])
    padded = jnp.pad(image, ((height, height), (width, width), (0, 0)))
    return pix.random_crop(key, padded, image.shape)


def _jitter(key: PRNGKey, image: Image) -> Image:
    brightness_key, contrast_key, saturation_key = jax.random.split(key, 3)
    image = pix.random_brightness(brightness_key, image, _JITTER)
    image = pix.random_contrast(contrast_key, image, 1 - _JITTER, 1 + _JITTER)
    if image.shape[-1] == 3:
        image = pix.random_saturation(saturation_key, image, 1 - _JITTER, 1 + _JITTER)
    return jnp.clip(image, 0, 1)


AUGMENTATIONS: dict[str, Callable[[PRNGKey, Image], Image]] = {
    "none": _none,
    "flip": _flip,
    "flip_crop": _flip_crop,
    "flip_crop_jitter": _flip_crop_jitter,
}
