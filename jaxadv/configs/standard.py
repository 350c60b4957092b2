"""Standard adversarial training of the study: half of each batch is attacked at a fixed eps.

    python run.py --config configs/standard.py

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split): 55.9 % clean, 25.0 %
under PGD-40 at eps 0.03; 22 min on 2 cores of an AMD EPYC (bignet_standard/0 in
results/study/index.md).
"""

from ml_collections import ConfigDict

from jaxadv.configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Return the config for a source of data: "cifar10", "digits" or another."""
    config = default.get_config(data)
    config.attack.eps_start = config.attack.eps_end = 0.03
    config.attack.num_steps_start = config.attack.num_steps_end = 10
    config.attack.step_size = 0.008
    return config
