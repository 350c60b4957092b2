"""What the study tried without success: `net` under standard adversarial training.

    python run.py --config configs/experiments/other_defences.py:low_rank

The argument is none, spectral_norm, low_rank (625 principal components) or input_noise (sigma .1,
at test time alone). Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import standard
from configs.experiments import arms

ARMS: dict[str, dict[str, Any]] = {
    name: {"model.name": "net", "model.defence.name": name}
    for name in ("none", "spectral_norm", "low_rank", "input_noise")
}
ARMS["input_noise"]["model.defence.input_noise.train"] = False


def get_config(arm: str = "low_rank") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm, standard.get_config)
