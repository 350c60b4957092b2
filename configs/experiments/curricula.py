"""Curricula at equal cost, and what a practitioner would train with instead.

    python run.py --config configs/experiments/curricula.py:short_ramp

Every arm spends 60 gradient evaluations on each training image: half of each batch attacked with
10 steps for 10 epochs (`fixed`, at eps .03; `short_ramp`, from .01 to .03; `long_ramp`, to .1);
`trades` with 10 steps on every image for 5; `n_fgsm` with its single step for 30. All start from a
random point.
Expected result and time: see results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import arms

_TEN_STEPS: dict[str, Any] = {
    "model.name": "net",
    "attack.random_start": True,
    "attack.num_steps_start": 10,
    "attack.num_steps_end": 10,
    "attack.eps_end": 0.03,
}
ARMS: dict[str, dict[str, Any]] = {
    "fixed": {**_TEN_STEPS, "attack.eps_start": 0.03},
    "short_ramp": _TEN_STEPS,
    "long_ramp": {**_TEN_STEPS, "attack.eps_end": 0.1},
    "trades": {
        **_TEN_STEPS,
        "attack.eps_start": 0.03,
        "attack.fraction": 1.0,
        "attack.loss": "kl",
        "train.loss": "trades",
        "train.num_epochs": 5,
    },
    "n_fgsm": {
        **_TEN_STEPS,
        "attack.name": "n_fgsm",
        "attack.fraction": 1.0,
        "attack.num_steps_start": 1,
        "attack.num_steps_end": 1,
        "attack.eps_start": 0.03,
        "attack.step_size": 0.03,
        "train.num_epochs": 30,
    },
}


def get_config(arm: str = "fixed") -> ConfigDict:
    """Returns the config of that arm."""
    return arms.get_config(ARMS, arm)
