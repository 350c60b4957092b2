"""Resume cache: intermediate results of a long evaluation, from which a new start resumes."""

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

from jaxadv.core.files import atomic_write
from jaxadv.core.types import UserError
from jaxadv.runs.distributed import from_first, is_first

Record = dict[str, np.ndarray]

_TASK = "task.json"
_FILE_MANAGER_FILES = ("Thumbs.db", "desktop.ini")  # of Windows; those of other systems are hidden
_FORMAT = 3  # increase it when older records can no longer be resumed from


class DiskCache(MutableMapping[str, Record]):
    """Named records of arrays in a folder; each record is one file that is written atomically.

    A record that cannot be read counts as missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     DiskCache(folder, "a task")["part/0"] = {"labels": np.arange(2)}
    ...     DiskCache(folder, "a task")["part/0"]["labels"].tolist()
    [0, 1]
    """

    def __init__(self, folder: str | os.PathLike, task: object) -> None:
        """Open the cache of a task, or create it.

        Args:
          folder: for this cache only. Records of another task are deleted with a warning.
          task: all that the results depend on, as values that JSON can represent.

        Raises:
          UserError: the folder cannot be written, or holds other files.
        """
        self._folder = Path(folder)
        description = json.dumps([_FORMAT, task], sort_keys=True)
        path = self._folder / _TASK
        try:
            if path.exists() and path.read_bytes() != description.encode():
                warnings.warn(
                    f"{folder} holds results of another task; they are deleted and computed again",
                    stacklevel=2,
                )
                self.close()
            elif self._folder.exists() and not path.exists() and self._has_other_files():
                raise UserError(
                    f"{folder} is not a resume cache and not empty: pass another folder"
                )
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                partial.write_bytes(description.encode())
        except OSError as error:
            raise UserError(f"cannot write {folder} ({error.strerror})") from None

    def __getitem__(self, name: str) -> Record:
        """Return a record. Reading the file verifies the checksum of each array."""
        try:
            with self._path(name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, EOFError, ValueError, BadZipFile):
            raise KeyError(name) from None

    def __setitem__(self, name: str, record: Record) -> None:
        """Write a record, or replace it."""
        with atomic_write(self._path(name)) as path, path.open("wb") as file:
            np.savez(file, allow_pickle=False, **record)

    def __delitem__(self, name: str) -> None:
        """Delete a record."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names of the records."""
        return (unquote(path.stem) for path in sorted(self._folder.glob("[!.]*.npz")))

    def __len__(self) -> int:
        """Return the number of records."""
        return sum(1 for _ in self)

    def close(self) -> None:
        """Delete the cache. Call it when the task is complete."""
        # The description is deleted last: without it, the rest would count as other files.
        for pattern in ("[!.]*.npz", "[!.]*.partial", _TASK):
            for path in self._folder.glob(pattern):
                path.unlink()
        with suppress(OSError):  # not empty: other files remain
            self._folder.rmdir()

    def _has_other_files(self) -> bool:
        """Return whether the folder has files besides those that file managers create."""
        return any(
            not path.name.startswith(".") and path.name not in _FILE_MANAGER_FILES
            for path in self._folder.iterdir()
        )

    def _path(self, name: str) -> Path:
        quoted = quote(name, safe="")
        if quoted.startswith("."):  # hidden files belong to file managers
            quoted = f"%2E{quoted[1:]}"
        return self._folder / f"{quoted}.npz"


class SharedCache(MutableMapping[str, Record]):
    """Resume cache of several processes: all hold the records, the first writes them to disk."""

    def __init__(self, records: Mapping[str, Record], disk: DiskCache | None) -> None:
        """Hold `records`, the same in all processes; `disk` is None except in the first."""
        self._records, self._disk = dict(records), disk

    def __getitem__(self, name: str) -> Record:
        """Return a record."""
        return self._records[name]

    def __setitem__(self, name: str, record: Record) -> None:
        """Write a record, or replace it."""
        self._records[name] = record
        if self._disk is not None:
            self._disk[name] = record

    def __delitem__(self, name: str) -> None:
        """Delete a record."""
        del self._records[name]
        if self._disk is not None:
            self._disk.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names of the records."""
        return iter(self._records)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    def close(self) -> None:
        """Delete the cache on disk. Call it when the task is complete."""
        if self._disk is not None:
            self._disk.close()


def open_resume_cache(workdir: Path, suffix: str, task: object) -> DiskCache | SharedCache:
    """Open the folder `resume_cache<suffix>` of a workdir, in one process or in several.

    Earlier versions named the folder `ledger<suffix>`; such a folder is renamed.

    Args:
      workdir: of the evaluation.
      suffix: of the evaluation's file names, such as "_last".
      task: all that the results depend on, see `DiskCache`.
    """
    folder, old_folder = workdir / f"resume_cache{suffix}", workdir / f"ledger{suffix}"
    if is_first() and old_folder.exists() and not folder.exists():
        with suppress(OSError):  # read-only: `DiskCache` raises an error
            old_folder.rename(folder)
    if jax.process_count() == 1:
        return DiskCache(folder, task)
    disk = DiskCache(folder, task) if is_first() else None

    def readable_records() -> dict[str, Record]:
        if disk is None:
            return {}
        return {name: record for name in disk if (record := disk.get(name)) is not None}

    return SharedCache(from_first(readable_records), disk)
