"""TRADES (Zhang et al. 2019): the divergence from the clean prediction as attack and as loss.

    python run.py --config configs/trades.py

At 8/255 with 10 steps of 2/255 and beta 6, as the paper has it. Expected result and time: not run.
"""

from ml_collections import ConfigDict

from configs import pgd


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the config for "cifar10" or "digits"."""
    config = pgd.get_config(data)
    config.train.loss = "trades"
    config.attack.loss = "kl"
    return config
