"""Entries of evaluation.json, grouped as a reader looks for them."""

from collections.abc import Mapping
from typing import Any

from jaxadv import formats

WORST_CASE = "worst case"


def by_name(attacks: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns the entries of each attack by ascending eps; `pgd40/0.03` belongs to `pgd40`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, entry in attacks.items():
        groups.setdefault(key.rsplit("/", 1)[0], []).append({**entry, "key": key})
    return {name: sorted(group, key=lambda entry: entry["eps"]) for name, group in groups.items()}


def worst_cases(evaluation: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns the worst cases of each norm by ascending eps."""
    groups = by_name(evaluation["worst_case"])
    one = len(groups) == 1
    return {
        WORST_CASE if one else f"{WORST_CASE}, {formats.norm(norm)}": entries
        for norm, entries in groups.items()
    }


def scores(evaluation: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Returns for each name, lowest first, its aggregated score and how many radii it sums."""
    groups = by_name(evaluation["attacks"])
    scores = sorted(evaluation["aggregated_score"].items(), key=lambda item: item[1])
    return {name: (score, len(groups[name])) for name, score in scores}
