"""`net`, the wide ResNet, and the wide ResNet with RSE, each under the study's curriculum.

    python run.py --config configs/experiments/wide_resnet.py:wrn_rse

The argument is net, wrn or wrn_rse; `--config.model.name=wrn_7_1` is one that a CPU can train.
Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import arms

ARMS: dict[str, dict[str, Any]] = {
    "net": {"model.name": "net"},
    "wrn": {"model.name": "wrn_13_10"},
    "wrn_rse": {
        "model.name": "wrn_13_10",
        "model.defence.name": "rse",
        "model.defence.rse.before_norm": True,
    },
}


def get_config(arm: str = "wrn") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
