"""Standard adversarial training of the study: half of each batch attacked at a fixed eps.

    python run.py --config configs/standard.py

Expected result and time: not run.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the config for "cifar10" or "digits"."""
    config = default.get_config(data)
    config.attack.eps_start = config.attack.eps_end = 0.03
    config.attack.num_steps_start = config.attack.num_steps_end = 10
    config.attack.step_size = 0.008
    return config
