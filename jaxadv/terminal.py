"""The table that ends a run in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxadv import entries, formats


def table(evaluation: dict[str, Any]) -> Table:
    """Returns the table that ends a run in the terminal.

    Args:
      evaluation: content of `evaluation.json`.
    """
    checkpoint = evaluation["checkpoint"]
    rows = Table(
        title=Text(
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
    rows.add_row(
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
            rows.add_row(
                Text(name),
                formats.norm(entry["norm"]),
                formats.eps(entry["eps"]),
                formats.percent(entry["accuracy"]),
                formats.interval(entry["ci95"]),
                f"{entry['seconds']:.1f}" if "seconds" in entry else "",
                *_passes(entry),
            )
            for part in _parts(entry):
                rows.add_row(*part)
    rows.add_section()
    for name, (score, num_radii) in entries.scores(evaluation).items():
        rows.add_row(Text(f"{name}, aggregated"), "", "", f"{score:.3f} of {num_radii}", "", "")
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
