"""Natural training, without adversarial examples.

    python run.py --config configs/natural.py --config.model.name=net

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split): 60.8 % clean, 0.0 %
under PGD-40 at eps 0.03; 6 min on 2 cores of an AMD EPYC (net_natural/0 in results/study/index.md).
BigNet, the default model: not run.
"""

from ml_collections import ConfigDict

from jaxadv.configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = default.get_config(data)
    config.attack.fraction = 0.0
    config.attack.eps_start = config.attack.eps_end = 0.0
    config.attack.num_steps_start = config.attack.num_steps_end = 0
    config.validation.eps = 0.0  # selects the checkpoint by its clean accuracy
    return config
