"""A ledger on disk: what a long evaluation has found so far, whole or not at all."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote
from zipfile import BadZipFile

import jax
import numpy as np

from jaxadv.files import written_whole
from jaxadv.processes import from_first, is_first
from jaxadv.types import UserError

Record = dict[str, np.ndarray]

_TASK = "task.json"
_FILE_MANAGERS = ("Thumbs.db", "desktop.ini")  # of Windows; those of others are hidden
_FORMAT = 3  # of the records: to be raised whenever an older one can no longer be gone on from


class DiskLedger(MutableMapping[str, Record]):
    """Named records of arrays, each a file of its own that is there whole or not at all.

    A record that cannot be read counts as one that was never written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     DiskLedger(folder, "a task")["part/0"] = {"found": np.arange(2)}
    ...     DiskLedger(folder, "a task")["part/0"]["found"].tolist()
    [0, 1]
    """

    def __init__(self, folder: str | os.PathLike, task: object) -> None:
        """Opens the ledger of a task, or begins it.

        Args:
          folder: of the ledger alone: what another task left there is deleted, which is told.
          task: whatever its results follow from, in values that JSON knows.

        Raises:
          UserError: the folder cannot be written, or holds something else.
        """
        self._folder = Path(folder)
        description = json.dumps([_FORMAT, task], sort_keys=True)
        path = self._folder / _TASK
        try:
            if path.exists() and path.read_bytes() != description.encode():
                warnings.warn(f"{folder} is of another task: it begins anew", stacklevel=2)
                self.close()
            elif self._folder.exists() and not path.exists() and self._is_used():
                raise UserError(f"{folder} is no ledger and not empty: give another folder")
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(path, description.encode())
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror})") from None

    def __getitem__(self, name: str) -> Record:
        """Returns a record; reading it to its end verifies the checksum of each array."""
        try:
            with self._path(name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, EOFError, ValueError, BadZipFile):
            raise KeyError(name) from None

    def __setitem__(self, name: str, record: Record) -> None:
        """Writes a record in the place of an earlier one."""
        with written_whole(self._path(name)) as path, path.open("wb") as file:
            np.savez(file, allow_pickle=False, **record)

    def __delitem__(self, name: str) -> None:
        """Deletes a record."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        """Yields the names of the records."""
        return (unquote(path.stem) for path in sorted(self._folder.glob("[!.]*.npz")))

    def __len__(self) -> int:
        """Returns how many there are."""
        return sum(1 for _ in self)

    def close(self) -> None:
        """Deletes the ledger: the task is done."""
        # The description goes last: without it the rest would be taken for a folder of others.
        for pattern in ("[!.]*.npz", "[!.]*.partial", _TASK):
            for path in self._folder.glob(pattern):
                path.unlink()
        with suppress(OSError):  # not empty: files of others stay
            self._folder.rmdir()

    def _is_used(self) -> bool:
        """Returns whether the folder holds more than what a file manager leaves in any folder."""
        return any(
            not path.name.startswith(".") and path.name not in _FILE_MANAGERS
            for path in self._folder.iterdir()
        )

    def _path(self, name: str) -> Path:
        quoted = quote(name, safe="")
        if quoted.startswith("."):  # no record is a hidden file: those are a file manager's
            quoted = f"%2E{quoted[1:]}"
        return self._folder / f"{quoted}.npz"


class SharedLedger(dict[str, Record]):
    """The ledger of several processes: all go on from what was in it, the first writes it down."""

    def __init__(self, records: Mapping[str, Record], disk: DiskLedger | None) -> None:
        """Holds the records that all processes were told of; `disk` is that of the first."""
        super().__init__(records)
        self._disk = disk

    def __setitem__(self, name: str, record: Record) -> None:
        """Keeps a record."""
        super().__setitem__(name, record)
        if self._disk is not None:
            self._disk[name] = record

    def __delitem__(self, name: str) -> None:
        """Deletes a record."""
        super().__delitem__(name)
        if self._disk is not None:
            self._disk.pop(name, None)

    def close(self) -> None:
        """Deletes the ledger on disk: the task is done."""
        if self._disk is not None:
            self._disk.close()


def open_ledger(folder: Path, task: object) -> DiskLedger | SharedLedger:
    """Opens the ledger of a task, or begins it, in one process or in several."""
    if jax.process_count() == 1:
        return DiskLedger(folder, task)
    disk = DiskLedger(folder, task) if is_first() else None

    def readable() -> dict[str, Record]:
        if disk is None:
            return {}
        return {name: record for name in disk if (record := disk.get(name)) is not None}

    return SharedLedger(from_first(readable), disk)


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as partial:
        partial.write_bytes(content)
