"""The terminal: the table that ends a run, and output that a closed pipe does not interrupt."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxadv import entries, formats

# Replaces what an encoding lacks, instead of raising an error.
_SUBSTITUTE = "jaxadv.substitute"
_SUBSTITUTES = {
    "\N{INFINITY}": "inf",
    "\N{EN DASH}": "-",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{LATIN SMALL LETTER E WITH ACUTE}": "e",
}
_NO_READER = (errno.EPIPE, errno.EIO)  # a closed pipe, a terminal that is gone


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(char, ascii(char)[1:-1]) for char in lacking), error.end


codecs.register_error(_SUBSTITUTE, _substitute)


class _Stream(io.FileIO):
    """An output that discards what is written once nobody reads it."""

    def __init__(self, replaced: IO[str]) -> None:
        super().__init__(replaced.fileno(), "w", closefd=False)
        self._replaced = replaced  # it would close the descriptor when it is deleted

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER:
                raise
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
        return len(data)


def protect_output() -> None:
    """Makes printing to a closed pipe, or in an encoding that lacks a character, raise no error.

    The results of hours must not depend on who reads the output.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as in `run.py >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        stream.flush()
        protected = io.TextIOWrapper(
            io.BufferedWriter(_Stream(stream)),
            encoding=stream.encoding,
            errors=_SUBSTITUTE,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, protected)


def show(evaluation: dict[str, Any]) -> None:
    """Prints the table that ends a run, in characters that the terminal has.

    Args:
      evaluation: content of `evaluation.json`.
    """
    console = Console()
    console.print(table(evaluation, console.encoding))


def table(evaluation: dict[str, Any], encoding: str = "utf-8") -> Table:
    """Returns the table that ends a run in the terminal.

    Args:
      evaluation: content of `evaluation.json`.
      encoding: of the terminal; the columns would not align if it lacked a character.
    """
    checkpoint = evaluation["checkpoint"]

    def text(cell: str) -> Text:
        return Text(cell.encode(encoding, _SUBSTITUTE).decode(encoding))

    def add_row(*cells: str) -> None:
        rows.add_row(*map(text, cells))

    rows = Table(
        title=text(
            f"{evaluation['model']} on {evaluation['dataset']}, "
            f"{checkpoint['which']} checkpoint (epoch {checkpoint['epoch']}), n = {evaluation['n']}"
        )
    )
    rows.add_column("attack")
    rows.add_column("norm")
    passes = ["one pass", "majority"] if evaluation.get("stochastic") else []
    for heading in ("eps", "accuracy", "95 % interval", "seconds", *passes):
        rows.add_column(heading, justify="right")
    clean = evaluation["clean"]
    add_row(
        "clean",
        "",
        "",
        formats.percent(clean["accuracy"]),
        formats.interval(clean["ci95"]),
        "",
        *_passes(clean),
    )
    groups = {**entries.by_name(evaluation["attacks"]), **entries.worst_cases(evaluation)}
    for name, group in groups.items():
        rows.add_section()
        for entry in group:
            add_row(
                name,
                formats.norm(entry["norm"]),
                formats.eps(entry["eps"]),
                formats.percent(entry["accuracy"]),
                formats.interval(entry["ci95"]),
                f"{entry['seconds']:.1f}" if "seconds" in entry else "",
                *_passes(entry),
            )
            for part in _parts(entry):
                add_row(*part)
    rows.add_section()
    for name, (score, num_radii) in entries.scores(evaluation).items():
        add_row(f"{name}, aggregated", "", "", f"{score:.3f} of {num_radii}", "", "")
    return rows


def _parts(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row for each attack of a cascade, and one for the images that were exported."""
    stages: list[tuple[str, ...]] = [
        (f"  {stage['name']}", "", "", f"{stage['broken']:,} broken", "", f"{stage['seconds']:.1f}")
        for stage in entry.get("stages", [])
    ]
    if "uint8" not in entry:
        return stages
    rounded = entry["uint8"]
    undone = f"{rounded['lost']:,} undone"
    return [*stages, ("  as bytes", "", "", formats.percent(rounded["accuracy"]), undone, "")]


def _passes(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the accuracy of a single pass and of the majority vote, where there are several."""
    if "single_pass" not in entry:
        return ()
    single = entry["single_pass"]
    return (
        f"{100 * single['mean']:.2f} \N{PLUS-MINUS SIGN} {100 * single['std']:.2f}",
        formats.percent(entry["majority"]["accuracy"]),
    )
