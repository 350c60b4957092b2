"""Images for pages: RGB conversion, thumbnails, grids and data URIs."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_MAX_SIDE = 256  # pixels; pages show an image smaller than this


def amplify(
    perturbations: Float[np.ndarray, "k height width channels"],
) -> tuple[Float[np.ndarray, "k height width channels"], float]:
    """Scale perturbations to fill [0, 1] around 0.5, and return them with the factor."""
    largest = float(np.abs(perturbations).max())
    factor = 0.5 / largest if largest else 1.0
    return np.clip(0.5 + factor * perturbations, 0, 1), factor


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Convert images with any number of channels (the last axis) to RGB for display.

    Images with one or two channels show the first channel in grey. Images with more show the first
    three as red, green and blue; a fourth channel is not taken for transparency.
    """
    if images.shape[-1] < 3:
        return images[..., [0, 0, 0]]
    return images[..., :3]


def mosaic(
    images: UInt8[np.ndarray, "k height width channels"], num_columns: int
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Arrange images row by row in one RGB image, separated by white lines."""
    bordered = np.pad(as_rgb(images), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    _, height, width, _ = bordered.shape
    rows = bordered.reshape(-1, num_columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, num_columns * width, 3)


def thumbnail(
    image: Float[np.ndarray, "height width channels"],
) -> Float[np.ndarray, "rows columns channels"]:
    """Subsample an image to at most 256 pixels a side by taking every k-th row and column.

    Averaging pixels would cancel a perturbation of alternating signs.
    """
    step = -(-max(image.shape[:2]) // _MAX_SIDE)
    return image[::step, ::step]


def data_uri(image: Float[np.ndarray, "height width channels"]) -> str:
    """Return an image with values in [0, 1] as an RGB PNG in a `data:` URI."""
    png = io.BytesIO()
    Image.fromarray(np.round(as_rgb(image) * 255).astype(np.uint8)).save(png, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
