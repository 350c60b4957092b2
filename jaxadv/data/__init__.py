"""Data sets, synthetic images, augmentation, and PCA of images."""

from jaxadv.data.datasets import Dataset, is_prepared, load

__all__ = ["Dataset", "is_prepared", "load"]
