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
    "Each under the study's curriculum; the narrow one for 2 epochs, which end at eps .055. With "
    "200 gradients the attack on RSE averages over 20 draws of its noise in each of 10 steps, "
    "and the plain models meet PGD-200; with one noise sample it is PGD-10 in steps of .008. The "
    "narrow one is judged on 500 images.",
    arms={
        "net": "net_curriculum",
        "wrn_7_1": "narrow_wrn",
        "wrn_7_1 with RSE": "narrow_wrn_rse",
        "wrn_13_10": "wrn",
        "wrn_13_10 with RSE": "wrn_rse",
    },
    study=slides.WRN_RSE,
    columns=shown.GRID | shown.NOISE,
    extra=shown.RUNNING,
    claims=[
        shown.more(
            "Judged as in training, by statistics of the batch, the narrow one seems more robust",
            ("wrn_7_1", "as there 0.03"),
            ("wrn_7_1", "running 0.03"),
            by="flaw 1",
        ),
        *(
            shown.more(
                f"RSE makes {model} more robust, {attack}",
                (f"{model} with RSE", attack),
                (model, attack),
                by=by,
            )
            for model, attack, by in (
                ("wrn_13_10", "one noise sample", "the study"),
                ("wrn_13_10", "200 gradients", "the study, without flaw 3"),
                ("wrn_7_1", "one noise sample", "ours"),
                ("wrn_7_1", "200 gradients", "ours"),
            )
        ),
    ],
)


def get_config(arm: str = "wrn") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
