"""Augmentation: BigNet under the study's curriculum, for 10 epochs; the study took 60.

    python run.py --config configs/experiments/augmentation.py:flip

The argument is none, flip or flip_crop_jitter. Expected result and time: see
results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import slides
from configs.experiments import arms, shown

AUGMENTATIONS = ("none", "flip", "flip_crop_jitter")

PAGE = shown.experiment(
    "Augmentation",
    "BigNet under the study's curriculum, for 10 epochs; there for 60, and judged with steps of "
    ".02.",
    arms={
        "none": "bignet_curriculum",
        "flip": "bignet_flip",
        "flip, crop, jitter": "bignet_flip_crop_jitter",
    },
    study=slides.AUGMENTATION,
    as_there=shown.AS_THERE_COARSE,
    claims=[
        shown.more(
            "A horizontal flip helps (10 epochs here, 60 there)", ("flip", "0.03"), ("none", "0.03")
        ),
        shown.more(
            "Crop and jitter on top of a flip are worse than a flip (10 epochs here, 60 there)",
            ("flip", "0.03"),
            ("flip, crop, jitter", "0.03"),
        ),
    ],
)


def get_config(augmentation: str = "flip") -> ConfigDict:
    """Returns the config with that augmentation."""
    changes = {name: {"data.augmentation": name} for name in AUGMENTATIONS}
    return arms.get_config(changes, augmentation)
