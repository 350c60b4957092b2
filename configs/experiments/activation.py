"""ReLU and GELU: `net` under the study's curriculum.

    python run.py --config configs/experiments/activation.py:gelu

The argument is relu or gelu. Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test
split, mean of three seeds): relu 42.9 % clean and 27.6 % under PGD-40 at eps 0.03, gelu 47.6 and
31.2 %; 13 to 17 min on 2 cores of an AMD EPYC. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments.variants import get_variant

VARIANTS: dict[str, dict[str, Any]] = {
    "relu": {"model.name": "net"},  # the default activation of `net`
    "gelu": {"model.name": "net", "model.activation": "gelu"},
}


def get_config(variant: str = "gelu") -> ConfigDict:
    """Return the training config of that activation."""
    return get_variant(VARIANTS, variant)
