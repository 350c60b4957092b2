"""The linear curriculum as the study ran it: half of each batch, eps from 0.01 to 0.1.

    python run.py --config configs/study_curriculum.py

STUDY_RESULT
"""

from ml_collections import ConfigDict

from configs import default


def get_config(data: str = "cifar10") -> ConfigDict:
    """Returns the defaults, which are the study's numbers, for "cifar10" or "digits"."""
    return default.get_config(data)
