"""Standard against curriculum adversarial training, as the study ran them: BigNet, 10 epochs.

    python run.py --config configs/experiments/adversary.py:standard

The argument is standard, eps .03 and 10 steps of .008, or curriculum, which ends at three times
that eps and has spent twice the gradients. For curricula at equal cost see curricula.py. Expected
result and time: see results/study/index.md.
"""

from ml_collections import ConfigDict

from configs import presets, slides, standard, study_curriculum
from configs.experiments import shown

ARMS = {"standard": standard.get_config, "curriculum": study_curriculum.get_config}

PAGE = shown.experiment(
    "Standard against curriculum training",
    "BigNet for 10 epochs, at a fixed eps of .03 or under the study's curriculum, which "
    "spends twice the gradients.",
    arms={"standard": "bignet_standard", "curriculum": "bignet_curriculum"},
    study={"curriculum": slides.MODEL_SIZE["bignet"]},
    claims=[
        shown.more(
            "The curriculum makes the model more robust",
            ("curriculum", "0.03"),
            ("standard", "0.03"),
        ),
        shown.more(
            "Curriculum training costs clean accuracy",
            ("standard", "clean"),
            ("curriculum", "clean"),
            by="ours",
        ),
    ],
)


def get_config(arm: str = "curriculum") -> ConfigDict:
    """Returns the config of that arm."""
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}: use one of {', '.join(ARMS)}")
    return presets.corrected(ARMS[arm]())
