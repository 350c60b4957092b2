"""TRADES (Zhang et al., 2019): KL divergence from the clean prediction as attack and as loss.

    python run.py --config configs/trades.py

The values are those of the paper: eps 8/255, 10 steps of 2/255, beta 6. Expected result and time:
not run.
"""

from ml_collections import ConfigDict

from jaxadv.configs import pgd


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = pgd.get_config(data)
    config.train.loss = "trades"
    config.attack.loss = "kl"
    return config
