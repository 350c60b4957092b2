"""Tables of the study's page: values of an experiment, its slides, the runs and warnings."""

import statistics
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from jaxadv.core.sample_quality import SampleEvaluation
from jaxadv.reports import formats
from jaxadv.study.costs import cost_in_gradients
from jaxadv.study.differences import Difference, mean
from jaxadv.study.measurements import BySeed, Measurements
from jaxadv.study.plan import Run, training_config
from jaxadv.study.records import Record
from jaxadv.study.specification import CORRECTED, ORIGINAL, Cell, Experiment
from jaxadv.study.verdicts import NOT_RUN


class TableCell(NamedTuple):
    """A value as the page shows it, and its interval or deviation."""

    value: str = ""
    note: str = ""


class Row(NamedTuple):
    """A row of an experiment's table: whose values it has, and its cells."""

    source: str
    cells: list[TableCell]


def rows_of_training(
    label: str,
    columns: list[str],
    slides: Mapping[str, Mapping[str, float]],
    measurements: Measurements,
    significant: Set[tuple[str, str]],
    has_training: bool,
) -> list[Row]:
    """Return the rows of a training: of the slides, of the original and the corrected protocol.

    Args:
      label: of the training.
      columns: of the table.
      slides: values of the slides by label and column.
      measurements: of the experiment.
      significant: labels and columns with a significant difference between our value under the
        original protocol and that of the slides.
      has_training: whether there is a training of ours.
    """
    rows = []
    if label in slides:
        rows.append(Row("slides", _slide_cells(slides[label], columns)))
    original, corrected = (
        _cells(measurements, label, columns, source) for source in (ORIGINAL, CORRECTED)
    )
    original = [
        cell._replace(value=f"\N{NOT EQUAL TO} {cell.value}")
        if (label, column) in significant
        else cell
        for cell, column in zip(original, columns, strict=True)
    ]
    if any(cell.value for cell in original):
        rows.append(Row(ORIGINAL + _marks(measurements, label, columns, ORIGINAL), original))
    if any(cell.value for cell in corrected):
        rows.append(Row(CORRECTED + _marks(measurements, label, columns, CORRECTED), corrected))
    elif has_training:
        rows.append(Row(NOT_RUN, corrected))
    return rows


def _marks(measurements: Measurements, label: str, columns: list[str], source: str) -> str:
    cells = [measurements.get(Cell(label, column, source), {}) for column in columns]
    found = [one for by_seed in cells for one in by_seed.values()]
    predates_study = " †" if any(one.predates_study for one in found) else ""
    return predates_study if all(one.learned for one in found) else f"{predates_study} ‡"


def _slide_cells(row: Mapping[str, float], columns: list[str]) -> list[TableCell]:
    return [TableCell(f"{row[column]:g}") if column in row else TableCell() for column in columns]


def _cells(
    measurements: Measurements, label: str, columns: list[str], source: str
) -> list[TableCell]:
    return [_accuracy_cell(measurements.get(Cell(label, column, source), {})) for column in columns]


def _accuracy_cell(by_seed: BySeed) -> TableCell:
    """Return one accuracy with its interval, or the mean of several seeds with their deviation."""
    # Seeds that did not train would hide the others.
    trained = [one for one in by_seed.values() if one.learned] or list(by_seed.values())
    if not trained:
        return TableCell()
    shown = [100 * one.accuracy for one in trained]
    value = f"{statistics.mean(shown):.1f}"
    if len(shown) > 1:
        count = f"{len(shown)}" + (f" of {len(by_seed)}" if len(shown) < len(by_seed) else "")
        return TableCell(value, f"\N{PLUS-MINUS SIGN} {statistics.stdev(shown):.1f} [{count}]")
    low, high = (100 * end for end in trained[0].ci95)
    return TableCell(value, f"{low:.1f}\N{EN DASH}{high:.1f}")


def runs_table(
    plan: Mapping[str, Run],
    records: Mapping[str, Record],
    estimates: Mapping[str, Any],
    failures: Mapping[str, str],
) -> list[dict[str, str]]:
    """Return a row for each run: its name, state, cost and provenance.

    Args:
      plan: all runs.
      records: of the runs that are done.
      estimates: content of costs.json, which a dry run writes; may be empty.
      failures: error messages by the name of the run.
    """
    return [
        _run_row(run, plan, records.get(name), estimates.get("costs", {}), failures.get(name))
        for name, run in plan.items()
    ]


def _run_row(
    run: Run,
    plan: Mapping[str, Run],
    record: Record | None,
    estimates: Mapping[str, Any],
    failure: str | None,
) -> dict[str, str]:
    row = dict.fromkeys(("gradients", "time", "commit", "date", "device", "command", "note"), "")
    row["name"] = run.name
    gradients = 0
    if run.config.mode in ("train", "evaluate"):
        gradients, _ = cost_in_gradients(run, training_config(run, plan))
        row["gradients"] = f"{gradients:.1e}"
    if record is None:
        row["state"] = f"failed: {failure}" if failure else NOT_RUN
        estimate = estimates.get(run.name)
        if estimate and estimate["gradients"] == gradients:
            row["time"] = f"about {formats.duration(estimate['seconds'])}"
            row["device"] = estimate["device"]
        return row
    row["state"] = "done"
    row["time"] = formats.duration(record.seconds)
    row["note"] = record.note
    for source in record.provenances[:1]:
        modified = ", modified" if source["dirty"] else ""
        row["commit"] = f"{source['commit']}{modified}"
        row["date"] = source["date"][:10]
        row["device"] = source["device"]
        row["command"] = source["command"]
    return row


def describe_gan(records: Mapping[str, Record], scale: str) -> str:
    """Return a description of the GAN that made the synthetic images, to follow "images".

    Args:
      records: of the runs that are done.
      scale: of the study; below "full" the GAN is a small one.
    """
    name = "of a GAN" if scale == "full" else "of a small GAN"
    record = records.get("gan/0/synthetic")
    if record is None or record.manifest is None:
        return name
    share = SampleEvaluation.from_json(record.manifest["judged"]).samples.accuracy
    return f"{name}, whose samples the evaluator recognises at {100 * share:.1f} %,"


def describe_overestimation(records: Mapping[str, Record]) -> str:
    """Return by how much PGD-40 overestimates robustness, on the images of AutoAttack."""
    gaps = []
    for name, record in records.items():
        if name.endswith("/autoattack") and record.evaluation:
            found = {entry.attack: entry.accuracy for entry in record.evaluation.attacks}
            gaps.append(100 * (found["pgd"] - found["autoattack"]))
    if not gaps:
        return ""
    return (
        f"PGD-40 overestimates robustness: on the same images, AutoAttack leaves {min(gaps):.1f} "
        f"to {max(gaps):.1f} points fewer in the {len(gaps)} models that both attack."
    )


def describe_samples(
    trainings: Iterable[str], plan: Mapping[str, Run], records: Mapping[str, Record]
) -> list[str]:
    """Return a sentence on each set of synthetic images in the trainings of an experiment."""
    runs = [plan[f"{name}/0"] for name in trainings if name and f"{name}/0" in records]
    sources = [run.dependency for run in runs if run.config.mode == "train" and run.dependency]
    sentences = []
    for name in dict.fromkeys(sources):
        if (record := records.get(name)) and record.manifest:
            evaluation = SampleEvaluation.from_json(record.manifest["judged"])
            samples = evaluation.samples
            sentences.append(
                f"A classifier with {100 * evaluation.evaluator_accuracy:.1f} % accuracy on test "
                f"images assigns {100 * samples.accuracy:.1f} % of the synthetic images to their "
                f"class. In its features their Fréchet distance is {samples.frechet_distance:.1f}, "
                f"their precision {samples.precision:.2f} and their recall {samples.recall:.2f}."
            )
    return sentences


class Comparison(NamedTuple):
    """How the values of the slides in one experiment compare with ours.

    Attributes:
      title: of the experiment.
      note: in what our trainings differ.
      num_compared: number of values that we have too, under the original protocol.
      num_different: number of these that differ significantly.
      different: the values that differ significantly, as text.
      missing: labels of the trainings that were not run.
    """

    title: str
    note: str
    num_compared: int
    num_different: int
    different: list[str]
    missing: list[str]


def compare_with_slides(
    experiment: Experiment,
    measurements: Measurements,
    differences: Mapping[tuple[str, str], Difference],
) -> Comparison:
    """Return how the values of the slides compare with ours under the original protocol.

    Args:
      experiment: with values of the slides.
      measurements: of the experiment.
      differences: ours minus the slides', by label and column.
    """
    different: dict[str, list[str]] = {}
    for (label, column), difference in differences.items():
        if difference.is_significant:
            slide = experiment.slides[label][column]
            ours = 100 * mean(measurements[Cell(label, column, ORIGINAL)])
            different.setdefault(label, []).append(f"{column}: {slide:g}, ours {ours:.1f}")
    measured = {cell.label for cell, one in measurements.items() if cell.source == ORIGINAL and one}
    return Comparison(
        experiment.title,
        experiment.slides_note,
        len(differences),
        sum(map(len, different.values())),
        [f"{label} ({'; '.join(values)})" for label, values in different.items()],
        [name for name in experiment.slides if experiment.trainings[name] and name not in measured],
    )


def warnings_of_runs(records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Return the warnings of the evaluations of each run, by its name.

    Warnings that differ only in the attack become one, which names all attacks.
    """
    found = {}
    for name, record in records.items():
        evaluations = [one for one in (record.evaluation, record.evaluation_last) if one]
        lines = [line for evaluation in evaluations for line in evaluation.warnings]
        if lines:
            found[name] = _merge_warnings(lines)
    return found


def _merge_warnings(lines: Iterable[str]) -> list[str]:
    attacks: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):
        attack, _, rest = line.partition(" ")
        if "/" in attack:  # such as "pgd40/0.03"
            attacks.setdefault(rest, []).append(attack)
        else:
            attacks[line] = []
    return [" ".join((", ".join(names), text)).strip() for text, names in attacks.items()]
