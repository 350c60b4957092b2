"""Terminal output that survives closed pipes and encodings without some characters."""

import codecs
import errno
import io
import os
import sys
from typing import IO, Any

_REPLACE = "jaxadv.replace"  # name of the error handler for characters that an encoding lacks
_REPLACEMENTS = {
    "\N{INFINITY}": "inf",
    "\N{EN DASH}": "-",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{LATIN SMALL LETTER E WITH ACUTE}": "e",
}
_NO_READER = (errno.EPIPE, errno.EIO)  # a closed pipe, a terminal that was closed


def protect_output() -> None:
    """Make stdout and stderr ignore closed pipes and replace characters that cannot be encoded.

    A run of several hours must not fail because the reader of its output has gone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as in `run.py >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        stream.flush()
        protected = io.TextIOWrapper(
            io.BufferedWriter(_ProtectedFile(stream)),
            encoding=stream.encoding,
            errors=_REPLACE,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, protected)


def encodable(text: str, encoding: str) -> str:
    """Return the text with replacements for the characters that an encoding lacks.

    >>> encodable("L∞", "ascii")
    'Linf'
    """
    return text.encode(encoding, _REPLACE).decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_REPLACEMENTS.get(char, ascii(char)[1:-1]) for char in lacking), error.end


codecs.register_error(_REPLACE, _replace)


class _ProtectedFile(io.FileIO):
    """An output file that discards further writes once its reader has gone."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self._stream = stream  # kept, since deleting it would close the descriptor

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER:
                raise
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.fileno())
        os.close(devnull)
        return len(data)
