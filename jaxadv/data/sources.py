"""Sources of data as configs name them, such as `cifar10` or `folder:DIR`."""

import re
from typing import NamedTuple

from jaxadv.core.files import user_path
from jaxadv.core.types import UserError

_KINDS_OF_PATHS = ("folder", "npz", "huggingface")
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/\w[\w.\-]*)?(:\d+\.\d+\.\d+)?")


class Source(NamedTuple):
    """A parsed source.

    Attributes:
      kind: "digits", "tfds", "folder", "npz" or "huggingface".
      location: name of the TFDS data set, or path; "" for the digits.
    """

    kind: str
    location: str


def parse_source(source: str) -> Source:
    """Return the kind and the location of a source, with `~` expanded in a path.

    >>> parse_source("imagenette/160px-v2:1.0.0")
    Source(kind='tfds', location='imagenette/160px-v2:1.0.0')
    >>> parse_source("folder:data/flowers")
    Source(kind='folder', location='data/flowers')

    Raises:
      UserError: it is neither `digits`, nor a name of TFDS, nor a known prefix with a path.
    """
    kind, _, path = str(source).partition(":")
    if kind in _KINDS_OF_PATHS and path:
        return Source(kind, str(user_path(path)))
    if source == "digits":
        return Source("digits", "")
    if kind in _KINDS_OF_PATHS or not _TFDS_NAME.fullmatch(str(source)):
        raise UserError(
            f"config.data.source is {source!r}: use digits, a name of TFDS such as cifar10 or "
            "imagenette/160px-v2:1.0.0, folder:DIR, npz:FILE or huggingface:DIR"
        )
    return Source("tfds", str(source))


def expand_source(source: str) -> str:
    """Return a source with `~` expanded in its path.

    Raises:
      UserError: the source is invalid, or the home directory is unknown.
    """
    kind, location = parse_source(source)
    return f"{kind}:{location}" if kind in _KINDS_OF_PATHS else source


def source_family(source: str) -> str:
    """Return what two names of the same data share: the kind of a path, or the name in TFDS.

    Fingerprints tell apart paths of one kind, and versions and configs of one TFDS data set.

    >>> source_family("folder:/home/me/flowers"), source_family("cifar10:3.0.2")
    ('folder', 'cifar10')
    """
    return re.split("[:/]", source)[0]
