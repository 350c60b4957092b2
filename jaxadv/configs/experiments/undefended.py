"""`net` after natural training, under PGD-40.

    python run.py --config configs/experiments/undefended.py

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split), one seed: 60.8 % clean,
9.0 % under PGD-40 at eps 0.01, 0.0 % at eps 0.03; 6 min on 2 cores of an AMD EPYC. See
results/study/index.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs import natural
from jaxadv.configs.experiments.variants import evaluate_corrected


def get_config() -> ConfigDict:
    """Return the config of the natural training of `net`."""
    config = natural.get_config()
    config.model.name = "net"
    return evaluate_corrected(config)
