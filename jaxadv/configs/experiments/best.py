"""The best BigNet: `configs/curriculum.py` with the evaluation of the other experiments.

    python run.py --config configs/experiments/best.py

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three seeds):
60.8 % clean, 33.8 % under PGD-40 at eps 0.03 and 27.5 % under AutoAttack (1,000 images); 40 min on
2 cores of an AMD EPYC. See results/study/index.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs import curriculum
from jaxadv.configs.experiments.variants import evaluate_corrected


def get_config() -> ConfigDict:
    """Return the config of the training."""
    return evaluate_corrected(curriculum.get_config())
