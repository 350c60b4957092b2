"""One checkpoint as a folder: written by Orbax, whole or not at all, every byte verified when read.

The folder holds the checksums of its files in `SHA256SUMS`, as `sha256sum` writes and checks them.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from jaxadv.types import UserError

_SUMS = "SHA256SUMS"
_RECORD = "record/metadata"


class Restored(NamedTuple):
    """A verified checkpoint: the items asked for, and the record written beside them."""

    epoch: int
    items: dict[str, PyTree]
    metrics: dict[str, Any]
    sha256: dict[str, str]


def write(directory: Path, epoch: int, items: dict[str, PyTree], metrics: dict[str, Any]) -> None:
    """Writes `directory/<epoch>`, in the place of one of that number.

    Args:
      directory: of the checkpoints.
      epoch: its number.
      items: trees of host arrays, each of which can be read without the others.
      metrics: plain numbers, and lists and dicts of them.

    Raises:
      UserError: it cannot be written.
    """
    record = {"metrics": metrics, "sha256": {name: _digest(tree) for name, tree in items.items()}}
    partial = directory / f"{epoch}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_room(directory, items)
        with _without_tracebacks(), _checkpointer(items) as checkpointer:
            checkpointer.save(
                partial,
                args=ocp.args.Composite(
                    record=ocp.args.JsonSave(record),
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                ),
                force=True,
            )
        sums = "".join(f"{_sha256(file)}  {name}\n" for name, file in _files(partial))
        (partial / _SUMS).write_text(sums, encoding="utf-8")
        delete(directory / str(epoch))
        partial.rename(directory / str(epoch))
    except Exception as error:  # Orbax raises bare exceptions for what it cannot write.
        for path in directory.glob(f"{partial.name}*"):
            shutil.rmtree(path, ignore_errors=True)
        reason = first_line(error).rsplit(": ", 1)[-1]  # the rest are names of Orbax's own
        raise UserError(
            f"checkpoint {epoch} cannot be written to {directory} ({reason}): those before it are "
            "kept. Make room, then give the same command again"
        ) from error


class DamagedError(Exception):
    """The files of a checkpoint are not those that were written."""


def read(path: Path, targets: dict[str, PyTree]) -> Restored:
    """Reads and verifies one checkpoint.

    Orbax itself returns other numbers, and other shapes than asked for, without an error.

    Args:
      path: its folder.
      targets: trees of arrays or shapes of the items to read.

    Raises:
      DamagedError: a file is missing or changed.
      UserError: its files are those that were written, but the items do not fit the targets.
    """
    if what := damage(path):
        raise DamagedError(what)
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
    except Exception as error:  # Orbax raises bare exceptions for what does not fit.
        raise UserError(
            f"{path} belongs to another model ({first_line(error)}): use the config, the data set "
            "and the JAX settings, such as jax_enable_x64, that it was trained with"
        ) from error
    return Restored(int(path.name), items, metrics, sha256)


def read_record(path: Path) -> dict[str, Any]:
    """Returns what was written beside the items of a checkpoint: `metrics` and `sha256`."""
    return json.loads((path / _RECORD).read_text(encoding="utf-8"))


def damage(path: Path) -> str | None:
    """Returns what is wrong with the files of a checkpoint, if anything is.

    Files that were not written with it, such as those of a file manager, are ignored.
    """
    try:
        lines = (path / _SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return f"{_SUMS} cannot be read"
    if _RECORD not in sums:
        return f"{_SUMS} is cut short"
    for name, digest in sums.items():
        try:
            if _sha256(path / name) != digest:
                return f"the checksum of {name} does not match"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def delete(path: Path) -> None:
    """Deletes a folder, so that it is whole or gone."""
    if path.exists():
        deleted = path.with_name(f"{path.name}.deleted")
        shutil.rmtree(deleted, ignore_errors=True)
        shutil.rmtree(path.rename(deleted))


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_room(directory: Path, items: dict[str, PyTree]) -> None:
    """Raises an OSError where a disk has no room for items: Orbax's threads would not end well."""
    needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(items))
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free on the disk")


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files of a checkpoint, by their names within it."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _SUMS:
            yield file.relative_to(path).as_posix(), file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tree: PyTree) -> str:
    """Returns the SHA-256 of all leaves with their paths, types and shapes."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha256.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _checkpointer(items: Iterable[str]) -> ocp.Checkpointer:
    """Returns what reads and writes some items in this process alone, whoever else there is."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        record=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        **{name: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for name in items},
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keeps Orbax's threads from logging the errors that it raises too."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
