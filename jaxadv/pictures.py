"""Images for a page."""

import base64
import io

import numpy as np
from jaxtyping import Float
from PIL import Image


def amplify(
    perturbations: Float[np.ndarray, "k height width 3"],
) -> tuple[Float[np.ndarray, "k height width 3"], float]:
    """Returns perturbations as images around grey, and the factor that makes them fill [0, 1]."""
    largest = float(np.abs(perturbations).max())
    factor = 0.5 / largest if largest else 1.0
    return np.clip(0.5 + factor * perturbations, 0, 1), factor


def data_uri(image: Float[np.ndarray, "height width 3"]) -> str:
    """Returns an image with values in [0, 1] as the `data:` address of a PNG."""
    png = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(png, format="png")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
