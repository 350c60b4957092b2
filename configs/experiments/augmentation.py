"""Augmentation: BigNet under the study's curriculum, which it took for 60 epochs.

    python run.py --config configs/experiments/augmentation.py:flip

The argument is none, flip or flip_crop_jitter. Expected result and time (of 10 epochs): see
results/study/index.md.
"""

from ml_collections import ConfigDict

from configs.experiments import arms

AUGMENTATIONS = ("none", "flip", "flip_crop_jitter")


def get_config(augmentation: str = "flip") -> ConfigDict:
    """Returns the config with that augmentation."""
    changes = {name: {"data.augmentation": name, "train.num_epochs": 60} for name in AUGMENTATIONS}
    return arms.get_config(changes, augmentation)
