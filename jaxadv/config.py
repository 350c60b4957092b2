"""What a config may hold, and the config that a workdir remembers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxadv.attacks import ATTACKS
from jaxadv.attacks.autoattack import VERSIONS
from jaxadv.attacks.expectation import AVERAGES
from jaxadv.attacks.finite_difference import DIRECTIONS
from jaxadv.attacks.gradient import PGD_LOSSES
from jaxadv.attacks.threat import THREATS
from jaxadv.classifier import check_certifiable, make_classifier
from jaxadv.crafting import NOISES, expand
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
_RADIUS: Rule = (lambda value: 0 <= value < math.inf, "0 or more")
_POSITIVE: Rule = (lambda value: 0 < value < math.inf, "above 0")
_SHARE: Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
_DECAY: Rule = (lambda value: 0 <= value < 1, "from 0 to below 1")

_RULES: dict[str, Rule] = {
    "seed": _STEPS,
    "data.validation_fraction": (lambda value: 0 < value < 1, "between 0 and 1"),
    "data.synthetic.share": _SHARE,
    "data.synthetic.label_smoothing": _SHARE,
    "train.trades_beta": _RADIUS,
    "model.dropout": _DECAY,
    "train.num_epochs": _COUNT,
    "train.batch_size": _COUNT,
    "train.ema_decay": _DECAY,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_epochs": _RADIUS,
    "optimizer.weight_decay": _RADIUS,
    "optimizer.momentum": _DECAY,
    "attack.fraction": _SHARE,
    "attack.step_size": _RADIUS,
    "attack.eps_start": _RADIUS,
    "attack.eps_end": _RADIUS,
    "attack.num_steps_start": _STEPS,
    "attack.num_steps_end": _STEPS,
    "validation.eps": _RADIUS,
    "validation.step_size": _RADIUS,
    "validation.num_steps": _STEPS,
    "evaluation.batch_size": _COUNT,
    "evaluation.num_examples": _COUNT,
    "evaluation.certification.num_examples": _STEPS,
    "evaluation.certification.num_selection": _COUNT,
    "evaluation.certification.num_estimation": _COUNT,
    "evaluation.certification.failure": (lambda value: 0 < value < 1, "between 0 and 1"),
    "evaluation.num_passes": (lambda value: value >= 2, "at least 2"),
}

_CHOICES = {
    "data.name": SOURCES,
    "data.augmentation": AUGMENTATIONS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "attack.norm": THREATS,
    "attack.loss": PGD_LOSSES,
    "train.loss": ("cross_entropy", "trades"),
}

_ATTACK_RULES: dict[str, Rule] = {
    "step_size": _RADIUS,
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
    "min_step_size": _RADIUS,
    "share": _SHARE,
    "label_samples": _COUNT,
    "label_radius": _RADIUS,
}

_ATTACK_CHOICES = {
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

_GAN_RULES: dict[str, Rule] = {
    "seed": _STEPS,
    "data.validation_fraction": _RULES["data.validation_fraction"],
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
    "sampling.num_images": _COUNT,
    "sampling.ddls.step_size": _POSITIVE,
    "sampling.ddls.num_steps": _STEPS,
    "sampling.truncation": _POSITIVE,
    "sampling.min_probability": _DECAY,
    "sampling.batch_size": _COUNT,
    "sampling.shard_size": _COUNT,
}

_GAN_CHOICES = {
    "data.name": SOURCES,
    "data.augmentation": AUGMENTATIONS,
    "sampling.which": ("best", "last"),
    "sampling.sampler": SAMPLERS,
    "sampling.labels": LABELS,
    "sampling.format": ("shards", "npz"),
}

# Where files lie, which another machine may change without changing the experiment.
_LOCATIONS = ("data.data_dir",)


def check(config: ConfigDict, num_devices: int) -> None:
    """Raises a UserError that names the first key whose value cannot be meant."""
    _check_values(_flatten(config), _RULES, _CHOICES)
    if "model" in config:
        check_model(config.model, config.evaluation)
        _check_training(config, num_devices)
    for name, attack in config.evaluation.attacks.items():
        _check_attack(f"evaluation.attacks.{name}", attack)
    expand(config.evaluation.attacks)
    for name in config.evaluation.export:
        if name not in config.evaluation.attacks:
            raise UserError(
                f"config.evaluation.export names {name!r}: the attacks are "
                f"{', '.join(config.evaluation.attacks)}"
            )
    for radius in config.evaluation.certification.radii:
        _check_rule("evaluation.certification.radii", radius, _RADIUS)
    for key in ("train.batch_size", "evaluation.batch_size"):
        _check_divisible(key, _flatten(config).get(key, num_devices), num_devices)


def check_gan(config: ConfigDict, num_devices: int) -> None:
    """Raises a UserError that names the first key of configs/gan.py whose value cannot be meant."""
    _check_values(_flatten(config), _GAN_RULES, _GAN_CHOICES)
    for key in ("train.batch_size", "sampling.batch_size"):
        _check_divisible(key, _flatten(config)[key], num_devices)
    try:
        check(config.judge.classifier, num_devices)
    except UserError as error:
        raise UserError(f"config.judge.classifier: {error}") from None


def check_model(model: ConfigDict, evaluation: ConfigDict) -> None:
    """Raises a UserError for a model that cannot be made, or not be evaluated as asked."""
    classifier = make_classifier(model, num_classes=10)
    if evaluation.certification.num_examples:
        check_certifiable(classifier)


def _check_training(config: ConfigDict, num_devices: int) -> None:
    """Raises a UserError for keys of a training config that do not go together."""
    synthetic, attack = config.data.synthetic, config.attack
    if synthetic.share > 0 and not synthetic.path:
        raise UserError(
            f"config.data.synthetic.share is {synthetic.share}, but config.data.synthetic.path is "
            "not set: name a folder of samples or an .npz"
        )
    batch_size = config.train.batch_size
    num_synthetic = round(synthetic.share * batch_size)
    if synthetic.share > 0 and (num_synthetic % num_devices or not num_synthetic):
        fitting = max(num_synthetic // num_devices, 1) * num_devices / batch_size
        raise UserError(
            f"config.data.synthetic.share is {synthetic.share}, {num_synthetic} images of a batch, "
            f"which do not divide by the {num_devices} devices: take {fitting:.4g}"
        )
    if config.train.loss == "trades" and not attack.fraction:
        raise UserError("config.train.loss trades needs config.attack.fraction above 0")
    if attack.loss == "kl" and attack.fraction > 0 and not attack.random_start:
        raise UserError("config.attack.loss kl needs config.attack.random_start=True")


def _check_divisible(key: str, batch_size: int, num_devices: int) -> None:
    if batch_size % num_devices:
        raise UserError(
            f"config.{key} is {batch_size}, not divisible by the {num_devices} devices: "
            f"take {batch_size // num_devices * num_devices or num_devices}"
        )


def _check_attack(name: str, attack: ConfigDict) -> None:
    for key in ("attack", "eps"):
        if key not in attack:
            raise UserError(f"config.{name} lacks {key}")
    _check_values(dict(attack), _ATTACK_RULES, _ATTACK_CHOICES, f"{name}.")
    if not isinstance(attack.eps, tuple | list) or not attack.eps:
        raise UserError(f"config.{name}.eps is {attack.eps}: it must be a tuple of radii")
    for eps in attack.eps:
        _check_rule(f"{name}.eps", eps, _RADIUS)


def _check_values(values: dict, rules: dict, choices: dict, prefix: str = "") -> None:
    for key, rule in rules.items():
        if values.get(key) is not None:
            _check_rule(prefix + key, values[key], rule)
    for key, options in choices.items():
        if key in values and values[key] not in options:
            raise UserError(
                f"config.{prefix}{key} is {values[key]!r}: it must be one of "
                f"{', '.join(map(str, options))}"
            )


def _check_rule(key: str, value: Any, rule: Rule) -> None:
    holds, words = rule
    if isinstance(value, bool) or not isinstance(value, Number) or not holds(value):
        raise UserError(f"config.{key} is {value!r}: it must be {words}")


def read(workdir: Path, mode: str | None = None) -> ConfigDict:
    """Returns the config that a run left in its workdir.

    Args:
      workdir: of the run.
      mode: that it must have been of; None: any.

    Raises:
      UserError: there is none, it cannot be read, or it is of another mode.
    """
    path = workdir / "config.json"
    try:
        stored = ConfigDict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if mode not in (None, stored.get("mode")):
        raise UserError(f"{workdir} holds a run of mode {stored.get('mode')}, not of mode {mode}")
    return stored


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir this config's own, or finds that it is already.

    Raises:
      UserError: it belongs to another config, or cannot be written.
    """
    if (workdir / "config.json").exists():
        different = _differences(read(workdir), config)
        if different:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(different)}): "
                "give another --workdir, or the config it was started with"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial = workdir / "config.json.partial"
        partial.write_text(config.to_json(indent=2) + "\n")
        partial.replace(workdir / "config.json")
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written ({error.strerror})") from None


def _differences(stored: ConfigDict, asked: ConfigDict) -> list[str]:
    old = _flatten(stored)
    new = _flatten(ConfigDict(json.loads(asked.to_json())))
    return [
        f"config.{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if key not in _LOCATIONS and old.get(key) != new.get(key)
    ]


def _flatten(config: ConfigDict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
