"""Checkpoints through Orbax, whole or not at all: every array is verified when it is read."""

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from jaxadv.types import UserError

METRICS = {"validation_accuracy_robust": 1, "judge_frechet_distance": -1}
"""What makes a checkpoint the best, of a classifier or of a GAN: the most, or the least."""


class Restored(NamedTuple):
    """A verified checkpoint: the items asked for, and the record written beside them."""

    epoch: int
    items: dict[str, PyTree]
    metrics: dict[str, Any]
    sha256: dict[str, str]


def open_manager(workdir: Path) -> ocp.CheckpointManager:
    """Returns the Orbax manager of a workdir, which keeps the last two epochs and the best."""
    keep = [
        checkpoint_managers.LatestN(2),
        checkpoint_managers.BestN(get_metric_fn=_metric, n=1),
    ]
    # Orbax stores the metrics, which BestN reads after a restart, only if best_fn is given.
    options = ocp.CheckpointManagerOptions(
        best_fn=_metric,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
    )
    return ocp.CheckpointManager(_directory(workdir), options=options)


def save(
    manager: ocp.CheckpointManager, epoch: int, items: dict[str, PyTree], metrics: dict[str, Any]
) -> None:
    """Writes one epoch as host arrays, so that any number of devices can read it.

    Returns when all of it is on disk. Killed before, the epochs before it stay whole.

    Args:
      manager: of `open_manager`.
      epoch: finished epochs; the number of the checkpoint.
      items: trees of arrays, each of which can be restored without the others.
      metrics: plain numbers, one of `METRICS` among them.
    """
    items = jax.device_get(items)
    record = {"metrics": metrics, "sha256": {name: _digest(tree) for name, tree in items.items()}}
    manager.save(
        epoch,
        args=ocp.args.Composite(
            record=ocp.args.JsonSave(record),
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        ),
        metrics=metrics,
    )
    manager.wait_until_finished()


def restore(workdir: Path, which: str, targets: dict[str, PyTree]) -> Restored | None:
    """Returns the best or the last undamaged checkpoint, or None if none was ever saved.

    Where that checkpoint is damaged the next in order is taken, and a warning says so.

    Args:
      workdir: of the run.
      which: "best" by its metric of `METRICS`, or "last".
      targets: trees of arrays or shapes of the items to restore.

    Raises:
      UserError: all checkpoints are damaged.
    """
    directory = _directory(workdir)
    epochs = sorted((int(p.name) for p in directory.glob("*") if p.name.isdigit()), reverse=True)
    if which == "best":
        epochs.sort(key=lambda epoch: _stored_metric(directory / str(epoch)), reverse=True)
    damage: list[str] = []
    for epoch in epochs:
        try:
            restored = _read(directory / str(epoch), targets)
        except Exception as error:  # Orbax raises bare exceptions for what is damaged.
            damage.append(f"epoch {epoch} is damaged ({_first_line(error)})")
            continue
        if damage:
            message = f"{directory}: {', '.join(damage)}; epoch {epoch} is used instead"
            warnings.warn(message, stacklevel=2)
        return restored
    if damage:
        raise UserError(f"{directory}: no checkpoint can be restored: {', '.join(damage)}")
    return None


def set_aside_after(workdir: Path, epoch: int) -> None:
    """Moves the checkpoints after an epoch out of the way of a run that repeats them."""
    directory = _directory(workdir)
    for path in directory.glob("*"):
        if path.name.isdigit() and int(path.name) > epoch:
            aside = workdir / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            number = sum(1 for _ in aside.iterdir())
            path.rename(aside / f"{number}_epoch_{path.name}")


def _read(path: Path, targets: dict[str, PyTree]) -> Restored:
    """Reads and verifies one checkpoint.

    Orbax itself returns other numbers, and other shapes than asked for, without an error.
    """
    targets = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), targets)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        stored = checkpointer.restore(
            path,
            args=ocp.args.Composite(
                record=ocp.args.JsonRestore(),
                **{name: ocp.args.StandardRestore(tree) for name, tree in targets.items()},
            ),
        )
    items = {name: stored[name] for name in targets}
    sha256 = stored["record"]["sha256"]
    for name, tree in items.items():
        if _digest(tree) != sha256[name]:
            raise ValueError(f"the checksum of {name} does not match")
        if jax.tree.map(np.shape, tree) != jax.tree.map(np.shape, targets[name]):
            raise ValueError(f"{name} belongs to another model")
    return Restored(int(path.name), items, stored["record"]["metrics"], sha256)


def _stored_metric(path: Path) -> float:
    """Returns the metric of a checkpoint; an unreadable one comes first, to be told of."""
    try:
        return _metric(_read(path, {}).metrics)
    except Exception:  # Orbax raises bare exceptions; `restore` reads it again and reports it.
        return math.inf


def _metric(metrics: dict[str, Any]) -> float:
    (name,) = METRICS.keys() & metrics.keys()
    return METRICS[name] * metrics[name]


def _digest(tree: PyTree) -> str:
    """Returns the SHA-256 of all leaves with their paths, types and shapes."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha256.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _directory(workdir: Path) -> Path:
    return (workdir / "checkpoints").absolute()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
