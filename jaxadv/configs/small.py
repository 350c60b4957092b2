"""A more robust model than that of configs/fast.py, of at most 0.3 million parameters.

    python run.py --config configs/small.py

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split; mean of two seeds):
65.4 % clean, 39.4 % under PGD-40 at eps 0.03, 33.5 % under AutoAttack at 8/255 on the first 1,000
images. Training took 30 and 32 min on 2 cores of an AMD EPYC with other load. See results/small.md.

Its network keeps 8x8 pixels for its residual convolutions, where `fastnet` keeps 5x5: an epoch
takes 2.5 times as long. The rest is configs/fast.py, with attacks at the radius of the leaderboard.
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
