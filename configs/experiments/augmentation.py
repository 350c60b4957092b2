"""Augmentation: BigNet under the study's curriculum for 10 epochs; the study took 60.

    python run.py --config configs/experiments/augmentation.py:flip

The argument is none, flip or flip_crop_jitter. Expected results on CIFAR-10 (TFDS, images
JPEG-compressed, full test split): none 52.2 % clean and 32.2 % under PGD-40 at eps 0.03 (mean of
three seeds), flip 52.2 and 31.6 %, flip_crop_jitter 48.2 and 28.9 % (one seed each); 16 to 33 min
on 2 cores of an AMD EPYC. See results/study/index.md.
"""

from ml_collections import ConfigDict

from configs.experiments.variants import get_variant

VARIANTS = {name: {"data.augmentation": name} for name in ("none", "flip", "flip_crop_jitter")}


def get_config(augmentation: str = "flip") -> ConfigDict:
    """Return the training config with that augmentation."""
    return get_variant(VARIANTS, augmentation)
