"""Workdir of a run: ownership, stored config, data set, and provenance of results."""

import datetime
import errno
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout
from flax import linen as nn
from ml_collections import ConfigDict

from jaxadv.core.command_line import command_line
from jaxadv.core.devices import describe_devices
from jaxadv.core.files import atomic_write, read_json, user_path, write_json
from jaxadv.core.types import UserError
from jaxadv.data import Dataset, is_prepared, load
from jaxadv.data.sources import expand_source, source_family
from jaxadv.models.checks import variable_shapes
from jaxadv.models.classifier import check_model_config, make_classifier
from jaxadv.runs import checkpoints
from jaxadv.runs.dataset_record import check_same_dataset, describe_dataset, is_record
from jaxadv.runs.distributed import first_process_first, from_first, is_first

_LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # by the file system
# Keys that may differ between machines for the same experiment.
_MACHINE_KEYS = (
    "compilation_cache",
    "data.data_dir",
    "data.streaming",
    "evaluator.classifier.data.streaming",
)
# Keys that hold a path, in configs of any mode.
_SOURCE_KEYS = ("data.source", "evaluator.classifier.data.source")  # `KIND:PATH` has a path
_WEIGHTS_KEYS = ("init_from", "evaluator.classifier.init_from")
_PATH_KEYS = (
    "checkpoint",
    "data.data_dir",
    "data.synthetic.path",
    "evaluator.checkpoint",
    "evaluator.classifier.data.data_dir",
    "evaluator.classifier.data.synthetic.path",
    *_WEIGHTS_KEYS,
    "sampling.path",
    "study.results",
)
# Keys of `config.data` that say what is loaded.
DATA_KEYS = (
    "source",
    "data_dir",
    "size",
    "channels",
    "streaming",
    "test_fraction",
    "validation_fraction",
)
# Keys of earlier versions, for `migrate`: dotted key -> new last part, keys that they lacked with
# the value that they implied, and removed keys with the value that this version still implements.
_RENAMED_KEYS = {"judge": "evaluator", "data.name": "source"}
# Keyed by section, and by a key that identifies the kind of config.
_ADDED_KEYS: dict[tuple[str, str], dict[str, Any]] = {
    ("data.", "name"): {"size": None, "channels": None, "streaming": None, "test_fraction": 0.2},
    ("train.", "trades_beta"): {
        "swa_start": None,
        "label_smoothing": 0.0,
        "cutmix": 0.0,
        "mart_weight": 5.0,
        "ikl_alpha": 4.0,
        "ikl_beta": 20.0,
        "awp_gamma": 0.0,
        "gradient_alignment": 0.0,
    },
    ("optimizer.", "momentum"): {"nesterov": False},
}
_REMOVED_KEYS = {
    "model.defence.pni.granularity": "layer",
    "generator.attention": False,
    "discriminator.attention": False,
}
# Files that a run writes to its workdir once it has results.
_RESULTS = (
    "checkpoints/*/SHA256SUMS",
    "interrupted/*/SHA256SUMS",
    "damaged_checkpoints/*",
    "evaluator/checkpoints/*/SHA256SUMS",
    "judge/checkpoints/*/SHA256SUMS",  # name of that folder in earlier versions
    "resume_cache*/*.npz",
    "ledger*/*.npz",  # name of that folder in earlier versions
    "evaluation*.json",
    "gan.json",
    "synthetic/manifest.json",
)
_DATASET_KEY = "dataset"  # of config.json: the record of the data set
_DATASET_FILE = "dataset.json"  # with that record, in earlier versions
_SOURCE_PATHS = (":/", ":(top,exclude)results")  # git pathspecs: the checkout without `results`


def expand_paths(config: ConfigDict) -> None:
    """Expand `~` in all paths of a config, in place.

    Raises:
      UserError: the home directory is unknown.
    """
    flat = flatten(config)
    for key in _PATH_KEYS:
        if path := flat.get(key):
            config.update_from_flattened_dict({key: str(user_path(path))})
    for key in _SOURCE_KEYS:
        if source := flat.get(key):
            config.update_from_flattened_dict({key: expand_source(source)})


def read(workdir: Path, mode: str | None = None) -> ConfigDict:
    """Read the config of a run from its workdir, with the keys of this version.

    Args:
      workdir: of the run.
      mode: expected mode of the run; None: any.

    Raises:
      UserError: the config is missing, cannot be read, or has another mode.
    """
    path = workdir / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        content.pop(_DATASET_KEY, None)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_describe_missing_workdir(workdir)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): pass another workdir") from None
    stored = ConfigDict(migrate(content))
    if mode not in (None, stored.get("mode")):
        raise UserError(
            f"{workdir} holds a run of mode {stored.get('mode')}: pass one of mode {mode}"
        )
    return stored


def read_in_first(workdir: Path, mode: str | None = None) -> ConfigDict:
    """Return in all processes what `read` returns in the first."""
    return ConfigDict(json.loads(from_first(lambda: read(workdir, mode).to_json())))


def migrate(stored: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Rename, add and remove keys of a stored config of an earlier version.

    >>> migrate({"mode": "gan", "judge": {"num_samples": 2000}})
    {'mode': 'gan', 'evaluator': {'num_samples': 2000}}

    Args:
      stored: config as nested dicts.
      section: dotted prefix of its keys, for recursive calls.

    Raises:
      UserError: a removed key has a value that this version does not implement.
    """
    migrated: dict[str, Any] = {}
    for key, value in stored.items():
        path = section + key
        if path in _REMOVED_KEYS:
            if value != _REMOVED_KEYS[path]:
                raise UserError(
                    f"config.{path} is {value!r}: this version implements only "
                    f"{_REMOVED_KEYS[path]!r}; use the version that wrote the config"
                )
            continue
        if isinstance(value, Mapping):
            # The classifier in the config of a GAN is a complete config.
            value = migrate(value, "" if key == "classifier" else f"{path}.")
        migrated[_RENAMED_KEYS.get(path, key)] = value
    for (of_section, known), added in _ADDED_KEYS.items():
        if section == of_section and known in stored:
            migrated = {**added, **migrated}
    return migrated


def _describe_missing_workdir(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist: pass the workdir of a run"
    for parent in path.absolute().parents[:2]:
        if (parent / "config.json").exists() and (parent / "checkpoints").exists():
            return f"{path} is inside the workdir of a run: pass {parent}"
    return f"{path} has no config.json: pass the workdir of a run"


@contextmanager
def claimed(workdir: Path, config: ConfigDict) -> Iterator[None]:
    """Store a config in a workdir, or check that it is the stored one, and lock the workdir.

    Only the first process does so.

    Raises:
      UserError: the workdir holds a run of another config, another process uses it, or it cannot
        be written.
    """
    if not is_first():
        yield
        return
    with locked(workdir):
        _claim(workdir, config)
        yield


def check_processes(config: ConfigDict) -> None:
    """Check that all processes of a run have the same config.

    Raises:
      UserError: they have different configs.
    """
    config_of_first = ConfigDict(json.loads(from_first(lambda: config.to_json())))
    if different := differences(config_of_first, config):
        raise UserError(
            f"the processes have different configs ({'; '.join(different)}): pass the same flags "
            "to all of them"
        )


@contextmanager
def locked(workdir: Path, option: str = "--workdir") -> Iterator[None]:
    """Lock a workdir. The operating system releases the lock when the program ends.

    Args:
      workdir: the folder, which is created.
      option: what the caller's argument is called, for messages.

    Raises:
      UserError: another process uses the workdir, or it cannot be written.
    """
    lock = FileLock(workdir / ".lock", fallback_to_soft=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another run is using {workdir}: wait for its end, or pass another {option}"
        ) from None
    except (OSError, NotImplementedError) as error:  # filelock raises the latter for ENOSYS
        if isinstance(error, OSError) and error.errno not in _LOCKS_UNSUPPORTED:
            raise UserError(
                f"cannot write {workdir} ({error.strerror}): pass another {option}"
            ) from None
        warnings.warn(
            f"the file system of {workdir} has no locks: do not start a second run there",
            stacklevel=2,
        )
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
                "pass another --workdir, or the config of that run"
            )
        return
    with atomic_write(workdir / "config.json") as partial:
        partial.write_text(config.to_json(indent=2) + "\n", encoding="utf-8")


def has_results(workdir: Path) -> bool:
    """Return whether a workdir holds results of a run."""
    metrics = workdir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:  # created before the first epoch ends
        return True
    return any(any(workdir.glob(pattern)) for pattern in _RESULTS)


def differences(stored: ConfigDict, asked: ConfigDict) -> list[str]:
    """Describe where two configs differ, except in keys that depend on the machine."""
    old, new = _stored_values(stored), _stored_values(asked)
    return [
        f"config.{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if key not in _MACHINE_KEYS and old.get(key) != new.get(key)
    ]


def _stored_values(config: ConfigDict) -> dict:
    """Return the values of a config by their dotted keys, as they are read from JSON."""
    plain = ConfigDict(migrate(json.loads(config.to_json())))
    expand_paths(plain)  # earlier versions stored `~` unexpanded
    values = flatten(plain)
    if values.get("mode") == "evaluate":
        values.pop("data.source", None)  # it is that of the training, perhaps at another path
    for key in _SOURCE_KEYS:
        if values.get(key):
            values[key] = source_family(values[key])
    for key in _WEIGHTS_KEYS:
        if values.get(key):
            values[key] = Path(values[key]).name
    return values


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """Return the values of a config by their dotted keys."""
    flat: dict = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def claim_dataset(workdir: Path, dataset: Dataset) -> dict[str, Any]:
    """Record the data set of a run in its workdir, or check it if the run has results.

    Returns:
      The record of the data set, for the checkpoints of the run.

    Raises:
      UserError: the run has results on another data set.
    """
    described = describe_dataset(dataset)
    if from_first(lambda: has_results(workdir)):
        check_same_dataset(recorded_dataset(workdir), described, f"the run in {workdir}")
    else:
        from_first(lambda: _write_record(workdir, described))
    return described


def _write_record(workdir: Path, described: Mapping[str, Any]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    write_json(path, {**read_json(path), _DATASET_KEY: described})


def check_dataset(workdir: Path, dataset: Dataset) -> dict[str, Any]:
    """Check that a data set, or a copy of it, is the one that a run was trained on.

    Runs of earlier versions, which have no record of their data set, are accepted.

    Returns:
      The record of the data set.

    Raises:
      UserError: it is another data set.
    """
    described = describe_dataset(dataset)
    check_same_dataset(recorded_dataset(workdir), described, f"the run in {workdir}", copies=True)
    return described


def recorded_dataset(workdir: Path) -> dict[str, Any] | None:
    """Return the record of the data set of a run, or None if missing. The file is not trusted.

    Raises:
      UserError: the file is damaged.
    """
    return from_first(lambda: _read_record(workdir))


def _read_record(workdir: Path) -> dict[str, Any] | None:
    path = workdir / "config.json"
    content = _parse(path)
    if isinstance(content, dict) and _DATASET_KEY in content:
        recorded = content[_DATASET_KEY]
    else:
        path = workdir / _DATASET_FILE
        recorded = _parse(path)
    if recorded is not None and not is_record(recorded):
        raise UserError(
            f"{path} is damaged (it has no valid record of the data set): restore the file, or "
            "train in another --workdir"
        )
    return recorded


def _parse(path: Path) -> Any:
    """Return the content of a JSON file, which may be of any type; None if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): restore the file, or train in another --workdir"
        ) from None


def provenance(seconds: float) -> dict:
    """Return the command, version, commit, device, JAX version, date and duration of a result.

    Args:
      seconds: duration of the measurement.
    """
    return {
        "command": command_line(),
        "version": version("jaxadv"),
        **source_version(),
        "device": describe_devices(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
    }


@cache
def source_version() -> dict:
    """Return the git commit of the source tree, and whether the tree has uncommitted changes.

    The result is that of the first call. Call it when a program starts, since the tree may change
    while it runs. Changes in `results` are ignored: a study writes there between its runs.
    """
    root = _git("rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != Path(__file__).resolve().parents[2]:
        return {"commit": None, "dirty": False}  # installed, perhaps inside of another checkout
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_SOURCE_PATHS)),
    }


def _git(*arguments: str) -> str | None:
    """Run git in the source tree; return its output, or None outside of a checkout."""
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def trained_config(
    source: Path, mode: str, data_dir: str | None, data_source: str | None = None
) -> ConfigDict:
    """Return the config of a run. Its file may come from another machine and is not trusted.

    Args:
      source: workdir of the run.
      mode: expected mode of the run.
      data_dir: directory of the data set on this machine; None: the directory in the config, if
        it already holds a prepared data set. No data set is prepared in a directory that the
        file names.
      data_source: `config.data.source` on this machine; None: that of the config.

    Raises:
      UserError: the file is not the config of a run, or the run was trained on another kind of
        data.
    """
    trained = read_in_first(source, mode)
    try:
        if None in (trained.seed, trained.data.source, trained.data.validation_fraction):
            raise KeyError("a value is missing")
        if missing := {*DATA_KEYS} - {*trained.data}:
            raise KeyError(f"data.{min(missing)}")
        trained.data.source = _source_here(source, trained.data.source, data_source)
        stored_dir = trained.data.data_dir
        is_stored_dir_prepared = is_prepared(trained.data.source, stored_dir)
        trained.data.data_dir = data_dir or (stored_dir if is_stored_dir_prepared else None)
        if mode == "train":
            _refuse_code_of_run(source, trained.model.name)
            check_model_config(trained.model)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{source / 'config.json'} is not the config of a run of mode {mode} ({error}): pass "
            "the workdir of such a run"
        ) from error
    return trained


def _source_here(workdir: Path, stored: str, given: str | None) -> str:
    """Return the source of data on this machine."""
    if given and source_family(given) != source_family(stored):
        raise UserError(
            f"config.data.source is {given}, the run in {workdir} was trained on {stored}: give "
            "another path to the same data, or None"
        )
    return given or stored


def _refuse_code_of_run(source: Path, model: str) -> None:
    """Raise a UserError if a model is a Python module inside of its run, which is not trusted."""
    path, is_module, _ = model.partition(":")
    for folder in (Path.cwd(), *map(Path, sys.path)) if is_module else ():
        file = folder.joinpath(*path.split(".")).resolve()
        if file.is_relative_to(source.resolve()) and any(file.parent.glob(f"{file.name}*")):
            raise UserError(
                f"{source / 'config.json'} names the model {model!r}, which is a file of that run: "
                "move the file out of the run if you trust it"
            )


def load_dataset(data: ConfigDict) -> Dataset:
    """Load the data set of `config.data`; of several processes, the first prepares it."""
    return first_process_first(lambda: load(**{key: data[key] for key in DATA_KEYS}))


def restore_classifier(
    trained: ConfigDict, dataset: Dataset, source: Path, which: str
) -> tuple[nn.Module, checkpoints.Restored]:
    """Return the classifier of a run and its "best" or "last" checkpoint, item `weights`.

    Raises:
      UserError: no checkpoint can be restored, or the run was trained on another data set.
    """
    return restore_module(trained, check_dataset(source, dataset), source, which)


def restore_module(
    trained: ConfigDict, described: Mapping[str, Any], source: Path, which: str
) -> tuple[nn.Module, checkpoints.Restored]:
    """Return what `restore_classifier` does, given the record of the data set alone.

    Raises:
      UserError: no checkpoint can be restored, or it was trained on another data set.
    """
    model = make_classifier(trained.model, len(described["class_names"]))
    target = variable_shapes(model, tuple(described["image_shape"]))
    restored = checkpoints.restore(source, which, {"weights": target}, described)
    if restored is None:
        raise UserError(
            f"{source} has no checkpoint: its run has not finished an epoch. Continue the run first"
        )
    return model, restored
