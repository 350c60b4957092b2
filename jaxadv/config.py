"""Validation of configs: the values that each key may have, checked before a job starts.

What depends on the data set is checked once it is loaded: `jaxadv/evaluation/dataset_checks.py`.

A new key gets its default in `configs/default.py` (or `evaluate.py`, `gan.py`, `study.py` there)
and its rule here: a range in `CLASSIFIER_RULES` or `GAN_RULES`, or names in `CLASSIFIER_CHOICES`
or `GAN_CHOICES`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxadv.attacks.checks import COUNT, DECAY, POSITIVE, RADIUS, SHARE, STEPS, Rule
from jaxadv.attacks.pgd import PGD_LOSSES
from jaxadv.attacks.threat import NORMS
from jaxadv.core.types import UserError
from jaxadv.data.augment import AUGMENTATIONS, default_augmentation
from jaxadv.data.sources import parse_source
from jaxadv.evaluation.attack_suites import check_attack, check_suite, expand_suite
from jaxadv.gan.sampling import LABELS, SAMPLERS
from jaxadv.models.classifier import check_certifiable, check_model_config
from jaxadv.runs.workdir import flatten
from jaxadv.training.losses import LOSSES
from jaxadv.training.optimizer import OPTIMIZERS, SCHEDULES
from jaxadv.training.setup import TRAINING_ATTACKS

Number = int | float

_DATA_RULES = {
    "data.validation_fraction": Rule(lambda value: 0 < value < 1, "between 0 and 1"),
    "data.test_fraction": Rule(lambda value: 0 < value < 1, "between 0 and 1"),
    "data.size": COUNT,
}
_DATA_CHOICES = {
    "data.augmentation": (None, *AUGMENTATIONS),
    "data.channels": (None, 1, 3),
    "data.streaming": (None, True, False),
}

CLASSIFIER_RULES: dict[str, Rule] = {
    "seed": STEPS,
    **_DATA_RULES,
    "data.synthetic.share": SHARE,
    "data.synthetic.label_smoothing": SHARE,
    "train.label_smoothing": SHARE,
    "train.cutmix": SHARE,
    "train.trades_beta": RADIUS,
    "train.mart_weight": RADIUS,
    "train.ikl_alpha": RADIUS,
    "train.ikl_beta": RADIUS,
    "train.awp_gamma": RADIUS,
    "train.gradient_alignment": RADIUS,
    "train.swa_start": RADIUS,
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
    **_DATA_CHOICES,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "attack.name": TRAINING_ATTACKS,
    "attack.norm": NORMS,
    "attack.loss": PGD_LOSSES,
    "train.loss": LOSSES,
    "optimizer.nesterov": (True, False),
    "train.precision": _PRECISIONS,
    "evaluation.precision": _PRECISIONS,
    "evaluation.split": ("test", "held_out"),
}

_NUM_IMAGES = Rule(
    lambda value: isinstance(value, int) and value >= 10,
    "an integer, at least 10: fewer samples cannot be evaluated",
)

GAN_RULES: dict[str, Rule] = {
    "seed": STEPS,
    **_DATA_RULES,
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
    "evaluator.num_samples": _NUM_IMAGES,
    "sampling.num_images": _NUM_IMAGES,
    "sampling.ddls.step_size": POSITIVE,
    "sampling.ddls.num_steps": STEPS,
    "sampling.truncation": POSITIVE,
    "sampling.min_probability": DECAY,
    "sampling.batch_size": COUNT,
    "sampling.shard_size": COUNT,
}

GAN_CHOICES = {
    **_DATA_CHOICES,
    "sampling.which": ("best", "last"),
    "sampling.sampler": SAMPLERS,
    "sampling.labels": LABELS,
    "sampling.format": ("shards", "npz"),
}


def set_defaults(config: ConfigDict) -> list[str]:
    """Set the values that follow from other keys, in place: the augmentation from the data set.

    Returns:
      A line for each value, to be printed.
    """
    if config.mode not in ("train", "gan") or config.data.augmentation is not None:
        return []
    chosen = default_augmentation(config.data.source)
    config.data.augmentation = chosen
    others = " or ".join(name for name in AUGMENTATIONS if name != chosen)
    return [
        f"config.data.augmentation is {chosen!r}, the default of {config.data.source}; it can be "
        f"set to {others}"
    ]


def check(config: ConfigDict, num_devices: int) -> None:
    """Check a config of any mode; a study checks the configs of its runs before each.

    Raises:
      UserError: names the first key whose value is not allowed, and the values that are.
    """
    if config.mode in ("gan", "sample"):
        _check_gan(config, num_devices)
    elif config.mode in ("train", "evaluate"):
        _check_classifier(config, num_devices)


def _check_classifier(config: ConfigDict, num_devices: int) -> None:
    check_values(flatten(config), CLASSIFIER_RULES, CLASSIFIER_CHOICES)
    if config.data.get("source") is not None:  # in an evaluation None: as in the training
        parse_source(config.data.source)
    if "model" in config:
        _check_model(config.model, config.evaluation)
        _check_training(config, num_devices)
    check_suite(expand_suite(config.evaluation.attacks), num_classes=None)
    for name in config.evaluation.export:
        if name not in config.evaluation.attacks:
            raise UserError(
                f"config.evaluation.export names {name!r}, which is not an attack of this suite: "
                f"{', '.join(config.evaluation.attacks)}"
            )
    for radius in config.evaluation.certification.radii:
        check_rule("evaluation.certification.radii", radius, RADIUS)
    for key in ("train.batch_size", "evaluation.batch_size"):
        _check_divisible(key, flatten(config).get(key, num_devices), num_devices)


def _check_gan(config: ConfigDict, num_devices: int) -> None:
    check_values(flatten(config), GAN_RULES, GAN_CHOICES)
    parse_source(config.data.source)
    for key in ("train.batch_size", "sampling.batch_size"):
        _check_divisible(key, flatten(config)[key], num_devices)
    try:
        _check_classifier(config.evaluator.classifier, num_devices)
    except UserError as error:
        raise UserError(f"config.evaluator.classifier: {error}") from None


def _check_model(model: ConfigDict, evaluation: ConfigDict) -> None:
    classifier = check_model_config(model)
    if evaluation.certification.num_examples:
        check_certifiable(classifier)


def _check_training(config: ConfigDict, num_devices: int) -> None:
    """Check combinations of keys."""
    synthetic, attack = config.data.synthetic, config.attack
    if synthetic.share > 0 and not synthetic.path:
        raise UserError(
            f"config.data.synthetic.share is {synthetic.share}, but config.data.synthetic.path is "
            "not set: give a folder of samples or an .npz file"
        )
    batch_size = config.train.batch_size
    num_synthetic = round(synthetic.share * batch_size)
    if synthetic.share > 0 and (num_synthetic % num_devices or not num_synthetic):
        fitting = max(num_synthetic // num_devices, 1) * num_devices / batch_size
        raise UserError(
            f"config.data.synthetic.share is {synthetic.share}, {num_synthetic} images per batch, "
            f"which is not divisible by the {num_devices} devices: use {fitting:.4g}"
        )
    _check_method(config, num_devices)
    if attack.name == "n_fgsm":
        for key, value in {
            "num_steps_start": 1, "num_steps_end": 1, "norm": "linf", "random_start": True,
        }.items():  # fmt: skip
            if attack[key] != value:
                raise UserError(f"config.attack.name n_fgsm needs config.attack.{key}={value}")
        if attack.loss == "kl":
            raise UserError("config.attack.name n_fgsm does not support config.attack.loss kl")
    if attack.fraction > 0:
        choices = {key: attack[key] for key in ("norm", "loss", "random_start")}
        check_attack("config.attack", "pgd", choices, num_classes=None)
    validation = {**config.validation, "norm": attack.norm, "random_start": False}
    check_attack("config.validation", "pgd", validation, num_classes=None)


def _check_method(config: ConfigDict, num_devices: int) -> None:
    """Check the loss, the regulariser, the average of the weights and CutMix."""
    train, attack = config.train, config.attack
    fraction = f"but config.attack.fraction is {attack.fraction}"
    if train.loss in ("trades", "ikl") and not attack.fraction:
        raise UserError(
            f"config.train.loss {train.loss} needs adversarial images, {fraction}: set it above 0"
        )
    if train.loss == "mart":
        if attack.fraction < 1:
            raise UserError(
                f"config.train.loss mart needs an attack on all images, {fraction}: set it to 1.0"
            )
        for key in ("train.cutmix", "train.label_smoothing", "data.synthetic.label_smoothing"):
            if value := flatten(config)[key]:
                raise UserError(
                    f"config.train.loss mart does not support soft labels, but config.{key} is "
                    f"{value}: set it to 0.0"
                )
    if train.gradient_alignment and not (attack.fraction and attack.norm == "linf"):
        raise UserError(
            "config.train.gradient_alignment needs an L-inf attack, but config.attack.norm is "
            f"{attack.norm} and config.attack.fraction {attack.fraction}: change them, or set it "
            "to 0.0"
        )
    if train.swa_start is not None:
        if train.ema_decay:
            raise UserError(
                f"config.train.swa_start is {train.swa_start} and config.train.ema_decay "
                f"{train.ema_decay}, but a run has one average of the weights: set "
                "config.train.ema_decay=0.0"
            )
        if train.swa_start >= train.num_epochs:
            raise UserError(
                f"config.train.swa_start is {train.swa_start}: it must be below "
                f"config.train.num_epochs, {train.num_epochs}"
            )
    if config.optimizer.nesterov and config.optimizer.name != "sgd":
        raise UserError(
            f"config.optimizer.nesterov is an option of sgd, but config.optimizer.name is "
            f"{config.optimizer.name}: set it to sgd"
        )
    size = train.batch_size
    if train.cutmix and size % (2 * num_devices) and not size % num_devices:
        raise UserError(
            f"config.train.cutmix mixes pairs of images, but each of the {num_devices} devices has "
            f"{size // num_devices} of a batch: use config.train.batch_size="
            f"{size - size % (2 * num_devices) or 2 * num_devices}"
        )


def _check_divisible(key: str, batch_size: int, num_devices: int) -> None:
    if batch_size % num_devices:
        raise UserError(
            f"config.{key} is {batch_size}, not divisible by the {num_devices} devices: "
            f"use {batch_size // num_devices * num_devices or num_devices}"
        )


def check_values(
    values: Mapping[str, Any],
    rules: Mapping[str, Rule],
    choices: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Check values by their rules; keys that are missing or None are skipped.

    Raises:
      UserError: names the first key whose value is not allowed.
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
    """Check one value.

    Raises:
      UserError: names the key.
    """
    is_valid, words = rule
    if isinstance(value, bool) or not isinstance(value, Number) or not is_valid(value):
        raise UserError(f"config.{key} is {value!r}: it must be {words}")
