import base64
import io

import numpy as np
import pytest
from PIL import Image

from jaxadv.reports.images import amplify, as_rgb, data_uri, mosaic, thumbnail


def test_amplified_perturbations_fill_the_range():
    perturbations = np.zeros((1, 2, 2, 3))
    perturbations[0, 0, 0] = 0.02
    perturbations[0, 1, 1] = -0.01
    images, factor = amplify(perturbations)
    assert factor == pytest.approx(25)
    assert images[0, 0, 0] == pytest.approx(1.0)
    assert images[0, 1, 1] == pytest.approx(0.25)
    assert images[0, 0, 1] == pytest.approx(0.5)


def test_zero_perturbations_are_grey():
    images, factor = amplify(np.zeros((1, 2, 2, 3)))
    assert factor == 1.0
    assert images == pytest.approx(0.5)


def decoded(uri):
    png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(png)))


def test_one_channel_is_shown_in_grey():
    decoded_image = decoded(data_uri(np.array([[0.0, 0.2, 1.0]])[..., None]))
    np.testing.assert_array_equal(decoded_image, np.repeat([[[0], [51], [255]]], 3, axis=2))


@pytest.mark.parametrize(
    ("num_channels", "channels"),
    [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (5, [0, 1, 2])],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_images_of_every_shape_are_encoded(num_channels, channels, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, num_channels)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data_uri(image / 255)), image[..., channels])


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_mosaic_contains_every_image_and_white_lines(num_channels):
    images = np.random.default_rng(0).integers(0, 255, (6, 3, 5, num_channels)).astype(np.uint8)
    grid = mosaic(images, 2)
    assert grid.shape == (3 * 4, 2 * 6, 3)
    for number, image in enumerate(images):
        row, column = divmod(number, 2)
        tile = grid[4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
        np.testing.assert_array_equal(tile[:3, :5], as_rgb(image))
        assert (tile[3] == 255).all()
        assert (tile[:, 5] == 255).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (1, 1)), ((256, 256), (256, 256)), ((257, 10), (129, 5)), ((300, 1024), (75, 256))],
)
def test_thumbnails_have_at_most_256_pixels_a_side(size, expected):
    image = np.random.default_rng(0).random((*size, 1))
    small = thumbnail(image)
    assert small.shape == (*expected, 1)
    assert np.isin(small, image).all()  # pixels are not averaged
