"""`net`, the wide ResNet, and the wide ResNet with RSE, each under the study's curriculum.

    python run.py --config configs/experiments/wide_resnet.py:wrn_rse

The argument is net, wrn or wrn_rse; `--config.model.name=wrn_7_1` is one that a CPU can train.
Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import slides
from configs.experiments import arms, shown

ARMS: dict[str, dict[str, Any]] = {
    "net": {"model.name": "net"},
    "wrn": {"model.name": "wrn_13_10"},
    "wrn_rse": {
        "model.name": "wrn_13_10",
        "model.defence.name": "rse",
        "model.defence.rse.before_norm": True,
    },
}

PAGE = shown.experiment(
    "Wide ResNet and RSE",
    "Each under the study's curriculum; the narrow one for 2 epochs, at scale cpu.",
    arms={
        "net": "net_curriculum",
        "wrn_7_1": "narrow_wrn",
        "wrn_7_1 with RSE": "narrow_wrn_rse",
        "wrn_13_10": "wrn",
        "wrn_13_10 with RSE": "wrn_rse",
    },
    study=slides.WRN_RSE,
    columns=shown.GRID | {"0.03": ("pgd40/0.03", "eot20/0.03")},
    extra={"as in training, .03": ("study:training_mode/0.03",)},
    claims=[
        shown.more(
            "Judged as in training, by statistics of the batch, the narrow one seems more robust",
            ("wrn_7_1", "as in training, .03"),
            ("wrn_7_1", "as there 0.03"),
            by="flaw 1",
        ),
        shown.more(
            "RSE makes the wide ResNet more robust",
            ("wrn_13_10 with RSE", "0.03"),
            ("wrn_13_10", "0.03"),
        ),
        shown.more(
            "RSE makes the narrow one more robust",
            ("wrn_7_1 with RSE", "0.03"),
            ("wrn_7_1", "0.03"),
            by="ours",
        ),
    ],
)


def get_config(arm: str = "wrn") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
