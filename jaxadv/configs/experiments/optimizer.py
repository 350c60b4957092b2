"""SGD and AdamW: `net` under the study's curriculum.

    python run.py --config configs/experiments/optimizer.py:sgd

The argument is adamw, with weight decay 0.01, or sgd, with momentum 0.9; both have learning rate
0.001. Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three
seeds): adamw 42.4 % clean and 27.4 % under PGD-40 at eps 0.03, sgd 31.9 and 23.3 %; 10 to 15 min on
2 cores of an AMD EPYC. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs.experiments.variants import get_variant

VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"model.name": "net"},
    "sgd": {"model.name": "net", "optimizer.name": "sgd", "optimizer.weight_decay": 0.0},
}


def get_config(variant: str = "adamw") -> ConfigDict:
    """Return the training config of that optimizer."""
    return get_variant(VARIANTS, variant)
