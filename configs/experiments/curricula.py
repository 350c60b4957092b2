"""Curricula at equal cost, and what a practitioner would train with instead.

    python run.py --config configs/experiments/curricula.py:short_ramp

Every arm spends 60 gradient evaluations on each training image: half of each batch attacked with
10 steps for 10 epochs (`fixed`, at eps .03; `short_ramp`, from .01 to .03; `long_ramp`, to .1);
`trades` with 10 steps on every image for 5, `fixed_all` with 11, since the update of TRADES takes
two; `n_fgsm` with its single step for 30. All start from a random point. Expected result and time:
see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import arms, shown

_TEN_STEPS: dict[str, Any] = {
    "model.name": "net",
    "attack.random_start": True,
    "attack.num_steps_start": 10,
    "attack.num_steps_end": 10,
    "attack.eps_end": 0.03,
}
_ALL_IMAGES = {
    **_TEN_STEPS,
    "attack.eps_start": 0.03,
    "attack.fraction": 1.0,
    "train.num_epochs": 5,
}
ARMS: dict[str, dict[str, Any]] = {
    "fixed": {**_TEN_STEPS, "attack.eps_start": 0.03},
    "short_ramp": _TEN_STEPS,
    "long_ramp": {**_TEN_STEPS, "attack.eps_end": 0.1},
    "fixed_all": {**_ALL_IMAGES, "attack.num_steps_start": 11, "attack.num_steps_end": 11},
    "trades": {**_ALL_IMAGES, "attack.loss": "kl", "train.loss": "trades"},
    "n_fgsm": {
        **_ALL_IMAGES,
        "attack.name": "n_fgsm",
        "attack.num_steps_start": 1,
        "attack.num_steps_end": 1,
        "attack.step_size": 0.03,
        "train.num_epochs": 30,
    },
}

PAGE = shown.experiment(
    "Curricula at equal cost",
    "`net`, 60 gradient evaluations for each training image in every arm, all from a random start: "
    "10 steps on half of each batch for 10 epochs; 11 on all of it for 5 (“all”; TRADES 10, since "
    "its update takes two); or one on all of it for 30 (N-FGSM, which so takes three times the "
    "steps of AdamW of the ramps, and six times those of “all”). The long ramp leads to eps .1, "
    "three times the eps that is judged (flaw 6); its last epoch has .091.",
    arms={
        "fixed .03": "net_fixed",
        "fixed .03, last": "net_fixed:last",
        "ramp to .03": "net_short_ramp",
        "ramp to .1, best": "net_long_ramp",
        "ramp to .1, last": "net_long_ramp:last",
        "fixed .03, all": "net_fixed_all",
        "TRADES": "net_trades",
        "N-FGSM": "net_n_fgsm",
    },
    claims=[
        shown.more(
            "A ramp to .03 is better than a fixed eps of .03",
            ("ramp to .03", "0.03"),
            ("fixed .03", "0.03"),
            by="ours",
        ),
        shown.more(
            "A ramp to .1 is better at .03 than a fixed eps of .03, last checkpoints",
            ("ramp to .1, last", "0.03"),
            ("fixed .03, last", "0.03"),
            by="the study, at equal cost",
        ),
        shown.more(
            "A ramp to .1 costs clean accuracy, last checkpoints",
            ("fixed .03, last", "clean"),
            ("ramp to .1, last", "clean"),
            by="ours",
        ),
        shown.more(
            "The best checkpoint of the long ramp is better than its last",
            ("ramp to .1, best", "0.03"),
            ("ramp to .1, last", "0.03"),
            by="ours",
        ),
        shown.more(
            "All images for 5 epochs are better than half of them for 10, at a fixed eps",
            ("fixed .03, all", "0.03"),
            ("fixed .03", "0.03"),
            by="ours",
        ),
        *(
            shown.more(
                f"{label} is better than a fixed eps{on}",
                (label, "0.03"),
                (fixed, "0.03"),
                by="ours",
            )
            for label in ("TRADES", "N-FGSM")
            for on, fixed in (("", "fixed .03"), (" on all images", "fixed .03, all"))
        ),
        *(
            shown.more(
                f"{label} costs clean accuracy, against a fixed eps",
                ("fixed .03", "clean"),
                (label, "clean"),
                by="ours",
            )
            for label in ("TRADES", "N-FGSM")
        ),
    ],
)


def get_config(arm: str = "fixed") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
