"""Data sets, synthetic images, augmentation, and PCA of images."""

from jaxadv.data.datasets import Dataset, is_prepared, load
from jaxadv.data.examples import StoredExamples, in_memory

__all__ = ["Dataset", "StoredExamples", "in_memory", "is_prepared", "load"]
