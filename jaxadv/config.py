"""What a config may hold, and the config that a workdir remembers."""

import errno
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from jaxadv.attacks.arguments import RADIUS
from jaxadv.classifier import check_certifiable, make_classifier
from jaxadv.crafting import check_attack, check_attacks, expand
from jaxadv.files import user_path, written_whole
from jaxadv.processes import from_first, is_first
from jaxadv.rules import (
    ATTACK_CHOICES,
    CLASSIFIER_CHOICES,
    CLASSIFIER_RULES,
    GAN_CHOICES,
    GAN_RULES,
    check_rule,
    check_values,
)
from jaxadv.types import UserError

_NUM_CLASSES = 10  # of every data set that a config can name
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system that has none
# What another machine may change without changing the experiment.
_LOCAL = ("data.data_dir", "compilation_cache")
# Keys that hold a path, in configs of any mode.
_PATHS = (
    "checkpoint",
    "data.data_dir",
    "data.synthetic.path",
    "judge.checkpoint",
    "judge.classifier.data.data_dir",
    "judge.classifier.data.synthetic.path",
    "sampling.path",
    "study.results",
)
# Files that a run leaves in its workdir once it has computed something.
_RESULTS = (
    "checkpoints/*/SHA256SUMS",
    "interrupted/*/SHA256SUMS",
    "damaged_checkpoints/*",
    "judge/checkpoints/*/SHA256SUMS",
    "ledger*/*.npz",
    "evaluation*.json",
    "gan.json",
    "synthetic/manifest.json",
)


def check(config: ConfigDict, num_devices: int) -> None:
    """Raises a UserError that names the first key whose value cannot be meant."""
    check_values(_flatten(config), CLASSIFIER_RULES, CLASSIFIER_CHOICES)
    if "model" in config:
        check_model(config.model, config.evaluation)
        _check_training(config, num_devices)
    for name, attack in config.evaluation.attacks.items():
        _check_attack(f"evaluation.attacks.{name}", attack)
    check_attacks(expand(config.evaluation.attacks), _NUM_CLASSES)
    _check_radii_differ(config.evaluation.attacks)
    for name in config.evaluation.export:
        if name not in config.evaluation.attacks:
            raise UserError(
                f"config.evaluation.export names {name!r}: the attacks are "
                f"{', '.join(config.evaluation.attacks)}"
            )
    for radius in config.evaluation.certification.radii:
        check_rule("evaluation.certification.radii", radius, RADIUS)
    for key in ("train.batch_size", "evaluation.batch_size"):
        _check_divisible(key, _flatten(config).get(key, num_devices), num_devices)


def check_gan(config: ConfigDict, num_devices: int) -> None:
    """Raises a UserError that names the first key of configs/gan.py whose value cannot be meant."""
    check_values(_flatten(config), GAN_RULES, GAN_CHOICES)
    for key in ("train.batch_size", "sampling.batch_size"):
        _check_divisible(key, _flatten(config)[key], num_devices)
    try:
        check(config.judge.classifier, num_devices)
    except UserError as error:
        raise UserError(f"config.judge.classifier: {error}") from None


def check_model(model: ConfigDict, evaluation: ConfigDict) -> None:
    """Raises a UserError for a model that cannot be made, or not be evaluated as asked."""
    classifier = make_classifier(model, num_classes=_NUM_CLASSES)
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
    if attack.name == "n_fgsm":
        for key, value in {
            "num_steps_start": 1, "num_steps_end": 1, "norm": "linf", "random_start": True,
        }.items():  # fmt: skip
            if attack[key] != value:
                raise UserError(f"config.attack.name n_fgsm needs config.attack.{key}={value}")
        if attack.loss == "kl":
            raise UserError("config.attack.name n_fgsm knows no config.attack.loss kl")
    if attack.fraction > 0:
        choices = {key: attack[key] for key in ("norm", "loss", "random_start")}
        check_attack("attack", "pgd", choices, _NUM_CLASSES)
    validation = {**config.validation, "norm": attack.norm, "random_start": False}
    check_attack("validation", "pgd", validation, _NUM_CLASSES)


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
    check_values(dict(attack), {}, ATTACK_CHOICES, f"{name}.")
    if not isinstance(attack.eps, tuple | list) or not attack.eps:
        raise UserError(f"config.{name}.eps is {attack.eps}: it must be a tuple of radii")
    for eps in attack.eps:
        check_rule(f"{name}.eps", eps, RADIUS)


def _check_radii_differ(attacks: ConfigDict) -> None:
    """Raises a UserError where two radii of an attack would have one name in the results."""
    for name, attack in attacks.items():
        named: dict[str, float] = {}
        for eps in attack.eps:
            key = f"{eps:.4g}"  # as `crafting.expand` names results
            if key in named:
                raise UserError(
                    f"config.evaluation.attacks.{name}.eps has {named[key]!r} and {eps!r}, which "
                    f"are both {key} in the results: keep one of them"
                )
            named[key] = eps


def expand_paths(config: ConfigDict) -> None:
    """Expands `~` in all paths of a config.

    Raises:
      UserError: a home directory is not known.
    """
    flat = _flatten(config)
    for key in _PATHS:
        if path := flat.get(key):
            config.update_from_flattened_dict({key: str(user_path(path))})


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
        stored = ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_no_workdir(workdir)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give another workdir") from None
    if mode not in (None, stored.get("mode")):
        raise UserError(f"{workdir} holds a run of mode {stored.get('mode')}, not of mode {mode}")
    return stored


def _no_workdir(path: Path) -> str:
    """Returns in words what a path is that is not the workdir of a run."""
    if not path.exists():
        return f"{path} is not the workdir of a run: it does not exist"
    for parent in path.absolute().parents[:2]:
        if (parent / "config.json").exists() and (parent / "checkpoints").exists():
            return f"{path} lies in the workdir of a run, which is {parent}: give that"
    return f"{path} is not the workdir of a run: it has no config.json"


@contextmanager
def claimed(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Makes the workdir this config's own, or finds that it is already, and keeps others out.

    Of several processes the first alone does so.

    Raises:
      UserError: it belongs to another config, another run is at work there, or it cannot be
        written.
    """
    theirs = ConfigDict(json.loads(from_first(lambda: config.to_json())))
    if different := differences(theirs, config):
        raise UserError(f"the processes were not given the same config ({'; '.join(different)})")
    if not is_first():
        yield
        return
    with locked(workdir):
        _claim(workdir, config)
        yield


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps others out of a workdir; whatever ends the program frees it.

    Raises:
      UserError: another run is at work there, or it cannot be written.
    """
    lock = FileLock(workdir / ".lock", fallback_to_soft=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another run is at work in {workdir}: wait for its end, or give another --workdir"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter is filelock's word for ENOSYS
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise UserError(
                f"{workdir} cannot be written ({error.strerror}): give another --workdir"
            ) from None
        warnings.warn(f"{workdir} cannot be locked: start no second run there", stacklevel=2)
    try:
        yield
    finally:
        lock.release()


def _claim(workdir: Path, config: ConfigDict) -> None:
    if (workdir / "config.json").exists() and has_results(workdir):
        different = differences(read(workdir), config)
        if different:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(different)}): "
                "give another --workdir, or the config it was started with"
            )
        return
    with written_whole(workdir / "config.json") as partial:
        partial.write_text(config.to_json(indent=2) + "\n", encoding="utf-8")


def has_results(workdir: Path) -> bool:
    """Returns whether a run left anything in its workdir that follows from its config."""
    metrics = workdir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:  # it is created before the first epoch ends
        return True
    return any(any(workdir.glob(pattern)) for pattern in _RESULTS)


def differences(stored: ConfigDict, asked: ConfigDict) -> list[str]:
    """Returns in words where two configs differ, but for what each machine has of its own."""
    old, new = _stored_values(stored), _stored_values(asked)
    return [
        f"config.{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if key not in _LOCAL and old.get(key) != new.get(key)
    ]


def _stored_values(config: ConfigDict) -> dict:
    """Returns the values of a config as JSON keeps them, by their keys."""
    plain = ConfigDict(json.loads(config.to_json()))
    expand_paths(plain)  # runs of before kept `~` as it was written
    return _flatten(plain)


def _flatten(config: ConfigDict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
