"""The table of an experiment: for each arm what the study has, and what we found of it."""

import statistics
from collections.abc import Mapping, Set
from typing import NamedTuple

from jaxadv.study.claims import NOT_RUN
from jaxadv.study.evidence import AS_THERE, SCORE, Entry, Found

_RIGHT = "judged right"


class Cell(NamedTuple):
    """A figure as the table shows it, and what stands below it."""

    value: str = ""
    note: str = ""  # its interval, or how seeds differ


def arm_rows(
    label: str,
    headings: list[str],
    study: Mapping[str, Mapping[str, float]],
    found: Found,
    told: Set[tuple[str, str]],
    planned: bool,
) -> list[tuple[str, list[Cell]]]:
    """Returns the rows of an arm: what is in them, and their cells.

    Args:
      label: of the arm.
      headings: of the columns.
      study: the study's figures, by label and heading.
      found: ours.
      told: labels and headings where ours, judged as there, is told apart from the study's.
      planned: whether there is to be something of ours.
    """
    rows = []
    if label in study:
        rows.append(("the study", _printed(study[label], headings)))
    there, ours = (_cells(found, label, headings, prefix) for prefix in (AS_THERE, ""))
    there = [
        cell._replace(value=f"\N{NOT EQUAL TO} {cell.value}") if (label, heading) in told else cell
        for cell, heading in zip(there, headings, strict=True)
    ]
    if any(cell.value for cell in there):
        rows.append(("judged as there" + _marks(found, label, headings, AS_THERE), there))
    if any(cell.value for cell in ours):
        rows.append((_RIGHT + _marks(found, label, headings), ours))
    elif planned:
        rows.append((NOT_RUN, ours))
    return rows


def _marks(found: Found, label: str, headings: list[str], prefix: str = "") -> str:
    shown = [found.get((label, prefix + heading), {}) for heading in headings]
    entries = [entry for by_seed in shown for entry in by_seed.values()]
    earlier = " †" if any(entry.earlier for entry in entries) else ""
    return earlier if all(entry.learned for entry in entries) else f"{earlier} ‡"


def _printed(row: Mapping[str, float], headings: list[str]) -> list[Cell]:
    return [Cell(f"{row[heading]:g}") if heading in row else Cell() for heading in headings]


def _cells(found: Found, label: str, headings: list[str], prefix: str = "") -> list[Cell]:
    """Returns the entries of a row; empty cells where there is none."""
    return [
        _score_cell(scores(found, label, prefix))
        if heading == SCORE
        else _cell(found.get((label, prefix + heading), {}))
        for heading in headings
    ]


def _cell(entries: Mapping[int, Entry]) -> Cell:
    """Returns one accuracy with its interval, or the mean of several seeds and their deviation."""
    cell = _score_cell({seed: entry.accuracy for seed, entry in entries.items()})
    if len(entries) != 1:
        return cell
    low, high = (100 * end for end in next(iter(entries.values())).ci95)
    return Cell(cell.value, f"{low:.1f}\N{EN DASH}{high:.1f}")


def _score_cell(scores: Mapping[int, float]) -> Cell:
    values = [100 * score for score in scores.values()]
    if not values:
        return Cell()
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return Cell(mean)
    return Cell(mean, f"\N{PLUS-MINUS SIGN} {statistics.stdev(values):.1f} [{len(values)}]")


def scores(found: Found, label: str, prefix: str = "") -> dict[int, float]:
    """Returns the sum of the accuracies at all eps, for each seed that has them all."""
    at_eps = [
        entries
        for (arm, heading), entries in found.items()
        if arm == label and heading.startswith(prefix + "0.")
    ]
    if not at_eps:
        return {}
    seeds = set.intersection(*(set(entries) for entries in at_eps))
    return {seed: sum(entries[seed].accuracy for entries in at_eps) for seed in sorted(seeds)}
