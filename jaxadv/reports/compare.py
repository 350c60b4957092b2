"""The comparison of two runs: one self-contained HTML page."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.core.example_results import ExampleResults
from jaxadv.core.files import read_arrays, read_json, read_json_lines
from jaxadv.core.results import Accuracy, AttackEntry, Evaluation
from jaxadv.core.types import UserError
from jaxadv.reports import formats, plots
from jaxadv.reports.report import settings, template

_Z = 1.959964  # of a 95 % interval of the normal distribution
_UNCOMPARED_KEYS = ("dataset",)  # of config.json: the record of the data set


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
    arguments. If both evaluated the same images, the interval of a difference is that of pairs.

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
    first, second = map(_read_run, map(Path, workdirs))
    of_data = [(run.evaluation.dataset, run.evaluation.split) for run in (first, second)]
    if of_data[0] != of_data[1]:
        raise UserError(
            f"{first.name} was evaluated on {' '.join(of_data[0])} and {second.name} on "
            f"{' '.join(of_data[1])}: their accuracies cannot be compared"
        )
    html = template("compare.html").render(
        runs=(first, second),
        rows=list(_rows(first, second)),
        left_out=_left_out(first.evaluation, second.evaluation),
        values=_different_values(first.config, second.config),
        is_paired=_same_images(first.examples, second.examples),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _read_run(folder: Path) -> Run:
    if not folder.is_dir():
        raise UserError(f"no workdir {folder}: give the folder of a run")
    evaluation = read_json(folder / "evaluation.json")
    if not evaluation:
        raise UserError(f"{folder} has no evaluation.json: the run is not evaluated yet")
    arrays = read_arrays(folder / "examples.npz")
    return Run(
        name=folder.resolve().name,
        evaluation=Evaluation.from_json(evaluation),
        examples=ExampleResults.from_arrays(arrays) if arrays else None,
        config=read_json(folder / "config.json") or {},
        metrics=read_json_lines(folder / "metrics.jsonl"),
    )


def _rows(first: Run, second: Run) -> Iterator[dict[str, Any]]:
    """Return a row for each accuracy that both runs have."""

    def row(
        label: str, ball: Any, one: Accuracy, other: Accuracy, correct: Sequence[Any]
    ) -> dict[str, Any]:
        pair = correct if all(array is not None for array in correct) and paired else None
        low, high = difference_interval(one, other, pair)
        return {
            "label": label, "norm": getattr(ball, "norm", ""), "eps": getattr(ball, "eps", None),
            "accuracies": (one, other), "difference": other.accuracy - one.accuracy,
            "interval": (low, high), "is_significant": low > 0 or high < 0,
        }  # fmt: skip

    paired = _same_images(first.examples, second.examples)
    examples = (first.examples, second.examples)
    clean = [found and found.predictions == found.labels for found in examples]
    yield row("clean", None, first.evaluation.clean, second.evaluation.clean, clean)
    for one, other in _common_attacks(first.evaluation, second.evaluation):
        correct = [found and _robust(found, (one.key,)) for found in examples]
        yield row(one.name, one, one, other, correct)
    worst = {(case.norm, case.eps): case for case in second.evaluation.worst_case}
    for case in first.evaluation.worst_case:
        other_case = worst.get((case.norm, case.eps))
        if other_case and set(case.attacks) == set(other_case.attacks):
            correct = [found and _robust(found, case.attacks) for found in examples]
            yield row("worst case", case, case, other_case, correct)


def _robust(examples: ExampleResults, keys: Sequence[str]) -> np.ndarray | None:
    """Return which examples are robust to all attacks, None if a result is not stored."""
    if not keys or any(key not in examples.attacks for key in keys):
        return None
    return np.logical_and.reduce([examples.attacks[key].robust for key in keys])


def difference_interval(
    one: Accuracy, other: Accuracy, correct: Sequence[np.ndarray] | None
) -> tuple[float, float]:
    """Return the 95 % interval of the second accuracy minus the first.

    >>> one, other = Accuracy(accuracy=0.5, ci95=(0.4, 0.6), n=100), Accuracy(
    ...     accuracy=0.7, ci95=(0.6, 0.78), n=100)
    >>> [round(end, 3) for end in difference_interval(one, other, None)]
    [0.068, 0.332]

    Args:
      one: accuracy of the first run.
      other: accuracy of the second run.
      correct: which examples each run classifies correctly, if the images are the same; else None,
        and the accuracies count as independent.
    """
    if correct is None:
        variance = sum(a.accuracy * (1 - a.accuracy) / a.n for a in (one, other))
    else:
        variance = np.var(correct[1].astype(float) - correct[0]) / len(correct[0])
    difference, half = other.accuracy - one.accuracy, _Z * math.sqrt(variance)
    return difference - half, difference + half


def _common_attacks(
    first: Evaluation, second: Evaluation
) -> Iterator[tuple[AttackEntry, AttackEntry]]:
    others = {entry.key: entry for entry in second.attacks}
    for entry in first.attacks:
        other = others.get(entry.key)
        if other and (other.norm, settings(other)) == (entry.norm, settings(entry)):
            yield entry, other


def _left_out(first: Evaluation, second: Evaluation) -> list[str]:
    """Return the attacks that are not in both evaluations with the same arguments."""
    common = {one.key for one, _ in _common_attacks(first, second)}
    keys = [entry.key for evaluation in (first, second) for entry in evaluation.attacks]
    return sorted({key for key in keys if key not in common})


def _same_images(first: ExampleResults | None, second: ExampleResults | None) -> bool:
    """Return whether two evaluations have the same examples, by their labels and samples."""
    if first is None or second is None:
        return False
    return (
        np.array_equal(first.labels, second.labels)
        and np.shape(first.sample_images)[1:] == np.shape(second.sample_images)[1:]
    )


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
