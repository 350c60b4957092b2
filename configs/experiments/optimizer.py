"""SGD against AdamW: `net` under the study's curriculum.

    python run.py --config configs/experiments/optimizer.py:sgd

The argument is adamw, learning rate .001 and weight decay .01, or sgd, .001 with momentum .9.
Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import arms, shown

ARMS: dict[str, dict[str, Any]] = {
    "adamw": {"model.name": "net"},
    "sgd": {"model.name": "net", "optimizer.name": "sgd", "optimizer.weight_decay": 0.0},
}

PAGE = shown.experiment(
    "SGD against AdamW",
    "`net` under the study's curriculum: AdamW with weight decay .01 or SGD with momentum .9, both "
    "at a learning rate of .001, which was tuned for neither. The slides have no figures of it.",
    arms={"AdamW": "net_curriculum", "SGD": "net_sgd"},
    claims=[
        shown.more(
            "AdamW trains better than SGD (at one learning rate)",
            ("AdamW", "0.03"),
            ("SGD", "0.03"),
        )
    ],
)


def get_config(arm: str = "adamw") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
