"""Curricula and single-step training at equal cost.

    python run.py --config configs/experiments/curricula.py:short_ramp

Each training takes 60 gradient evaluations per training image and starts its attacks at a random
point. The argument is one of:

- fixed: eps 0.03, 10 steps on half of each batch, 10 epochs;
- short_ramp, long_ramp: the same with eps from 0.01 to 0.03 or to 0.1;
- fixed_all: eps 0.03, 11 steps on every image, 5 epochs;
- trades: eps 0.03, 10 steps on every image, 5 epochs; the update of TRADES takes two gradients;
- n_fgsm: eps 0.03, one step on every image, 30 epochs.

Expected results of `net` on CIFAR-10 (TFDS, images JPEG-compressed, full test split, mean of three
seeds), clean and under PGD-40 at eps 0.03: fixed 50.3 and 23.1 %, short_ramp 53.6 and 22.0 %,
long_ramp 46.5 and 28.0 %, fixed_all 38.6 and 25.2 % (two seeds, one did not train), trades 44.1
and 23.8 %, n_fgsm 44.0 and 28.0 %; 5 to 9 min on 2 cores of an AMD EPYC, or 4 to 6 min on one with
later code. See results/study/index.md.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs.experiments.variants import get_variant

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
VARIANTS: dict[str, dict[str, Any]] = {
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


def get_config(variant: str = "fixed") -> ConfigDict:
    """Return the config of that training."""
    return get_variant(VARIANTS, variant)
