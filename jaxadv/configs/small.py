"""A more robust model than that of configs/fast.py, of at most 0.3 million parameters.

    python run.py --config configs/small.py

Its network keeps 8x8 pixels for its residual convolutions, where `fastnet` keeps 5x5: each image
costs about three times as much, and each epoch teaches more. The rest is configs/fast.py, with
attacks at the radius of the leaderboard. Expected result: not measured yet.
"""

from ml_collections import ConfigDict

from jaxadv.configs import fast


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = fast.get_config(data)
    config.model.name = "smallnet"
    config.attack.eps_start = config.attack.eps_end = config.attack.step_size = 8 / 255
    if data != "digits":
        config.train.num_epochs = 10
    return config
