"""The linear curriculum as the study ran it."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the defaults, which are the study's numbers."""
    return default.get_config()
