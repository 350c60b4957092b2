"""PCA of a data set, and its effective rank."""

import numpy as np
from jaxtyping import Array, Float, UInt8

Pixels = (
    UInt8[np.ndarray, "n height width channels"]
    | UInt8[Array, "n height width channels"]
    | Float[np.ndarray, "n height width channels"]
    | Float[Array, "n height width channels"]
)
"""Images as bytes, or as floats in [0, 1]."""


def principal_components(
    images: Pixels, rank: int
) -> tuple[Float[np.ndarray, "pixels"], Float[np.ndarray, "rank pixels"]]:
    """Return the mean image and the first `rank` principal components, for pixels in [0, 1]."""
    from sklearn.decomposition import PCA  # takes a second to import; few models need it

    flat = _flat(images)
    # With more images than pixels, the covariance matrix is smaller than the data matrix.
    solver = "covariance_eigh" if len(flat) > flat.shape[1] else "full"
    pca = PCA(rank, svd_solver=solver).fit(flat)
    return pca.mean_.astype(np.float32), pca.components_.astype(np.float32)


def effective_rank(images: Pixels) -> float:
    """Return the effective rank of a data set (Roy & Vetterli, 2007).

    The rows of a matrix are the images minus their mean. Its singular values, divided by their sum,
    are a distribution; the effective rank is the exponential of its entropy. It equals r if r
    directions have the same variance and the others none.
    """
    flat = _flat(images).astype(np.float64)
    flat -= flat.mean(axis=0)
    gram = flat.T @ flat if len(flat) > flat.shape[1] else flat @ flat.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    shares = singular[singular > 1e-9 * singular.max()] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _flat(images: Pixels) -> Float[np.ndarray, "n pixels"]:
    flat = np.asarray(images).reshape(len(images), -1).astype(np.float32)
    return flat / 255 if images.dtype == np.uint8 else flat
