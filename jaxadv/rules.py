"""What each key of a config may hold."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxadv.attacks import ATTACKS
from jaxadv.attacks.autoattack import VERSIONS
from jaxadv.attacks.expectation import AVERAGES
from jaxadv.attacks.finite_difference import DIRECTIONS
from jaxadv.attacks.gradient import PGD_LOSSES
from jaxadv.attacks.threat import THREATS
from jaxadv.crafting import NOISES
from jaxadv.data.augment import AUGMENTATIONS
from jaxadv.data.datasets import SOURCES
from jaxadv.losses import LOSSES
from jaxadv.optimizer import OPTIMIZERS, SCHEDULES
from jaxadv.sampling import LABELS, SAMPLERS
from jaxadv.types import UserError

Number = int | float
Rule = tuple[Callable[[Number], bool], str]

_COUNT: Rule = (lambda value: isinstance(value, int) and value >= 1, "an integer, at least 1")
_STEPS: Rule = (lambda value: isinstance(value, int) and value >= 0, "an integer, 0 or more")
RADIUS: Rule = (lambda value: 0 <= value < math.inf, "0 or more")
_POSITIVE: Rule = (lambda value: 0 < value < math.inf, "above 0")
_SHARE: Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
_DECAY: Rule = (lambda value: 0 <= value < 1, "from 0 to below 1")

CLASSIFIER_RULES: dict[str, Rule] = {
    "seed": _STEPS,
    "data.validation_fraction": (lambda value: 0 < value < 1, "between 0 and 1"),
    "data.synthetic.share": _SHARE,
    "data.synthetic.label_smoothing": _SHARE,
    "train.trades_beta": RADIUS,
    "model.dropout": _DECAY,
    "train.num_epochs": _COUNT,
    "train.batch_size": _COUNT,
    "train.ema_decay": _DECAY,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_epochs": RADIUS,
    "optimizer.weight_decay": RADIUS,
    "optimizer.momentum": _DECAY,
    "attack.fraction": _SHARE,
    "attack.step_size": RADIUS,
    "attack.eps_start": RADIUS,
    "attack.eps_end": RADIUS,
    "attack.num_steps_start": _STEPS,
    "attack.num_steps_end": _STEPS,
    "validation.eps": RADIUS,
    "validation.step_size": RADIUS,
    "validation.num_steps": _STEPS,
    "evaluation.batch_size": _COUNT,
    "evaluation.num_examples": _COUNT,
    "evaluation.certification.num_examples": _STEPS,
    "evaluation.certification.num_selection": _COUNT,
    "evaluation.certification.num_estimation": _COUNT,
    "evaluation.certification.failure": (lambda value: 0 < value < 1, "between 0 and 1"),
    "evaluation.num_passes": (lambda value: value >= 2, "at least 2"),
}

_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")

CLASSIFIER_CHOICES = {
    "data.name": SOURCES,
    "data.augmentation": AUGMENTATIONS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "attack.name": ("pgd", "n_fgsm"),
    "attack.norm": THREATS,
    "attack.loss": PGD_LOSSES,
    "train.loss": ("cross_entropy", "trades"),
    "train.precision": _PRECISIONS,
    "evaluation.precision": _PRECISIONS,
    "evaluation.split": ("test", "held_out"),
}

ATTACK_RULES: dict[str, Rule] = {
    "step_size": RADIUS,
    "num_steps": _STEPS,
    "num_restarts": _COUNT,
    "num_targets": _STEPS,
    "num_noise_samples": _COUNT,
    "noise_chunk_size": _COUNT,
    "num_queries": _STEPS,
    "samples_per_gradient": (
        lambda value: isinstance(value, int) and value >= 2 and value % 2 == 0,
        "even, at least 2",
    ),
    "chunk_size": _COUNT,
    "sigma": _POSITIVE,
    "momentum": _DECAY,
    "plateau_length": _STEPS,
    "min_step_size": RADIUS,
    "share": _SHARE,
    "label_samples": _COUNT,
    "label_radius": RADIUS,
}

ATTACK_CHOICES = {
    "attack": ATTACKS,
    "norm": THREATS,
    "loss": LOSSES,
    "noise": NOISES,
    "noise_average": AVERAGES,
    "directions": DIRECTIONS,
    "random_start": (True, False),
    "early_stop": (True, False),
    "version": VERSIONS,
}

_JUDGED: Rule = (
    lambda value: isinstance(value, int) and value >= 10,
    "an integer, at least 10, without which nothing can be judged",
)

GAN_RULES: dict[str, Rule] = {
    "seed": _STEPS,
    "data.validation_fraction": CLASSIFIER_RULES["data.validation_fraction"],
    "latent_size": _COUNT,
    "generator.features": _COUNT,
    "generator.num_blocks": _COUNT,
    "discriminator.features": _COUNT,
    "discriminator.num_blocks": (
        lambda value: isinstance(value, int) and value >= 2,
        "an integer, at least 2",
    ),
    "train.num_steps": _COUNT,
    "train.steps_per_round": _COUNT,
    "train.batch_size": _COUNT,
    "train.num_discriminator_steps": _COUNT,
    "train.ema_decay": _DECAY,
    "optimizer.generator_learning_rate": _POSITIVE,
    "optimizer.discriminator_learning_rate": _POSITIVE,
    "optimizer.beta1": _DECAY,
    "optimizer.beta2": _DECAY,
    "judge.num_samples": (
        lambda value: isinstance(value, int) and value >= 80,
        "an integer, at least 80, which the pictures show",
    ),
    "sampling.num_images": _JUDGED,
    "sampling.ddls.step_size": _POSITIVE,
    "sampling.ddls.num_steps": _STEPS,
    "sampling.truncation": _POSITIVE,
    "sampling.min_probability": _DECAY,
    "sampling.batch_size": _COUNT,
    "sampling.shard_size": _COUNT,
}

GAN_CHOICES = {
    "data.name": SOURCES,
    "data.augmentation": AUGMENTATIONS,
    "sampling.which": ("best", "last"),
    "sampling.sampler": SAMPLERS,
    "sampling.labels": LABELS,
    "sampling.format": ("shards", "npz"),
}


def check_values(
    values: Mapping[str, Any],
    rules: Mapping[str, Rule],
    choices: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Raises a UserError that names the first key whose value breaks its rule.

    A key that is not there, or is None, breaks none.
    """
    for key, rule in rules.items():
        if values.get(key) is not None:
            check_rule(prefix + key, values[key], rule)
    for key, options in choices.items():
        if key in values and values[key] not in options:
            raise UserError(
                f"config.{prefix}{key} is {values[key]!r}: it must be one of "
                f"{', '.join(map(str, options))}"
            )


def check_rule(key: str, value: Any, rule: Rule) -> None:
    """Raises a UserError that names the key if its value breaks the rule."""
    holds, words = rule
    if isinstance(value, bool) or not isinstance(value, Number) or not holds(value):
        raise UserError(f"config.{key} is {value!r}: it must be {words}")
