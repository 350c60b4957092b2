"""Plots of the study's page as inline SVG: both protocols and the values of the slides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from jaxadv.reports.plots import INK, MARKERS, SERIES, STYLE, WIDTH, accuracy_axis, svg

# The style of the original protocol.
_DASHES: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_CROSSES: dict[str, Any] = {"marker": "x", "linestyle": "none"}


class Point(NamedTuple):
    """A value with the ends of its interval or range."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """Values of one training by their position on the horizontal axis."""

    label: str
    corrected: Mapping[float, Point]
    original: Mapping[float, float]
    slides: Mapping[float, float]


def over_budget(curves: Sequence[Curve], label: str) -> str:
    """Plot accuracy over eps or queries.

    Args:
      curves: of each training, over eps or the number of queries; accuracies are shares.
      label: of the horizontal axis.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            if curve.corrected:
                x, points = list(curve.corrected), list(curve.corrected.values())
                axes.fill_between(
                    x, [p.low for p in points], [p.high for p in points],
                    color=color, alpha=0.15, linewidth=0,
                )  # fmt: skip
                axes.plot(x, [p.value for p in points], color=color, marker=marker)
            axes.plot(list(curve.original), list(curve.original.values()), color=color, **_DASHES)
            if curve.slides:
                axes.plot(
                    list(curve.slides), list(curve.slides.values()), color=color, marker=marker,
                    markerfacecolor="none", linestyle=":", linewidth=1.1,
                )  # fmt: skip
        axes.set_xlabel(label)
        accuracy_axis(axes)
        _legend(figure, curves, _DASHES)
        return svg(figure)


def over_parameters(curves: Sequence[Curve]) -> str:
    """Plot the aggregated score in % over the number of parameters, a point for each training."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            for x, point in curve.corrected.items():
                error = [[point.value - point.low], [point.high - point.value]]
                axes.errorbar(x, point.value, error, color=color, marker=marker)
            axes.plot(list(curve.original), list(curve.original.values()), color=color, **_CROSSES)
            axes.plot(
                list(curve.slides), list(curve.slides.values()), color=color, marker=marker,
                markerfacecolor="none", linestyle="none",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters")
        axes.set_ylabel("aggregated score")
        axes.set_ylim(bottom=0)
        _legend(figure, curves, _CROSSES)
        return svg(figure)


def bars(curves: Sequence[Curve], columns: Sequence[str]) -> str:
    """Plot groups of bars, one bar for each training.

    Args:
      curves: of each training, over the positions of the columns; accuracies are shares.
      columns: labels of the groups.

    Returns:
      An `<svg>` element.
    """
    width = 0.8 / max(len(curves), 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            color, shift = SERIES[i % len(SERIES)], (i - (len(curves) - 1) / 2) * width
            points = list(curve.corrected.values())
            if points:
                errors = np.array([[p.value - p.low, p.high - p.value] for p in points]).T
                axes.bar(
                    np.array(list(curve.corrected)) + shift, [p.value for p in points], 0.9 * width,
                    yerr=errors, color=color, alpha=0.75, error_kw={"linewidth": 1, "ecolor": INK},
                )  # fmt: skip
            positions = np.array(list(curve.original)) + shift
            axes.plot(positions, list(curve.original.values()), color=INK, **_CROSSES)
            axes.plot(
                np.array(list(curve.slides)) + shift, list(curve.slides.values()), color=INK,
                marker="D", markerfacecolor="none", linestyle="none",
            )  # fmt: skip
        axes.set_xticks(range(len(columns)), columns)
        accuracy_axis(axes)
        _legend(figure, curves, _CROSSES, marker="s")
        return svg(figure)


def _legend(
    figure: Figure, curves: Sequence[Curve], original: Mapping[str, Any], marker: str | None = None
) -> None:
    """Add the labels of the trainings, and the styles of the original protocol and the slides.

    Args:
      figure: the figure.
      curves: of each training.
      original: style of the original protocol.
      marker: of all trainings; None if each has its own.
    """
    handles = {
        curve.label: Line2D(
            [], [], color=SERIES[i % len(SERIES)], marker=marker or MARKERS[i % len(MARKERS)]
        )
        for i, curve in enumerate(curves)
    }
    if any(curve.original for curve in curves):
        handles["original protocol"] = Line2D([], [], color=INK, **original)
    if any(curve.slides for curve in curves):
        mark = "D" if marker else "o"
        handles["slides"] = Line2D(
            [], [], color=INK, marker=mark, markerfacecolor="none", linestyle=":"
        )
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
