"""Conversion of stored images to uint8 arrays of one shape."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxadv.core.types import UserError

_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}  # of the modes of PIL that need no conversion
_CONVERTIBLE = ("LA", "PA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_CONVERTIBLE_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112  # tag of EXIF; from 5 on, width and height are exchanged


class ImageFormat(NamedTuple):
    """The requested format of images.

    Attributes:
      size: the shorter side is resized to it, then the centre is cropped to a square; None: as
        stored.
      channels: 1 or 3; None: as stored.
    """

    size: int | None = None
    channels: int | None = None

    def shape_of(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Return the shape of an image in this format, given its stored shape."""
        return self.size or height, self.size or width, self.channels or channels


class Header(NamedTuple):
    """What the header of an image says, without decoding.

    Attributes:
      name: of the image, for messages.
      height: in pixels, as the image is to be seen.
      width: the same.
      channels: None if the image needs a conversion.
      mode: of PIL.
    """

    name: str
    height: int
    width: int
    channels: int | None
    mode: str


def read_header(name: str, image: Image.Image) -> Header:
    """Return the header of an image that PIL has opened.

    Raises:
      UserError: the image has several frames, or values that are not of 8 or 16 bits.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(f"{name} has several frames: save one of them")
    if image.mode not in (*_CHANNELS, *_CONVERTIBLE, *_CONVERTIBLE_16_BIT):
        raise UserError(f"{name} has pixels of mode {image.mode}: save it with 8 bits per channel")
    width, height = image.size
    # A PNG is decoded to find its EXIF data unless they come first.
    may_have_exif = image.format != "PNG" or "exif" in image.info
    if may_have_exif and image.getexif().get(_ORIENTATION, 1) >= 5:
        width, height = height, width
    return Header(name, height, width, _CHANNELS.get(image.mode), image.mode)


def common_shape(headers: Iterable[Header], image_format: ImageFormat) -> tuple[int, int, int]:
    """Return the shape that all images have in a format.

    Raises:
      UserError: there is no common shape; the message names two images.
    """
    first = None
    for header in headers:
        first = first or header
        if not image_format.channels and header.channels is None:
            raise UserError(
                f"{header.name} has mode {header.mode} of PIL, neither grayscale nor RGB: set "
                "config.data.channels=3 (or 1) to convert all images"
            )
        if not image_format.channels and header.channels != first.channels:
            gray, colour = sorted((first, header), key=lambda one: one.channels or 0)
            raise UserError(
                f"{gray.name} is a grayscale image, {colour.name} a colour image: set "
                "config.data.channels=3 (or 1) to convert all images"
            )
        if not image_format.size and (header.height, header.width) != (first.height, first.width):
            raise UserError(
                f"{first.name} has {first.height} x {first.width} pixels, {header.name} has "
                f"{header.height} x {header.width}: set config.data.size to resize all images"
            )
    assert first is not None
    return image_format.shape_of(first.height, first.width, first.channels or 3)


def to_array(image: Image.Image, image_format: ImageFormat) -> UInt8[np.ndarray, "h w channels"]:
    """Decode an image, turn it as its EXIF data say, convert, resize and crop it."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _CONVERTIBLE_16_BIT:
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    mode = _MODES[image_format.channels or _CHANNELS.get(image.mode, 3)]
    if image.mode != mode:
        image = image.convert(mode)
    if image_format.size:
        square = (image_format.size, image_format.size)
        image = ImageOps.fit(image, square, Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def convert_arrays(
    images: UInt8[np.ndarray, "n height width channels"], image_format: ImageFormat
) -> UInt8[np.ndarray, "n new_height new_width new_channels"]:
    """Return images in a format; the same array if nothing changes."""
    shape = image_format.shape_of(*images.shape[1:])
    if shape == images.shape[1:]:
        return images
    converted = np.empty((len(images), *shape), np.uint8)
    for i, image in enumerate(images):
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        converted[i] = to_array(Image.fromarray(pixels), image_format)
    return converted
