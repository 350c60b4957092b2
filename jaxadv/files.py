"""Files that are there whole or not at all, and the folder of those that may be lost."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from jaxadv.types import UserError


def cache_folder() -> Path:
    """Returns the folder of what can be made again, in the user's cache directory."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxadv"


def user_path(path: str) -> Path:
    """Returns a path that a user wrote, in which `~` is a home directory.

    Raises:
      UserError: that home directory is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"the home directory in {path} is not known: set HOME, or write the whole path"
        ) from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to, whose file takes the place of `path` once the block is left.

    A program that is killed on the way leaves at `path` what was there before, and beside it a file
    `NAME.XXXXXXXX.partial` that may be deleted. Two that write the same file at once do not disturb
    each other.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a file of JSON, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
