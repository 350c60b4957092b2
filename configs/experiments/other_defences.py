"""What the study tried without success: `net` under standard adversarial training.

    python run.py --config configs/experiments/other_defences.py:low_rank

The argument is none, spectral_norm, low_rank (625 principal components), low_rank_learned (as the
study had it) or input_noise (sigma .1, at test time alone). Expected result and time: see
results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import standard
from configs.experiments import arms, shown

ARMS: dict[str, dict[str, Any]] = {
    name: {"model.name": "net", "model.defence.name": name}
    for name in ("none", "spectral_norm", "low_rank", "input_noise")
}
ARMS["low_rank_learned"] = {**ARMS["low_rank"], "model.defence.low_rank.learned": True}
ARMS["input_noise"]["model.defence.input_noise.train"] = False

PAGE = shown.experiment(
    "What failed there",
    "`net` after standard adversarial training. The projection to 625 dimensions is learned, as "
    "there, or fixed to the principal components. Input noise is on at test time alone: "
    "its weights are those of the plain model of the same seed, with which it is compared. It is "
    "met by gradients averaged over 20 draws in 10 steps, the plain model by PGD-200. The slides "
    "have no figures of it.",
    columns=shown.GRID | shown.NOISE,
    arms={
        "plain": "net_standard",
        "spectral norm": "net_spectral_norm",
        "low rank, learned": "net_low_rank_learned",
        "low rank, PCA": "net_low_rank",
        "input noise": "net_input_noise",
    },
    claims=[
        shown.no_gain(
            f"{what} does not make the model more robust", (label, heading), ("plain", heading), by
        )
        for what, label, heading, by in (
            ("Spectral norm", "spectral norm", "0.03", "the study"),
            ("A learned low rank", "low rank, learned", "0.03", "the study"),
            ("A low rank by PCA", "low rank, PCA", "0.03", "ours"),
            ("Input noise", "input noise", "200 gradients", "the study"),
        )
    ],
)


def get_config(arm: str = "low_rank") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm, standard.get_config)
