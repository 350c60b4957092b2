"""Checkpoints of a run: which are kept, which is restored, and where a run goes on.

They are the folders `checkpoints/<epoch>` of its workdir, and `interrupted/<epoch>` in the middle
of an epoch. Only the first process of several touches them.
"""

import math
import re
import shutil
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jaxadv.checkpoint_io import (
    DamagedError,
    Restored,
    damage,
    delete,
    first_line,
    read,
    read_record,
    write,
)
from jaxadv.processes import from_first, is_first
from jaxadv.types import UserError

METRICS = {"validation_accuracy_robust": 1, "judge_frechet_distance": -1}
"""What makes a checkpoint the best, of a classifier or of a GAN: the most, or the least."""

_NUM_LATEST = 2
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_HALF_DONE = re.compile(r"[0-9]+\.(partial|deleted)")


class Begun(NamedTuple):
    """Where a run goes on: after some epochs and some steps of the next.

    Attributes:
      epoch: finished.
      history: metrics of the steps of the next epoch.
      items: of the checkpoint; None where there was none.
    """

    epoch: int
    history: list[dict[str, float]]
    items: dict[str, PyTree] | None


def save(workdir: Path, epoch: int, items: dict[str, PyTree], metrics: dict[str, Any]) -> None:
    """Writes one epoch as host arrays, so that any number of devices can read it.

    Returns when all of it is on disk; then only the last two and the best are kept. Killed
    before, the epochs before it stay whole.

    Args:
      workdir: of the run.
      epoch: finished epochs; the number of the checkpoint.
      items: trees of arrays, each of which can be restored without the others.
      metrics: plain numbers, one of `METRICS` among them.

    Raises:
      UserError: it cannot be written.
    """
    items = jax.device_get(items)

    def save_here() -> None:
        write(_directory(workdir), epoch, items, metrics)
        for old in _outlived(_directory(workdir)):
            delete(old)
        delete(_interrupted(workdir))

    from_first(save_here)


def save_interrupted(
    workdir: Path, epoch: int, items: dict[str, PyTree], history: list[dict[str, float]]
) -> None:
    """Writes the state in the middle of the epoch after `epoch` finished ones, as `save` does.

    The next `save` deletes it.

    Args:
      workdir: of the run.
      epoch: finished epochs.
      items: as of `save`.
      history: metrics of the steps since.
    """
    items = jax.device_get(items)
    from_first(lambda: write(_interrupted(workdir), epoch, items, {"history": history}))


def restore(workdir: Path, which: str, targets: dict[str, PyTree]) -> Restored | None:
    """Returns the best or the last undamaged checkpoint, or None if none was ever saved.

    Where that checkpoint is damaged the next in order is taken, and a warning says so.

    Args:
      workdir: of the run.
      which: "best" by its metric of `METRICS`, or "last".
      targets: trees of arrays or shapes of the items to restore.

    Raises:
      UserError: all checkpoints are damaged, or one does not fit the targets.
    """
    return _shared(lambda: _find(_directory(workdir), which, targets), targets)


def resume(workdir: Path, targets: dict[str, PyTree], unit: str = "epoch") -> Begun:
    """Returns where a run goes on, says so, and sets aside what it cannot use.

    Args:
      workdir: of the run.
      targets: trees of arrays or shapes of all items.
      unit: what the checkpoints count.

    Raises:
      UserError: all checkpoints are damaged, or one does not fit the targets.
    """
    last = restore(workdir, "last", targets)
    epoch = last.epoch if last else 0
    middle = _restore_interrupted(workdir, epoch, targets)
    _set_aside_after(workdir, epoch)
    newest = middle or last
    if newest is None:
        return Begun(0, [], None)
    history = middle.metrics["history"] if middle else []
    steps = f" and {len(history)} steps of the next" if middle else ""
    print(f"Going on after {unit} {epoch}{steps} of {workdir}", flush=True)
    return Begun(epoch, history, newest.items)


def _restore_interrupted(workdir: Path, epoch: int, targets: dict[str, PyTree]) -> Restored | None:
    """Returns the state in the middle of the epoch after `epoch`, or None if there is none.

    Where it is damaged a warning says so, and the epoch begins anew.
    """

    def find() -> Restored | None:
        path = _interrupted(workdir) / str(epoch)
        try:
            return read(path, targets) if path.exists() else None
        except DamagedError as error:
            told = f"{path} is damaged ({first_line(error)}); epoch {epoch + 1} begins anew"
            warnings.warn(told, stacklevel=2)
            return None

    return _shared(find, targets)


def _set_aside_after(workdir: Path, epoch: int) -> None:
    """Moves what a run cannot use out of its way, and deletes what it left half done.

    These are the checkpoints after an epoch, which it repeats, and the damaged ones.
    """
    directory = _directory(workdir)
    if not is_first() or not directory.exists():
        return
    for path in directory.iterdir():
        if not _is_checkpoint(path):
            if path.is_dir() and _HALF_DONE.match(path.name):
                shutil.rmtree(path)
            continue
        what = damage(path)
        if what and int(path.name) < epoch:
            warnings.warn(f"{path} is damaged ({what}) and set aside", stacklevel=2)
        if what or int(path.name) > epoch:
            aside = workdir / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            names = (aside / f"{number}_epoch_{path.name}" for number in count())
            path.rename(next(name for name in names if not name.exists()))


def _find(directory: Path, which: str, targets: dict[str, PyTree]) -> Restored | None:
    epochs = _epochs(directory)
    if which == "best":  # a damaged one comes first, to be told of: it may have been the best
        metrics = {
            epoch: math.inf if damage(directory / str(epoch)) else _metric(directory / str(epoch))
            for epoch in epochs
        }
        epochs.sort(key=lambda epoch: metrics[epoch], reverse=True)
    damaged: list[str] = []
    for epoch in epochs:
        try:
            restored = read(directory / str(epoch), targets)
        except DamagedError as error:
            damaged.append(f"epoch {epoch} is damaged ({first_line(error)})")
            continue
        if damaged:
            message = f"{directory}: {', '.join(damaged)}; epoch {epoch} is used instead"
            warnings.warn(message, stacklevel=2)
        return restored
    if damaged:
        raise UserError(f"{directory}: no checkpoint can be restored: {', '.join(damaged)}")
    return None


def _shared(find: Callable[[], Restored | None], targets: dict[str, PyTree]) -> Restored | None:
    """Returns in all processes what the first finds."""

    def leaves() -> list | None:
        if (restored := find()) is None:
            return None
        return [restored.epoch, jax.tree.leaves(restored.items), *restored[2:]]

    found = from_first(leaves)
    if found is None:
        return None
    epoch, leaves_found, *rest = found
    return Restored(epoch, jax.tree.unflatten(jax.tree.structure(targets), leaves_found), *rest)


def _outlived(directory: Path) -> list[Path]:
    """Returns the checkpoints that are neither among the last nor the best."""
    epochs = _epochs(directory)
    best = max(epochs, key=lambda epoch: _metric(directory / str(epoch)))
    return [directory / str(epoch) for epoch in epochs[_NUM_LATEST:] if epoch != best]


def _epochs(directory: Path) -> list[int]:
    """Returns the numbers of the checkpoints, the last first."""
    return sorted((int(p.name) for p in directory.glob("*") if _is_checkpoint(p)), reverse=True)


def _is_checkpoint(path: Path) -> bool:
    """Returns whether a path is the folder of a checkpoint, and not a stray file beside them."""
    return path.is_dir() and _NUMBER.fullmatch(path.name) is not None


def _metric(path: Path) -> float:
    """Returns what makes a checkpoint the best, the higher the better."""
    try:
        metrics = read_record(path)["metrics"]
        (name,) = METRICS.keys() & metrics.keys()
        return METRICS[name] * metrics[name]
    except (OSError, ValueError, LookupError, TypeError):  # damaged since the run began
        return -math.inf


def _directory(workdir: Path) -> Path:
    return (workdir / "checkpoints").absolute()


def _interrupted(workdir: Path) -> Path:
    return (workdir / "interrupted").absolute()
