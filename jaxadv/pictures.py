"""Images for a page."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def amplify(
    perturbations: Float[np.ndarray, "k height width 3"],
) -> tuple[Float[np.ndarray, "k height width 3"], float]:
    """Returns perturbations as images around grey, and the factor that makes them fill [0, 1]."""
    largest = float(np.abs(perturbations).max())
    factor = 0.5 / largest if largest else 1.0
    return np.clip(0.5 + factor * perturbations, 0, 1), factor


def mosaic(
    images: UInt8[np.ndarray, "k height width 3"], num_columns: int
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Returns images row by row as one, with a white line between them."""
    bordered = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    _, height, width, _ = bordered.shape
    rows = bordered.reshape(-1, num_columns, height, width, 3).swapaxes(1, 2)
    return rows.reshape(-1, num_columns * width, 3)


def data_uri(image: Float[np.ndarray, "height width 3"]) -> str:
    """Returns an image with values in [0, 1] as the `data:` address of a PNG."""
    png = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(png, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
