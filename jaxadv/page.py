"""What every report is made of: the files of a run, and a template that extends page.html."""

import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from jaxadv import formats
from jaxadv.types import UserError


def template(name: str) -> jinja2.Template:
    """Returns a template of this package; it knows the functions of `jaxadv.formats` as filters."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxadv", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (formats.percent, formats.interval, formats.norm, formats.eps, formats.duration)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file; nothing where there is none.

    Raises:
      UserError: it is damaged; so for the other files.
    """
    return _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")), {})


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the values of a file with one on each line; none where there is none."""
    return _read(path, _json_lines, [])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz`; none where there is none."""
    return _read(path, _arrays, {})


def _read(path: Path, parse: Callable[[Path], Any], missing: Any) -> Any:
    if not path.exists():
        return missing
    try:
        return parse(path)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): evaluate again") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
