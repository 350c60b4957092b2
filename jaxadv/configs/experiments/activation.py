"""ReLU and GELU: `net` under the study's curriculum, BigNet and BiggerNet after natural training.

    python run.py --config configs/experiments/activation.py:gelu
    python run.py --config configs/experiments/activation.py:biggernet_gelu

The argument is one of:

- relu, gelu: `net` under the study's curriculum;
- bignet_relu, bignet_gelu, biggernet_relu, biggernet_gelu: natural training for 10 epochs. The
  study's BigNet has GELU in its dense layers, its BiggerNet in all layers.

Expected results on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three seeds):
relu 42.4 % clean and 27.4 % under PGD-40 at eps 0.03, gelu 47.6 and 31.1 %; 13 to 17 min on 2 cores
of an AMD EPYC. After natural training, one or two seeds: bignet_relu 63.9 % clean, bignet_gelu
65.8, biggernet_relu 67.8, biggernet_gelu 69.1; 20 to 80 min on one core beside other jobs, most of
it for PGD-40. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs import natural
from jaxadv.configs.experiments.variants import get_variant

CURRICULUM: dict[str, dict[str, Any]] = {
    "relu": {"model.name": "net"},  # the default activation of `net`
    "gelu": {"model.name": "net", "model.activation": "gelu"},
}
NATURAL: dict[str, dict[str, Any]] = {
    "bignet_relu": {"model.name": "bignet", "model.activation": "relu"},
    "bignet_gelu": {"model.name": "bignet"},  # the activations of the study's models
    "biggernet_relu": {"model.name": "biggernet", "model.activation": "relu"},
    "biggernet_gelu": {"model.name": "biggernet"},
}


def get_config(variant: str = "gelu") -> ConfigDict:
    """Return the training config of that model and activation."""
    if variant in NATURAL:
        return get_variant(NATURAL, variant, natural.get_config)
    return get_variant(CURRICULUM, variant)
