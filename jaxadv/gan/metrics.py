"""Distances between samples and real images, by the features of a network.

All functions take one row of features for each image. Published Fréchet and kernel distances use
features of the Inception network; with other features the values are not comparable.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

Features = Float[np.ndarray, "n features"]
Others = Float[np.ndarray, "m features"]

_SUBSET_SIZE = 1000  # images of an estimate of the kernel distance
_NUM_NEIGHBOURS = 3  # as in Kynkäänniemi et al. 2019
_ROWS = 500  # of the distance matrix in memory at once


def frechet_distance(real: Features, fake: Others) -> float:
    """Compute the Fréchet distance of the Gaussians fitted to both (Heusel et al. 2017).

    |m - n|^2 + tr(C + D - 2 (C^1/2 D C^1/2)^1/2), with means m, n and covariances C, D.
    """
    (mean, covariance), (other_mean, other) = _gaussian(real), _gaussian(fake)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    distance = ((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * cross
    return float(max(distance, 0.0))


def _gaussian(features: Features) -> tuple[np.ndarray, np.ndarray]:
    features = features.astype(np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def kernel_distance(
    real: Features, fake: Others, *, num_subsets: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Compute the squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    Returns:
      The mean of unbiased estimates from random subsets, and their standard deviation. A subset is
      half of the images, at most 1,000.
    """
    generator = np.random.default_rng(seed)
    size = max(min(_SUBSET_SIZE, len(real) // 2, len(fake) // 2), 2)

    def subset(features: np.ndarray) -> np.ndarray:
        return features[generator.choice(len(features), size, replace=False)].astype(np.float64)

    estimates = [_squared_mmd(subset(real), subset(fake)) for _ in range(num_subsets)]
    return float(np.mean(estimates)), float(np.std(estimates, ddof=1))


def _squared_mmd(x: Features, y: Features) -> float:
    size = len(x)
    within = sum(gram.sum() - np.trace(gram) for gram in (_kernel(x, x), _kernel(y, y)))
    return within / (size * (size - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x: Features, y: Others) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_and_recall(real: Features, fake: Others) -> tuple[float, float]:
    """Compute the share of fakes in the real manifold, and of reals in the fake manifold.

    A manifold is the union of balls around its points, each with the distance to the third
    neighbour as its radius (Kynkäänniemi et al. 2019).
    """
    return float(_covered(fake, real).mean()), float(_covered(real, fake).mean())


def _covered(points: Features, manifold: Others) -> Bool[np.ndarray, "n"]:
    count = min(_NUM_NEIGHBOURS, len(manifold) - 1)
    # The nearest point is the point itself.
    radii = np.concatenate(
        [np.partition(block, count, axis=1)[:, count] for block in _distances(manifold, manifold)]
    )
    return np.concatenate([(block <= radii).any(axis=1) for block in _distances(points, manifold)])


def nearest(
    points: Features, others: Others
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Return the index of the nearest other point for each point, and its squared distance."""
    blocks = [(block.argmin(axis=1), block.min(axis=1)) for block in _distances(points, others)]
    rows, distances = zip(*blocks, strict=True)
    return np.concatenate(rows), np.concatenate(distances)


def num_duplicates(points: Features, distance: float) -> int:
    """Count the points that have an earlier point within a distance."""
    count, start = 0, 0
    for block in _distances(points, points):
        rows = start + np.arange(len(block))
        earlier = np.arange(len(points)) < rows[:, None]
        count += int(((block <= distance**2) & earlier).any(axis=1).sum())
        start += len(block)
    return count


def _distances(points: Features, others: Others) -> Iterator[np.ndarray]:
    """Yield the squared distances to all others, for a block of points at a time."""
    points, others = points.astype(np.float64), others.astype(np.float64)
    squares = (others**2).sum(axis=1)
    for start in range(0, len(points), _ROWS):
        block = points[start : start + _ROWS]
        squared = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ others.T
        yield np.maximum(squared, 0)
