"""Atomic writing and reading of files, and the cache folder."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from jaxadv.core.types import UserError


def cache_folder() -> Path:
    """Return the folder for files that can be computed again, in the user's cache directory."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxadv"


def user_path(path: str) -> Path:
    """Expand `~` in a path.

    Raises:
      UserError: the home directory is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"the home directory in {path} is unknown: set HOME, or pass the full path"
        ) from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` atomically at the end of the block.

    If the program is killed inside the block, `path` is unchanged and a file
    `NAME.XXXXXXXX.partial` remains beside it, which may be deleted. Several programs can write the
    same file at the same time.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; return an empty dict if it does not exist.

    Raises:
      UserError: the file is damaged.
    """
    return _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")), {})


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON value per line; return an empty list if it does not exist.

    Raises:
      UserError: the file is damaged.
    """
    return _read(path, _json_lines, [])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file; return an empty dict if it does not exist.

    Raises:
      UserError: the file is damaged.
    """
    return _read(path, _arrays, {})


def _read(path: Path, parse: Callable[[Path], Any], missing: Any) -> Any:
    if not path.exists():
        return missing
    try:
        return parse(path)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it and run the evaluation again"
        ) from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
