"""Images for a page."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_LARGEST_SIDE = 256  # pixels, above those that a page shows of one image


def amplify(
    perturbations: Float[np.ndarray, "k height width channels"],
) -> tuple[Float[np.ndarray, "k height width channels"], float]:
    """Returns perturbations as images around grey, and the factor that makes them fill [0, 1]."""
    largest = float(np.abs(perturbations).max())
    factor = 0.5 / largest if largest else 1.0
    return np.clip(0.5 + factor * perturbations, 0, 1), factor


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Converts images of any number of channels, the last axis, to RGB for display.

    The first three channels are red, green and blue. Where there are one or two, the first is shown
    in grey. A fourth channel is data, not transparency, and like all others is not shown.
    """
    if images.shape[-1] < 3:
        return images[..., [0, 0, 0]]
    return images[..., :3]


def mosaic(
    images: UInt8[np.ndarray, "k height width channels"], num_columns: int
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns images row by row as one RGB image, with a white line between them."""
    bordered = np.pad(as_rgb(images), ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    _, height, width, _ = bordered.shape
    rows = bordered.reshape(-1, num_columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, num_columns * width, 3)


def thumbnail(
    image: Float[np.ndarray, "height width channels"],
) -> Float[np.ndarray, "rows columns channels"]:
    """Reduces an image of more than 256 pixels a side to every k-th row and column.

    Pixels are not averaged, which would erase a perturbation of alternating signs.
    """
    step = -(-max(image.shape[:2]) // _LARGEST_SIDE)
    return image[::step, ::step]


def data_uri(image: Float[np.ndarray, "height width channels"]) -> str:
    """Returns an image with values in [0, 1] as the `data:` address of an RGB PNG."""
    png = io.BytesIO()
    Image.fromarray(np.round(as_rgb(image) * 255).astype(np.uint8)).save(png, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
