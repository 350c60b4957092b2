"""What each key of a config may hold."""

from collections.abc import Mapping
from typing import Any

from jaxadv.attacks import ATTACKS
from jaxadv.attacks.arguments import COUNT, DECAY, POSITIVE, RADIUS, SHARE, STEPS, Rule
from jaxadv.attacks.gradient import PGD_LOSSES
from jaxadv.attacks.threat import THREATS
from jaxadv.crafting import NOISES
from jaxadv.data.augment import AUGMENTATIONS
from jaxadv.data.datasets import SOURCES
from jaxadv.optimizer import OPTIMIZERS, SCHEDULES
from jaxadv.sampling import LABELS, SAMPLERS
from jaxadv.types import UserError

Number = int | float

CLASSIFIER_RULES: dict[str, Rule] = {
    "seed": STEPS,
    "data.validation_fraction": Rule(lambda value: 0 < value < 1, "between 0 and 1"),
    "data.synthetic.share": SHARE,
    "data.synthetic.label_smoothing": SHARE,
    "train.trades_beta": RADIUS,
    "model.dropout": DECAY,
    "train.num_epochs": COUNT,
    "train.batch_size": COUNT,
    "train.ema_decay": DECAY,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.warmup_epochs": RADIUS,
    "optimizer.weight_decay": RADIUS,
    "optimizer.momentum": DECAY,
    "attack.fraction": SHARE,
    "attack.step_size": RADIUS,
    "attack.eps_start": RADIUS,
    "attack.eps_end": RADIUS,
    "attack.num_steps_start": STEPS,
    "attack.num_steps_end": STEPS,
    "validation.eps": RADIUS,
    "validation.step_size": RADIUS,
    "validation.num_steps": STEPS,
    "evaluation.batch_size": COUNT,
    "evaluation.num_examples": COUNT,
    "evaluation.certification.num_examples": STEPS,
    "evaluation.certification.num_selection": COUNT,
    "evaluation.certification.num_estimation": COUNT,
    "evaluation.certification.failure": Rule(lambda value: 0 < value < 1, "between 0 and 1"),
    "evaluation.num_passes": Rule(lambda value: value >= 2, "at least 2"),
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

# Of the keys of an attack that are not arguments of its function; those know their own rules.
ATTACK_CHOICES = {"attack": ATTACKS, "noise": NOISES}

_JUDGED = Rule(
    lambda value: isinstance(value, int) and value >= 10,
    "an integer, at least 10, without which nothing can be judged",
)

GAN_RULES: dict[str, Rule] = {
    "seed": STEPS,
    "data.validation_fraction": CLASSIFIER_RULES["data.validation_fraction"],
    "latent_size": COUNT,
    "generator.features": COUNT,
    "generator.num_blocks": COUNT,
    "discriminator.features": COUNT,
    "discriminator.num_blocks": Rule(
        lambda value: isinstance(value, int) and value >= 2,
        "an integer, at least 2",
    ),
    "train.num_steps": COUNT,
    "train.steps_per_round": COUNT,
    "train.batch_size": COUNT,
    "train.num_discriminator_steps": COUNT,
    "train.ema_decay": DECAY,
    "optimizer.generator_learning_rate": POSITIVE,
    "optimizer.discriminator_learning_rate": POSITIVE,
    "optimizer.beta1": DECAY,
    "optimizer.beta2": DECAY,
    "judge.num_samples": Rule(
        lambda value: isinstance(value, int) and value >= 80,
        "an integer, at least 80, which the pictures show",
    ),
    "sampling.num_images": _JUDGED,
    "sampling.ddls.step_size": POSITIVE,
    "sampling.ddls.num_steps": STEPS,
    "sampling.truncation": POSITIVE,
    "sampling.min_probability": DECAY,
    "sampling.batch_size": COUNT,
    "sampling.shard_size": COUNT,
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
