"""The page of the study: `index.html`, and `index.md` with the same tables and plots as files."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxadv.models.classifier import make_classifier
from jaxadv.reports.plots import standalone
from jaxadv.reports.report import template
from jaxadv.study import plots, records
from jaxadv.study.measurements import BySeed, Measurements, measure
from jaxadv.study.plan import Run
from jaxadv.study.plots import Curve, Point
from jaxadv.study.records import Record
from jaxadv.study.specification import CORRECTED, ORIGINAL, SCORE, Cell, Claim, Experiment
from jaxadv.study.tables import (
    describe_samples,
    rows_of_training,
    runs_table,
    scores,
    warnings_of_runs,
)
from jaxadv.study.verdicts import (
    COMMON,
    VERDICTS,
    SeedSpread,
    Verdict,
    assess,
    differences_from_slides,
    seed_spreads,
)

_AXES = {"eps": "eps", "queries": "queries per image"}


def write_page(
    experiments: Mapping[str, Experiment],
    plan: Mapping[str, Run],
    scale: str,
    results: Path,
    failures: Mapping[str, str],
) -> Path:
    """Write the page from the records of the runs, and from nothing else.

    Args:
      experiments: by name, in the order of the page.
      plan: all runs.
      scale: of the study: "smoke", "cpu" or "full".
      results: folder of the records and of the page.
      failures: error messages by the name of the run.

    Returns:
      The path of the page.
    """
    done = records.current_records(results, plan)
    measured = {name: measure(experiment, done) for name, experiment in experiments.items()}
    spreads = seed_spreads(measured.values())
    sections = [
        _section(experiments[name], measurements, spreads, plan)
        | {"samples": describe_samples(experiments[name].trainings.values(), plan, done)}
        for name, measurements in measured.items()
    ]
    verdicts = [claim for section in sections for claim in section["claims"]]
    content = {
        "scale": scale,
        "dataset": _dataset(done.values()),
        "sections": sections,
        "summary": _summarize(verdicts),
        "counts": Counter(verdict.word for _, verdict in verdicts),
        "runs": runs_table(plan, done, records.read_json_file(results / "costs.json"), failures),
        "warnings": warnings_of_runs(done),
        "spread": spreads.get(COMMON),
        **TEXTS,
    }
    _write_plots(sections, results / "figures")
    for name in ("index.html", "index.md"):
        text = template(name, "jaxadv.study").render(**content)
        (results / name).write_text(text, encoding="utf-8")
    return results / "index.html"


def _write_plots(sections: Iterable[Mapping[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for earlier in folder.glob(f"{section['name']}_*.svg"):
            earlier.unlink()
        for kind, plot in section["plots"].items():
            path = folder / f"{section['name']}_{kind}.svg"
            path.write_text(standalone(plot), encoding="utf-8")


def _dataset(done: Iterable[Record]) -> str:
    """Return the name of the data set in the evaluations."""
    return ", ".join(sorted({one.evaluation.dataset for one in done if one.evaluation}))


def _summarize(verdicts: Iterable[tuple[Claim, Verdict]]) -> dict[str, list[str]]:
    """Return the claims of the study by verdict."""
    claims: dict[str, list[str]] = {word: [] for word in VERDICTS}
    for claim, verdict in verdicts:
        if claim.origin.startswith("the study"):
            claims[verdict.word].append(claim.text)
    return {word: texts for word, texts in claims.items() if texts}


def _section(
    experiment: Experiment,
    measurements: Measurements,
    spreads: Mapping[str, SeedSpread],
    plan: Mapping[str, Run],
) -> dict[str, Any]:
    """Return what the templates show of an experiment."""
    columns = [one for one in experiment.columns if _has_values(one, experiment, measurements)]
    if columns and "eps" in experiment.plots:
        columns.append(SCORE)
    differences = differences_from_slides(measurements, spreads)
    significant = {key for key, one in differences.items() if one.is_significant}
    rows = {
        label: rows_of_training(
            label, columns, experiment.slides, measurements, significant, bool(training)
        )
        for label, training in experiment.trainings.items()
    }
    return {
        "name": experiment.name,
        "title": experiment.title,
        "text": experiment.text,
        "columns": columns,
        "rows": rows,
        "claims": [(claim, assess(claim, measurements, spreads)) for claim in experiment.claims],
        "has_slides": bool(experiment.slides),
        "has_original": any(
            row.source.startswith(ORIGINAL) for of_label in rows.values() for row in of_label
        ),
        "plots": _plots(experiment, measurements, plan),
        "num_compared": len(differences),
        "num_significant": len(significant),
    }


def _has_values(column: str, experiment: Experiment, measurements: Measurements) -> bool:
    """Return whether some row has a value in a column."""
    return any(
        column in experiment.slides.get(label, {}) or measurements[Cell(label, column)]
        for label in experiment.trainings
    )


def _plots(
    experiment: Experiment, measurements: Measurements, plan: Mapping[str, Run]
) -> dict[str, str]:
    """Return the plots of an experiment by kind; empty if there is nothing to plot."""
    columns, labels = experiment.columns, experiment.trainings
    if not any(measurements[Cell(label, column)] for label in labels for column in columns):
        return {}
    made = {}
    for kind in experiment.plots:
        if kind == "parameters":
            made[kind] = plots.over_parameters(_score_curves(experiment, measurements, plan))
            continue
        plotted = [column for column in columns if kind == "bars" or _is_number(column)]
        positions = {
            column: float(number if kind == "bars" else column)
            for number, column in enumerate(plotted)
        }
        curves = [_curve(label, positions, experiment, measurements) for label in labels]
        if kind == "bars":
            made[kind] = plots.bars(curves, plotted)
        else:
            made[kind] = plots.over_budget(curves, _AXES[kind])
    return made


def _score_curves(
    experiment: Experiment, measurements: Measurements, plan: Mapping[str, Run]
) -> list[Curve]:
    """Return the aggregated score of each training at its number of parameters."""
    curves = []
    for label, training in experiment.trainings.items():
        x = float(_num_parameters(plan[f"{training}/0"]))
        corrected, original = (
            [100 * score for score in scores(measurements, label, source).values()]
            for source in (CORRECTED, ORIGINAL)
        )
        slide = experiment.slides.get(label, {}).get(SCORE)
        curves.append(
            Curve(
                label,
                {x: Point(statistics.mean(corrected), min(corrected), max(corrected))}
                if corrected
                else {},
                {x: statistics.mean(original)} if original else {},
                {} if slide is None else {x: slide},
            )
        )
    return curves


def _curve(
    label: str,
    positions: Mapping[str, float],
    experiment: Experiment,
    measurements: Measurements,
) -> Curve:
    corrected, original = (
        {
            position: _point(by_seed)
            for column, position in positions.items()
            if (by_seed := measurements.get(Cell(label, column, source)))
        }
        for source in (CORRECTED, ORIGINAL)
    )
    slide = experiment.slides.get(label, {})
    return Curve(
        label,
        corrected,
        {position: point.value for position, point in original.items()},
        {position: slide[one] / 100 for one, position in positions.items() if one in slide},
    )


def _point(by_seed: BySeed) -> Point:
    """Return one accuracy with its interval, or the mean of several seeds with their range."""
    values = [one.accuracy for one in by_seed.values()]
    if len(values) == 1:
        return Point(values[0], *next(iter(by_seed.values())).ci95)
    return Point(statistics.mean(values), min(values), max(values))


def _is_number(column: str) -> bool:
    return column.replace(".", "", 1).isdigit()


def _num_parameters(run: Run) -> int:
    model = make_classifier(run.config.model, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


TEXTS = {
    "about": (
        "Accuracies are in %, under PGD-40 in L-inf unless noted; pixels are in [0, 1]. “Slides” "
        "are the values of the study's slides, on 1,024 held-out train images of the original "
        "CIFAR-10 and one seed. “Original protocol” is the study's evaluation of our weights: "
        "the last checkpoint, attacked from the clean image, in training mode if the model has "
        "dropout or batch norm. “Corrected protocol” is the best checkpoint on held-out images, "
        "on the test split, with random starts, in evaluation mode. Models with a random defence "
        "are attacked at each eps with 20 steps of gradients averaged over 10 noise samples. "
        "AutoAttack at scale cpu attacks the first 1,000 images. Both protocols evaluate the "
        "same trainings, but the original protocol and AutoAttack only seed 0. A value of one "
        "seed has its 95 % Wilson interval. A mean over seeds has their standard deviation, with "
        "their number in brackets. ≠: significantly different from the slides, by the intervals "
        "of the claims. All values of the original protocol are on the same 1,024 images, so "
        "that one ≠ makes others more likely. †: measured before this page existed; see the "
        "runs. ‡: a model whose clean accuracy is no better than that of a constant guess. Its "
        "robust accuracy is not meaningful, and no claim rests on it."
    ),
    "method": (
        "Unless a claim names another column, a model is more robust if its accuracy at eps 0.03 "
        "is higher. The difference of means over seeds has a 95 % confidence interval. It "
        "accounts for the images, paired if they are the same, and for the seeds. With three or "
        "more seeds on both sides, their variance is that of each side. Otherwise it is the "
        "variance between seeds of one config in that column (at eps 0.03 if unknown), pooled "
        "over all configs with several seeds and assumed equal for all; models with ‡ are left "
        "out. A claim is supported or contradicted if the interval excludes zero, and "
        "inconclusive otherwise. Two evaluations of the same training, or of the same weights, "
        "differ by the images only. A claim of no gain (less than one point) is supported if the "
        "interval ends below one point, and contradicted if it begins above. A claim of no "
        "significant difference is supported if the interval contains zero. A claim that an "
        "accuracy is at most a limit is decided by the Wilson interval, without regard to seeds. "
        "McNemar's exact test, for each seed, compares two models on the same images and says "
        "nothing about the variation between trainings. The intervals are not corrected for "
        "multiple comparisons: some of so many will miss."
    ),
    "flaws": (
        "Flaws of the study: (1) it evaluated models in training mode, with dropout and batch "
        "statistics; (2) its PNI keeps the standard deviation of the weights at initialisation, "
        "and weight decay applies to alpha; (3) random models were attacked with one noise "
        "sample per gradient; (4) it has 1,024 images and one seed; (5) some of its attacks take "
        "steps of 0.02 at eps 0.01; (6) its curriculum ends at three times the eps of interest."
    ),
    "costs": (
        "Gradients: the largest number of gradient evaluations of single images, for a training "
        "with its own evaluations; for black-box attacks, of queries. The time of a run that is "
        "done is that of its epochs, without validation, and of its evaluations; interruptions "
        "may hide a part. Other times are estimates of a dry run, if there was one with as many "
        "gradients."
    ),
    "solid": (
        "Solid lines, filled points and bars: corrected protocol. Bands and error bars: Wilson "
        "interval of one seed, or range of several seeds; a score of one seed has none."
    ),
    "dashed": "Dashed lines or crosses: original protocol.",
    "hollow": "Hollow points: slides, to be compared with the original protocol.",
}
