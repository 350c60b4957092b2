"""Conversion of images: channels, sizes, orientation, and the check of headers."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxadv.core.types import UserError
from jaxadv.data.images import ImageFormat, common_shape, convert_arrays, read_header, to_array

PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def stored(image: Image.Image, file_format: str = "png", **options) -> Image.Image:
    """Return an image as PIL opens it from a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def shape_of(*images: Image.Image, size=None, channels=None):
    headers = [read_header(f"{i}.png", image) for i, image in enumerate(images)]
    return common_shape(headers, ImageFormat(size, channels))


@pytest.mark.parametrize(
    ("mode", "shape"), [("RGB", (6, 4, 3)), ("L", (6, 4, 1)), ("P", (6, 4, 3))]
)
def test_images_keep_their_pixels(mode, shape):
    image = stored(Image.fromarray(PIXELS).convert(mode))
    assert shape_of(image) == shape
    expected = np.asarray(image.convert("RGB" if shape[2] == 3 else "L")).reshape(shape)
    np.testing.assert_array_equal(to_array(image, ImageFormat()), expected)


def test_a_colour_image_is_converted_to_grayscale_and_back():
    gray = to_array(stored(Image.fromarray(PIXELS)), ImageFormat(channels=1))
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[..., 0], PIXELS @ weights, atol=1)
    colour = to_array(stored(Image.fromarray(gray[..., 0])), ImageFormat(channels=3))
    np.testing.assert_array_equal(colour, np.repeat(gray, 3, axis=-1))


def test_values_of_16_bits_are_scaled():
    values = np.array([[0, 257, 65535], [300, 32768, 128]], np.uint16)
    image = stored(Image.fromarray(values))
    array = to_array(image, ImageFormat(channels=1))
    np.testing.assert_array_equal(array[..., 0], [[0, 1, 255], [1, 128, 0]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK"])
def test_other_modes_need_a_conversion(mode):
    image = stored(Image.fromarray(PIXELS).convert(mode), "tiff")
    with pytest.raises(UserError, match=rf"^0.png has mode {mode} .*set config.data.channels=3"):
        shape_of(image)
    assert shape_of(image, channels=3) == (6, 4, 3)
    assert to_array(image, ImageFormat(channels=3)).shape == (6, 4, 3)


def test_the_shorter_side_is_resized_and_the_centre_cropped():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 16:44, 0] = 255  # the middle is red
    array = to_array(stored(Image.fromarray(wide)), ImageFormat(size=10))
    assert array.shape == (10, 10, 3)
    assert array[..., 0].min() == 255
    assert array[..., 1:].max() == 0


def test_a_square_image_of_the_requested_size_is_unchanged():
    square = PIXELS[:4]
    array = to_array(stored(Image.fromarray(square)), ImageFormat(size=4))
    np.testing.assert_array_equal(array, square)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_the_orientation_of_exif_is_applied(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = stored(Image.fromarray(PIXELS), file_format, exif=exif)
    assert shape_of(image) == (4, 6, 3)
    assert to_array(image, ImageFormat()).shape == (4, 6, 3)
    plain = np.asarray(stored(Image.fromarray(PIXELS), file_format))
    turned = to_array(stored(Image.fromarray(PIXELS), file_format, exif=exif), ImageFormat())
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


def test_grayscale_and_colour_are_reported_with_both_names():
    gray, colour = stored(Image.fromarray(PIXELS[..., 0])), stored(Image.fromarray(PIXELS))
    message = "^1.png is a grayscale image, 0.png a colour image: set config.data.channels=3"
    with pytest.raises(UserError, match=message):
        shape_of(colour, gray)
    assert shape_of(colour, gray, channels=1) == (6, 4, 1)


def test_sizes_are_reported_with_two_names():
    images = [stored(Image.fromarray(PIXELS[:rows])) for rows in (6, 6, 5)]
    message = r"^0.png has 6 x 4 pixels, 2.png has 5 x 4: set config.data.size"
    with pytest.raises(UserError, match=message):
        shape_of(*images)
    assert shape_of(*images, size=3) == (3, 3, 3)


def test_several_frames_and_floats_are_refused():
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    animated = stored(frames[0], "gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"^a.gif has several frames"):
        read_header("a.gif", animated)
    floats = stored(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "tiff")
    with pytest.raises(UserError, match=r"^a.tif has pixels of mode F: save it with 8 bits"):
        read_header("a.tif", floats)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_converted_as_images(channels):
    images = np.stack([PIXELS, 255 - PIXELS])[..., :channels]
    assert convert_arrays(images, ImageFormat()) is images
    image_format = ImageFormat(size=3, channels=4 - channels)
    converted = convert_arrays(images, image_format)
    for before, after in zip(images, converted, strict=True):
        pil = Image.fromarray(before[..., 0] if channels == 1 else before)
        np.testing.assert_array_equal(after, to_array(pil, image_format))
