"""ReLU against GELU: `net` under the study's curriculum.

    python run.py --config configs/experiments/activation.py:gelu

The argument is relu or gelu. Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import arms, shown

ARMS: dict[str, dict[str, Any]] = {
    "relu": {"model.name": "net"},  # its own
    "gelu": {"model.name": "net", "model.activation": "gelu"},
}

PAGE = shown.experiment(
    "ReLU against GELU",
    "`net` under the study's curriculum. The slides have no figures of it.",
    arms={"ReLU": "net_curriculum", "GELU": "net_gelu"},
    claims=[shown.more("GELU is better than ReLU", ("GELU", "0.03"), ("ReLU", "0.03"))],
)


def get_config(arm: str = "gelu") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
