"""Natural training: no adversary.

    python run.py --config configs/natural.py

Expected result and time: not run.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the config for "cifar10" or "digits"."""
    config = default.get_config(data)
    config.attack.fraction = 0.0
    config.attack.eps_start = config.attack.eps_end = 0.0
    config.attack.num_steps_start = config.attack.num_steps_end = 0
    config.validation.eps = 0.0  # the best checkpoint is the one of the best clean accuracy
    return config
