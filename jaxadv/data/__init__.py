"""Images in memory: where they come from, and their augmentation on the device."""

from jaxadv.data.datasets import Dataset, is_prepared, load

__all__ = ["Dataset", "is_prepared", "load"]
