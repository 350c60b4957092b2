"""`net`, the wide ResNet, and the wide ResNet with RSE under the study's curriculum.

    python run.py --config configs/experiments/wide_resnet.py:wrn_rse

The argument is net, wrn or wrn_rse. `--config.model.name=wrn_7_1` is a model that a CPU can train.
Expected results: net as in optimizer.py:adamw; wrn and wrn_rse, for a GPU: not run. wrn_7_1 after 2
epochs of CIFAR-10 (TFDS, images JPEG-compressed) on 500 test images, one seed: 45.6 % clean and
28.4 % under PGD-40 at eps 0.03, 35 min on 2 cores of an AMD EPYC; with RSE 46.4 % clean and 27.8 %
under PGD-10 with gradients averaged over 20 noise samples, 46 min. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs.experiments.variants import get_variant

VARIANTS: dict[str, dict[str, Any]] = {
    "net": {"model.name": "net"},
    "wrn": {"model.name": "wrn_13_10"},
    "wrn_rse": {
        "model.name": "wrn_13_10",
        "model.defence.name": "rse",
        "model.defence.rse.before_norm": True,
    },
}


def get_config(variant: str = "wrn") -> ConfigDict:
    """Return the config of that training."""
    return get_variant(VARIANTS, variant)
