"""Natural training: no adversary."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.attack.fraction = 0.0
    config.validation.eps = 0.0  # the best checkpoint is the one of the best clean accuracy
    return config
