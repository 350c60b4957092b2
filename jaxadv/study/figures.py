"""The figures of the study's page, as inline SVG: ours beside the points read off its slides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from jaxadv.drawing import INK, MARKERS, SERIES, STYLE, WIDTH, accuracy_axis, svg


class Point(NamedTuple):
    """A value with what it may lie between, all shares."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """What one arm has at some places: ours, and what the slides have."""

    label: str
    ours: Mapping[float, Point]
    study: Mapping[float, float]


def over_budget(curves: Sequence[Curve], label: str) -> str:
    """Draws accuracy over eps or queries.

    Args:
      curves: of the arms, by the value of eps or the number of queries.
      label: of the horizontal axis.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            if curve.ours:
                x, points = list(curve.ours), list(curve.ours.values())
                axes.fill_between(
                    x, [p.low for p in points], [p.high for p in points],
                    color=color, alpha=0.15, linewidth=0,
                )  # fmt: skip
                axes.plot(x, [p.value for p in points], color=color, marker=marker)
            if curve.study:
                axes.plot(
                    list(curve.study), list(curve.study.values()), color=color, marker=marker,
                    markerfacecolor="none", linestyle=":", linewidth=1.1,
                )  # fmt: skip
        axes.set_xlabel(label)
        accuracy_axis(axes)
        _legend(figure, [curve.label for curve in curves], any(c.study for c in curves))
        return svg(figure)


def over_parameters(curves: Sequence[Curve]) -> str:
    """Draws the aggregated score over the number of parameters, of one point for each arm."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            for x, point in curve.ours.items():
                error = [[point.value - point.low], [point.high - point.value]]
                axes.errorbar(x, point.value, error, color=color, marker=marker)
            axes.plot(
                list(curve.study), list(curve.study.values()), color=color, marker=marker,
                markerfacecolor="none", linestyle="none",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters")
        axes.set_ylabel("aggregated score")
        axes.set_ylim(bottom=0)
        _legend(figure, [curve.label for curve in curves], any(c.study for c in curves))
        return svg(figure)


def bars(curves: Sequence[Curve], headings: Sequence[str]) -> str:
    """Draws bars in groups, one for each arm: a curve's places are the numbers of the headings."""
    width = 0.8 / max(len(curves), 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, curve in enumerate(curves):
            color, shift = SERIES[i % len(SERIES)], (i - (len(curves) - 1) / 2) * width
            points = list(curve.ours.values())
            if points:
                errors = np.array([[p.value - p.low, p.high - p.value] for p in points]).T
                axes.bar(
                    np.array(list(curve.ours)) + shift, [p.value for p in points], 0.9 * width,
                    yerr=errors, color=color, alpha=0.75, error_kw={"linewidth": 1, "ecolor": INK},
                )  # fmt: skip
            axes.plot(
                np.array(list(curve.study)) + shift, list(curve.study.values()), color=INK,
                marker="D", markerfacecolor="none", linestyle="none",
            )  # fmt: skip
        axes.set_xticks(range(len(headings)), headings)
        accuracy_axis(axes)
        _legend(figure, [c.label for c in curves], any(c.study for c in curves), marker="s")
        return svg(figure)


def _legend(figure: Figure, labels: Sequence[str], study: bool, marker: str | None = None) -> None:
    """Names the arms by their colour and marker, and says what is hollow."""
    handles: list[Any] = [
        Line2D([], [], color=SERIES[i % len(SERIES)], marker=marker or MARKERS[i % len(MARKERS)])
        for i in range(len(labels))
    ]
    if study:
        mark = "D" if marker else "o"
        handles.append(
            Line2D([], [], color=INK, marker=mark, markerfacecolor="none", linestyle=":")
        )
    named = [*labels, "hollow: the study"] if study else list(labels)
    figure.legend(handles, named, loc="outside right upper")
