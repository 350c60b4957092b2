"""The linear curriculum as the study ran it."""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the defaults, which are the study's numbers, for "cifar10" or "digits"."""
    return default.get_config(data)
