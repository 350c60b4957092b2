"""The comparison of two runs: one self-contained HTML page."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.core.example_results import ExampleResults
from jaxadv.core.paired_test import mcnemar
from jaxadv.core.results import Accuracy, AttackEntry, Evaluation
from jaxadv.core.types import UserError
from jaxadv.reports import formats, plots
from jaxadv.reports.report import read_run, template

_Z = 1.959964  # of a 95 % interval of the normal distribution
_LEVEL = 0.05  # of McNemar's test
_UNCOMPARED_KEYS = ("dataset",)  # of config.json: the record of the data set

Pairs = Mapping[str, tuple[AttackEntry, AttackEntry]]
"""The same attack on both models, by its key."""


@dataclass(frozen=True)
class Run:
    """What the workdir of a run holds."""

    name: str
    evaluation: Evaluation
    examples: ExampleResults | None
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def train_seconds(self) -> float:
        """Return the duration of the training."""
        return sum(line["seconds"] for line in self.metrics)

    @property
    def training(self) -> str:
        """Return the plot of the training curves, or nothing without a training."""
        if not self.metrics:
            return ""
        checkpoint = self.evaluation.checkpoint
        return plots.training_curves(self.metrics, checkpoint.epoch if checkpoint else None)


def write_comparison(workdirs: Sequence[str | os.PathLike], path: Path) -> Path:
    """Write the page that compares two runs, side by side.

    Accuracies under attack are compared where both runs used the same attack with the same
    arguments. On the same images a difference is significant by McNemar's exact test, otherwise if
    its interval excludes zero.

    Args:
      workdirs: of the two runs, each with `evaluation.json`.
      path: of the page.

    Returns:
      The path.

    Raises:
      UserError: there are not two runs, one is not evaluated, or they have different data.
    """
    if len(workdirs) != 2:
        raise UserError(f"{len(workdirs)} runs are given: a comparison takes two")
    folders = [Path(workdir).resolve() for workdir in workdirs]
    first, second = map(_read_run, folders, _distinct_names(folders))
    of_data = [(run.evaluation.dataset, run.evaluation.split) for run in (first, second)]
    if of_data[0] != of_data[1]:
        raise UserError(
            f"{first.name} was evaluated on {' '.join(of_data[0])} and {second.name} on "
            f"{' '.join(of_data[1])}: their accuracies cannot be compared"
        )
    is_paired = _same_images(first, second)
    common = _common_attacks(first.evaluation, second.evaluation)
    html = template("compare.html").render(
        runs=(first, second),
        rows=list(_rows(first, second, common, is_paired)),
        left_out=_left_out(first.evaluation, second.evaluation, common),
        values=_different_values(first.config, second.config),
        is_paired=is_paired,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of two folders, with as many parent folders as they need to differ.

    >>> _distinct_names([Path("a/evaluate"), Path("b/evaluate")])
    ['a/evaluate', 'b/evaluate']
    """
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if names[0] != names[1]:
            break
    return names


def _read_run(folder: Path, name: str) -> Run:
    files = read_run(folder)
    if files.evaluation is None:
        raise UserError(f"{folder} has no evaluation.json: the run is not evaluated yet")
    return Run(name, files.evaluation, files.examples, files.config, files.metrics)


def _rows(first: Run, second: Run, common: Pairs, is_paired: bool) -> Iterator[dict[str, Any]]:
    """Return a row for each accuracy that both runs have."""

    def row(
        label: str, ball: Any, one: Accuracy, other: Accuracy, keys: Sequence[str] | None
    ) -> dict[str, Any]:
        pair = _correct(first, second, keys) if is_paired else None
        low, high = difference_interval(one, other, pair)
        is_significant = mcnemar(*pair) < _LEVEL if pair else low > 0 or high < 0
        return {
            "label": label, "norm": getattr(ball, "norm", ""), "eps": getattr(ball, "eps", None),
            "accuracies": (one, other), "difference": other.accuracy - one.accuracy,
            "interval": (low, high), "is_significant": is_significant,
        }  # fmt: skip

    yield row("clean", None, first.evaluation.clean, second.evaluation.clean, ())
    for one, other in common.values():
        yield row(one.name, one, one, other, [one.key])
    worst = {(case.norm, case.eps): case for case in second.evaluation.worst_case}
    for case in first.evaluation.worst_case:
        other_case = worst.get((case.norm, case.eps))
        if other_case and set(case.attacks) == set(other_case.attacks) <= set(common):
            yield row("worst case", case, case, other_case, case.attacks or None)


def _correct(
    first: Run, second: Run, keys: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return which examples each run classifies correctly, clean and under some attacks.

    None if a result is not stored, or if the attacks are not known.
    """
    found = []
    for examples in (first.examples, second.examples):
        if keys is None or examples is None or any(key not in examples.attacks for key in keys):
            return None
        arrays = [examples.attacks[key].robust for key in keys]
        if len(arrays) != 1:  # clean, or a worst case, which is clean as well
            arrays.append(examples.predictions == examples.labels)
        found.append(np.logical_and.reduce(arrays))
    return found[0], found[1]


def difference_interval(
    one: Accuracy, other: Accuracy, correct: tuple[np.ndarray, np.ndarray] | None
) -> tuple[float, float]:
    """Return the 95 % interval of the second accuracy minus the first.

    On the same images it is that of Agresti & Min (2005), otherwise the score interval of Newcombe
    (1998, method 10). Both keep their level also for few or no differences.

    >>> one, other = Accuracy(accuracy=0.5, ci95=(0.4, 0.6), n=100), Accuracy(
    ...     accuracy=0.7, ci95=(0.6, 0.78), n=100)
    >>> [round(end, 3) for end in difference_interval(one, other, None)]
    [0.059, 0.328]

    Args:
      one: accuracy of the first run.
      other: accuracy of the second run.
      correct: which examples each run classifies correctly, if the images are the same; else None,
        and the accuracies count as independent.
    """
    if correct is None:
        difference = other.accuracy - one.accuracy
        down = math.hypot(other.accuracy - other.ci95[0], one.ci95[1] - one.accuracy)
        up = math.hypot(other.ci95[1] - other.accuracy, one.accuracy - one.ci95[0])
        return difference - down, difference + up
    gained = int((correct[1] & ~correct[0]).sum()) + 0.5
    lost = int((correct[0] & ~correct[1]).sum()) + 0.5
    n = len(correct[0]) + 2
    difference = (gained - lost) / n
    half = _Z * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return difference - half, difference + half


def _common_attacks(first: Evaluation, second: Evaluation) -> Pairs:
    """Return the attacks that both evaluations have with the same arguments, by their keys."""
    others = {entry.key: entry for entry in second.attacks}
    return {
        entry.key: (entry, others[entry.key])
        for entry in first.attacks
        if entry.key in others and _arguments(entry) == _arguments(others[entry.key])
    }


def _arguments(entry: AttackEntry) -> tuple[Any, ...]:
    return entry.attack, entry.norm, entry.eps, entry.noise, entry.arguments


def _left_out(first: Evaluation, second: Evaluation, common: Pairs) -> list[str]:
    """Return the attacks that are not in both evaluations with the same arguments."""
    keys = [entry.key for evaluation in (first, second) for entry in evaluation.attacks]
    return sorted({key for key in keys if key not in common})


def _same_images(first: Run, second: Run) -> bool:
    """Return whether two evaluations have the same examples: labels, and stored images."""
    one, other = first.examples, second.examples
    if one is None or other is None or not np.array_equal(one.labels, other.labels):
        return False
    shared, of_one, of_other = np.intersect1d(one.sample_ids, other.sample_ids, return_indices=True)
    prints = [run.config.get("dataset", {}).get("fingerprint") for run in (first, second)]
    if not len(shared):
        return prints[0] is not None and prints[0] == prints[1]
    return np.array_equal(one.sample_images[of_one], other.sample_images[of_other])


def _different_values(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return the keys whose values differ between two configs, with both values."""
    flat = [dict(_flatten(config)) for config in (first, second)]
    keys = [key for key in {**flat[0], **flat[1]} if key.split(".")[0] not in _UNCOMPARED_KEYS]
    first_values, second_values = (
        [str(one.get(key, formats.MISSING)) for key in keys] for one in flat
    )
    rows = zip(keys, first_values, second_values, strict=True)
    return [(key, one, other) for key, one, other in rows if one != other]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
