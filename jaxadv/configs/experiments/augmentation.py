"""Augmentation: BigNet and BiggerNet under the study's curriculum for 10 epochs.

    python run.py --config configs/experiments/augmentation.py:flip
    python run.py --config configs/experiments/augmentation.py:biggernet_flip

The study trained BiggerNet for 60 epochs. The argument is none, flip or flip_crop_jitter for
BigNet, and biggernet_none, biggernet_flip or biggernet_flip_crop_jitter for BiggerNet. Expected
results on CIFAR-10 (TFDS, images JPEG-compressed, full test split): none 52.1 % clean and 32.2 %
under PGD-40 at eps 0.03 (mean of three seeds), flip 52.2 and 31.6 %, flip_crop_jitter 48.2 and
28.9 % (one seed each); 16 to 33 min on 2 cores of an AMD EPYC. biggernet_none 55.6 and 31.8 %,
biggernet_flip 55.6 and 32.6 %, biggernet_flip_crop_jitter 50.1 and 28.6 % (one seed each); 80 to
95 min on one core, beside other jobs. See results/study/index.md.
"""

from ml_collections import ConfigDict

from jaxadv.configs.experiments.variants import get_variant

_AUGMENTATIONS = ("none", "flip", "flip_crop_jitter")
VARIANTS = {name: {"data.augmentation": name} for name in _AUGMENTATIONS} | {
    f"biggernet_{name}": {"model.name": "biggernet", "data.augmentation": name}
    for name in _AUGMENTATIONS
}


def get_config(variant: str = "flip") -> ConfigDict:
    """Return the training config with that model and augmentation."""
    return get_variant(VARIANTS, variant)
