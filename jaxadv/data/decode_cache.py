"""Cache of decoded images: one `.npz` for each set of files and each image format."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from absl import logging

from jaxadv.core.files import atomic_write, cache_folder
from jaxadv.data.images import ImageFormat
from jaxadv.data.mapped_arrays import read_array_header

_PREFIX = "jaxadv-cache-"


def cache_path(
    files: Iterable[Path], image_format: ImageFormat, beside: Path | None = None
) -> Path:
    """Return the path of the cache of some files, which changes with any of them.

    Args:
      files: path, size and time of modification of each are part of the name.
      image_format: of the decoded images.
      beside: folder for the cache if it can be written; otherwise, and for None, the cache is in
        the user's cache folder.
    """
    files = sorted(file.absolute() for file in files if not file.name.startswith(_PREFIX))
    stats = [file.stat() for file in files]
    identity = [
        (str(f), stat.st_size, stat.st_mtime_ns) for f, stat in zip(files, stats, strict=True)
    ]
    digest = hashlib.sha256(repr((identity, *image_format)).encode()).hexdigest()
    return (beside if beside and _is_writable(beside) else cache_folder()) / (
        f"{_PREFIX}{digest[:16]}.npz"
    )


def _is_writable(folder: Path) -> bool:
    # `os.access` allows root to write everywhere; the write bits are respected nevertheless.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def read_cache(path: Path) -> dict[str, Any] | None:
    """Return the arrays of a cache, or None if it is missing or damaged."""
    try:
        # Reading an array verifies its checksum in the file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as cache:
            return dict(cache)
    except (OSError, EOFError, ValueError, BadZipFile):
        return None


def cached_shape(path: Path, array: str) -> tuple[int, ...] | None:
    """Return the shape of a cached array without reading it, or None as `read_cache` does."""
    try:
        with ZipFile(path) as cache, cache.open(f"{array}.npy") as file:
            return read_array_header(file).shape
    except (OSError, EOFError, KeyError, ValueError, BadZipFile):
        return None


def write_cache(path: Path, arrays: dict[str, Any]) -> None:
    """Write a cache; a failure is logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logging.warning(
            "Could not cache the decoded images (%s); they will be decoded again on every start",
            error,
        )
