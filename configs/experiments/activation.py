"""ReLU against GELU: `net` under the study's curriculum.

    python run.py --config configs/experiments/activation.py:gelu

The argument is relu or gelu. Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import arms

ARMS: dict[str, dict[str, Any]] = {
    "relu": {"model.name": "net"},  # its own
    "gelu": {"model.name": "net", "model.activation": "gelu"},
}


def get_config(arm: str = "gelu") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
