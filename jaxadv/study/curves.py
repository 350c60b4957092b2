"""Plots of an experiment from its measurements."""

import statistics
from collections.abc import Mapping

import jax
import numpy as np

from jaxadv.models.classifier import make_classifier
from jaxadv.study import plots
from jaxadv.study.measurements import BySeed, Measurements
from jaxadv.study.plan import Run
from jaxadv.study.plots import Curve, Point
from jaxadv.study.specification import CORRECTED, ORIGINAL, SCORE, Cell, Experiment

_AXES = {"eps": "eps", "queries": "queries per image"}


def draw(
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
            [100 * one.accuracy for one in measurements[Cell(label, SCORE, source)].values()]
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
