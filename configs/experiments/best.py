"""The best BigNet: `configs/curriculum.py` with the evaluation of the other experiments.

    python run.py --config configs/experiments/best.py

Expected result on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three seeds):
60.8 % clean, 34.0 % under PGD-40 at eps 0.03; 40 min on 2 cores of an AMD EPYC, 25 to 28 min of an
Intel Xeon. See results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import curriculum
from configs.experiments.variants import evaluate_corrected


def get_config() -> ConfigDict:
    """Return the config of the training."""
    return evaluate_corrected(curriculum.get_config())
