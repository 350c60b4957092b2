"""The linear curriculum as the study ran it: half of each batch, eps from 0.01 to 0.1.

    python run.py --config configs/study_curriculum.py

On TFDS's CIFAR-10, JPEG copy: 52.0 % clean; 44.8 / 38.0 / 31.6 / 25.9 / 20.7 % under PGD-40 at eps
.01 / .02 / .03 / .04 / .05 on the full test split; 30 min of training (on a shared machine) and
7 min of evaluation on 2 cores of an AMD EPYC. See results/curriculum.md.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the defaults, which are the study's numbers, for "cifar10" or "digits"."""
    return default.get_config(data)
