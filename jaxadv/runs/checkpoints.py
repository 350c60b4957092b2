"""Checkpoints of a run: saving, verification, restoring, and resuming.

A checkpoint is a folder `checkpoints/<epoch>` of the workdir, or `interrupted/<epoch>` in the
middle of an epoch. Only the first process reads and writes them. No other file uses Orbax.
"""

import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from jaxtyping import PyTree

from jaxadv.core.files import file_sha256
from jaxadv.core.types import UserError, first_line
from jaxadv.runs.dataset_record import check_same_dataset, is_record
from jaxadv.runs.distributed import from_first, is_first

DatasetRecord = Mapping[str, Any]
DatasetCheck = Callable[..., None]  # `(recorded, what)`, see `check_same_dataset`


class Restored(NamedTuple):
    """A verified checkpoint.

    Attributes:
      epoch: number of finished epochs.
      items: trees of arrays by name.
      metrics: metrics that were saved with it.
      sha256: digest of each item that was saved, by name.
    """

    epoch: int
    items: dict[str, PyTree]
    metrics: dict[str, Any]
    sha256: dict[str, str]


METRICS = {"validation_accuracy_robust": 1, "judge_frechet_distance": -1}
"""Metric that selects the best checkpoint of a classifier or of a GAN: 1 to maximise it, -1 to
minimise it."""

_NUM_LATEST = 2
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_INCOMPLETE = re.compile(r"[0-9]+\.(partial|deleted)")
_CHECKSUMS = "SHA256SUMS"
_RECORD = "record/metadata"


class CorruptCheckpointError(Exception):
    """The files of a checkpoint differ from those that were written."""


class ResumePoint(NamedTuple):
    """Where a run resumes.

    Attributes:
      epoch: number of finished epochs.
      history: metrics of the finished steps of the next epoch.
      items: trees of arrays by name; None without a checkpoint.
    """

    epoch: int
    history: list[dict[str, float]]
    items: dict[str, PyTree] | None


def save(
    workdir: Path,
    epoch: int,
    items: dict[str, PyTree],
    metrics: dict[str, Any],
    dataset: DatasetRecord | None = None,
) -> None:
    """Save a checkpoint, and delete all others but the previous and the best.

    Arrays are saved from the host, so that any number of devices can restore them. The function
    returns when all files are on disk. If it is interrupted, the earlier checkpoints stay intact.

    Args:
      workdir: of the run.
      epoch: number of finished epochs; also the name of the checkpoint.
      items: trees of arrays by name. Each can be restored without the others.
      metrics: plain numbers, including one of `METRICS`.
      dataset: record of the data set of the run.

    Raises:
      UserError: the checkpoint cannot be written.
    """
    items = jax.device_get(items)

    def save_here() -> None:
        write(_directory(workdir), epoch, items, metrics, dataset)
        for old in _superseded(_directory(workdir)):
            delete(old)
        delete(_interrupted(workdir))

    from_first(save_here)


def save_interrupted(
    workdir: Path,
    epoch: int,
    items: dict[str, PyTree],
    history: list[dict[str, float]],
    dataset: DatasetRecord | None = None,
) -> None:
    """Save the state in the middle of an epoch. The next `save` deletes it.

    Args:
      workdir: of the run.
      epoch: number of finished epochs.
      items: see `save`.
      history: metrics of the finished steps of the next epoch.
      dataset: record of the data set of the run.
    """
    items = jax.device_get(items)
    from_first(lambda: write(_interrupted(workdir), epoch, items, {"history": history}, dataset))


def restore(
    workdir: Path, which: str, targets: dict[str, PyTree], dataset: DatasetRecord | None = None
) -> Restored | None:
    """Restore the best or the last checkpoint; return None without a checkpoint.

    Corrupt checkpoints are reported in a warning and skipped.

    Args:
      workdir: of the run.
      which: "best" by its metric of `METRICS`, or "last".
      targets: trees of arrays or of `jax.ShapeDtypeStruct`, by the names of the items to restore.
      dataset: record of the data set, or a copy of it, that the checkpoint must be trained on.

    Raises:
      UserError: all checkpoints are corrupt, the items do not match the targets, or the checkpoint
        was trained on another data set.
    """
    check = partial(check_same_dataset, given=dataset, copies=True)
    return _from_first(lambda: _restore(_directory(workdir), which, targets, check), targets)


def resume(
    workdir: Path,
    targets: dict[str, PyTree],
    unit: str = "epoch",
    dataset: DatasetRecord | None = None,
) -> ResumePoint:
    """Restore the newest state of a run and print where the run resumes.

    Corrupt checkpoints are moved to the folder `damaged_checkpoints`.

    Args:
      workdir: of the run.
      targets: see `restore`; all items.
      unit: what the numbers of the checkpoints count, for messages.
      dataset: record of the data set that the checkpoints must be trained on.

    Raises:
      UserError: all checkpoints are corrupt, the items do not match the targets, or a checkpoint
        was trained on another data set.
    """
    check = partial(check_same_dataset, given=dataset)
    last = _from_first(lambda: _restore(_directory(workdir), "last", targets, check), targets)
    epoch = last.epoch if last else 0
    interrupted = _restore_interrupted(workdir, epoch, targets, check)
    _move_unusable(workdir, epoch)
    newest = interrupted or last
    if newest is None:
        return ResumePoint(0, [], None)
    history = interrupted.metrics["history"] if interrupted else []
    steps = f" and {len(history)} steps of the next" if interrupted else ""
    print(f"Resuming after {unit} {epoch}{steps} of {workdir}", flush=True)
    return ResumePoint(epoch, history, newest.items)


def _restore_interrupted(
    workdir: Path, epoch: int, targets: dict[str, PyTree], check: DatasetCheck
) -> Restored | None:
    """Restore the state in the middle of the epoch after `epoch`, if it exists and is intact."""

    def restore_here() -> Restored | None:
        path = _interrupted(workdir) / str(epoch)
        try:
            return read(path, targets, check) if path.exists() else None
        except CorruptCheckpointError as error:
            warnings.warn(
                f"{path} is corrupt ({first_line(error)}); epoch {epoch + 1} starts again",
                stacklevel=2,
            )
            return None

    return _from_first(restore_here, targets)


def _move_unusable(workdir: Path, epoch: int) -> None:
    """Move corrupt checkpoints, and those after `epoch`, which the run repeats, out of the way.

    Incomplete folders of an interrupted save are deleted.
    """
    directory = _directory(workdir)
    if not is_first() or not directory.exists():
        return
    for path in directory.iterdir():
        if not _is_checkpoint(path):
            if path.is_dir() and _INCOMPLETE.match(path.name):
                shutil.rmtree(path)
            continue
        corruption = find_corruption(path)
        target_folder = workdir / "damaged_checkpoints"
        if corruption and int(path.name) < epoch:
            warnings.warn(
                f"{path} is corrupt ({corruption}); it is moved to {target_folder}", stacklevel=2
            )
        if corruption or int(path.name) > epoch:
            target_folder.mkdir(exist_ok=True)
            names = (target_folder / f"{number}_epoch_{path.name}" for number in count())
            path.rename(next(name for name in names if not name.exists()))


def _restore(
    directory: Path, which: str, targets: dict[str, PyTree], check: DatasetCheck
) -> Restored | None:
    epochs = _epochs(directory)
    if which == "best":
        # Corrupt checkpoints come first, so that they are reported: one may have been the best.
        scores = {
            epoch: math.inf if find_corruption(path) else _score(path)
            for epoch, path in ((epoch, directory / str(epoch)) for epoch in epochs)
        }
        epochs.sort(key=lambda epoch: scores[epoch], reverse=True)
    corrupt: list[str] = []
    for epoch in epochs:
        try:
            restored = read(directory / str(epoch), targets, check)
        except CorruptCheckpointError as error:
            corrupt.append(f"epoch {epoch} is corrupt ({first_line(error)})")
            continue
        if corrupt:
            message = f"{directory}: {', '.join(corrupt)}; epoch {epoch} is restored instead"
            warnings.warn(message, stacklevel=2)
        return restored
    if corrupt:
        raise UserError(
            f"{directory}: no checkpoint can be restored: {', '.join(corrupt)}. Train again in "
            "another --workdir"
        )
    return None


def _from_first(
    restore_here: Callable[[], Restored | None], targets: dict[str, PyTree]
) -> Restored | None:
    """Return in all processes what the first restores."""

    def to_leaves() -> list | None:
        if (restored := restore_here()) is None:
            return None
        return [restored.epoch, jax.tree.leaves(restored.items), *restored[2:]]

    found = from_first(to_leaves)
    if found is None:
        return None
    epoch, leaves, *rest = found
    return Restored(epoch, jax.tree.unflatten(jax.tree.structure(targets), leaves), *rest)


def _superseded(directory: Path) -> list[Path]:
    """Return the checkpoints that are neither among the last two nor the best."""
    epochs = _epochs(directory)
    best = max(epochs, key=lambda epoch: _score(directory / str(epoch)))
    return [directory / str(epoch) for epoch in epochs[_NUM_LATEST:] if epoch != best]


def _epochs(directory: Path) -> list[int]:
    """Return the numbers of the checkpoints, the last first."""
    return sorted((int(p.name) for p in directory.glob("*") if _is_checkpoint(p)), reverse=True)


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and _NUMBER.fullmatch(path.name) is not None


def _score(path: Path) -> float:
    """Return the metric that selects the best checkpoint, negated where lower is better."""
    try:
        metrics = read_record(path)["metrics"]
        (name,) = METRICS.keys() & metrics.keys()
        return METRICS[name] * metrics[name]
    except (OSError, ValueError, LookupError, TypeError):  # corrupt since it was written
        return -math.inf


def _directory(workdir: Path) -> Path:
    return (workdir / "checkpoints").absolute()


def _interrupted(workdir: Path) -> Path:
    return (workdir / "interrupted").absolute()


def write(
    directory: Path,
    epoch: int,
    items: dict[str, PyTree],
    metrics: dict[str, Any],
    dataset: DatasetRecord | None,
) -> None:
    """Write the checkpoint `directory/<epoch>`, replacing an older one.

    Args:
      directory: of the checkpoints.
      epoch: number of the checkpoint.
      items: trees of host arrays by name. Each can be read without the others.
      metrics: plain numbers, and lists and dicts of them.
      dataset: record of the data set of the run.

    Raises:
      UserError: the checkpoint cannot be written.
    """
    sha256 = {name: _digest(tree) for name, tree in items.items()}
    record = {"metrics": metrics, "sha256": sha256, "dataset": dataset}
    partial = directory / f"{epoch}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_disk_space(directory, items)
        with _without_logging(), _without_leak(), _checkpointer(items) as checkpointer:
            checkpointer.save(
                partial,
                args=ocp.args.Composite(
                    record=ocp.args.JsonSave(record),
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                ),
                force=True,
            )
        checksums = "".join(f"{file_sha256(file)}  {name}\n" for name, file in _files(partial))
        (partial / _CHECKSUMS).write_text(checksums, encoding="utf-8")
        delete(directory / str(epoch))
        partial.rename(directory / str(epoch))
    except Exception as error:  # Orbax raises bare exceptions
        for path in directory.glob(f"{partial.name}*"):
            shutil.rmtree(path, ignore_errors=True)
        reason = first_line(error).rsplit(": ", 1)[-1]  # without the names internal to Orbax
        raise UserError(
            f"cannot write checkpoint {epoch} to {directory} ({reason}); earlier checkpoints are "
            "kept. Free disk space, then run the same command again"
        ) from error


def read(path: Path, targets: dict[str, PyTree], check: DatasetCheck) -> Restored:
    """Read and verify one checkpoint.

    Orbax alone does not detect changed numbers, nor shapes that differ from the targets.

    Args:
      path: folder of the checkpoint.
      targets: trees of arrays or of `jax.ShapeDtypeStruct`, by the names of the items to read.
      check: of the record of its data set.

    Raises:
      CorruptCheckpointError: a file is missing or changed.
      UserError: the files are intact, but the items do not match the targets, or the data set is
        another.
    """
    if corruption := find_corruption(path):
        raise CorruptCheckpointError(corruption)
    check(_recorded_dataset(path), what=f"the checkpoint {path}")
    targets = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), targets)
    try:
        with _checkpointer(targets) as checkpointer:
            stored = checkpointer.restore(
                path,
                args=ocp.args.Composite(
                    record=ocp.args.JsonRestore(),
                    **{name: ocp.args.StandardRestore(tree) for name, tree in targets.items()},
                ),
            )
        items = {name: stored[name] for name in targets}
        metrics, sha256 = stored["record"]["metrics"], stored["record"]["sha256"]
        for name, tree in items.items():
            if jax.tree.map(np.shape, tree) != jax.tree.map(np.shape, targets[name]):
                raise ValueError(f"the shapes of {name} differ")
            if _digest(tree) != sha256[name]:
                raise ValueError(f"the types of {name} differ")
    except Exception as error:  # Orbax raises bare exceptions
        raise UserError(
            f"{path} is a checkpoint of another model ({first_line(error)}): use the config, the "
            "data set and the JAX settings, such as jax_enable_x64, of its training"
        ) from error
    return Restored(int(path.name), items, metrics, sha256)


def read_tree(folder: Path) -> PyTree:
    """Read variables as NumPy arrays: from a workdir, or from a folder that Orbax wrote.

    Of a workdir, the best checkpoint is read. A folder of `CheckpointManager` is read at its last
    step.

    Raises:
      UserError: the folder has no variables, or cannot be read.
    """
    try:
        path = _tree_folder(folder.absolute())
        checkpointer = ocp.PyTreeCheckpointer()
        leaves = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
        tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except UserError:
        raise
    except Exception as error:  # Orbax raises bare exceptions
        raise UserError(
            f"cannot read {folder} ({first_line(error)}): pass a workdir, or a folder with "
            "variables that Orbax wrote"
        ) from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{folder} has a {type(tree).__name__}, not the variables of a module")
    for candidate in (tree, *tree.values()):
        if isinstance(candidate, Mapping) and "params" in candidate:
            return candidate
    raise UserError(
        f"{folder} has {', '.join(map(str, tree))}, but not params: save the variables of the "
        "module, {'params': ..., 'batch_stats': ...}"
    )


def _tree_folder(folder: Path) -> Path:
    """Return the folder of the variables within a workdir, or within a folder of Orbax."""
    if (folder / "checkpoints").is_dir():
        best = restore(folder, "best", {})
        if best is None:
            raise UserError(f"{folder} has no checkpoint: pass the workdir of a run with one")
        return folder / "checkpoints" / str(best.epoch) / "weights"
    if steps := _epochs(folder):
        folder /= str(steps[0])
    if (folder / "default").is_dir():
        folder /= "default"
    if not (folder / "_METADATA").exists():
        inside = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise UserError(
            f"{folder} has no variables of Orbax, but {inside or 'nothing'}: pass the folder that "
            "has the file _METADATA"
        )
    return folder


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a checkpoint: a dict with `metrics`, `sha256` and `dataset`."""
    return json.loads((path / _RECORD).read_text(encoding="utf-8"))


def _recorded_dataset(path: Path) -> DatasetRecord | None:
    """Return the record of the data set; None in checkpoints of earlier versions."""
    recorded = read_record(path).get("dataset")
    if recorded is not None and not is_record(recorded):
        raise CorruptCheckpointError("the record of its data set is not valid")
    return recorded


def find_corruption(path: Path) -> str | None:
    """Return how the files of a checkpoint differ from those written, or None.

    Additional files, such as those of a file manager, are ignored.
    """
    try:
        lines = (path / _CHECKSUMS).read_text(encoding="utf-8").splitlines()
        checksums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return f"{_CHECKSUMS} cannot be read"
    if _RECORD not in checksums:
        return f"{_CHECKSUMS} is truncated"
    for name, digest in checksums.items():
        try:
            if file_sha256(path / name) != digest:
                return f"the checksum of {name} does not match"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def delete(path: Path) -> None:
    """Delete a folder. It is renamed first, so that no incomplete folder keeps its name."""
    if path.exists():
        deleted = path.with_name(f"{path.name}.deleted")
        shutil.rmtree(deleted, ignore_errors=True)
        shutil.rmtree(path.rename(deleted))


def _check_disk_space(directory: Path, items: dict[str, PyTree]) -> None:
    """Raise an OSError if the disk is too full; the threads of Orbax do not handle that case."""
    needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(items))
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free on the disk")


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name of each file within a checkpoint, and its path."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _CHECKSUMS:
            yield file.relative_to(path).as_posix(), file


def _digest(tree: PyTree) -> str:
    """Return the SHA-256 of all leaves with their paths, types and shapes."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha256.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _checkpointer(items: Iterable[str]) -> ocp.Checkpointer:
    """Return an Orbax checkpointer that does not synchronise with other processes."""
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process_{this}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        record=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        **{name: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for name in items},
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextmanager
def _without_logging() -> Iterator[None]:
    """Silence the logs of Orbax's threads; Orbax raises the same errors."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _without_leak() -> Iterator[None]:
    """Convert each specification of TensorStore to JSON once.

    TensorStore (0.1.74 to 0.1.86) leaks the strings of each result of `KvStore.Spec.to_json`, and
    Orbax converts the same specification for every array of an item.
    """
    # Of the class's dictionary: the attribute of the class would not bind to instances again.
    method = vars(ts.KvStore.Spec)["to_json"]
    to_json = ts.KvStore.Spec.to_json
    results: dict[tuple[str, bool], Any] = {}

    def to_json_once(spec: ts.KvStore.Spec, include_defaults: bool = False) -> Any:
        key = repr(spec), include_defaults
        if key not in results:
            results[key] = to_json(spec, include_defaults=include_defaults)
        return results[key]

    ts.KvStore.Spec.to_json = to_json_once  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        ts.KvStore.Spec.to_json = method  # type: ignore[method-assign]
