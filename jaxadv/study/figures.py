"""The figures of the study's page, as inline SVG: ours beside the points read off its slides."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from jaxadv.drawing import INK, MARKERS, SERIES, STYLE, WIDTH, accuracy_axis, svg

# How ours looks, judged as there.
_DASHES: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1}
_CROSSES: dict[str, Any] = {"marker": "x", "linestyle": "none"}


class Point(NamedTuple):
    """A value with what it may lie between, all shares."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """What one arm has at some places: ours, ours judged as there, and what the slides have."""

    label: str
    ours: Mapping[float, Point]
    there: Mapping[float, float]
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
            axes.plot(list(curve.there), list(curve.there.values()), color=color, **_DASHES)
            if curve.study:
                axes.plot(
                    list(curve.study), list(curve.study.values()), color=color, marker=marker,
                    markerfacecolor="none", linestyle=":", linewidth=1.1,
                )  # fmt: skip
        axes.set_xlabel(label)
        accuracy_axis(axes)
        _legend(figure, curves, _DASHES)
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
            axes.plot(list(curve.there), list(curve.there.values()), color=color, **_CROSSES)
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
        _legend(figure, curves, _CROSSES)
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
            there = np.array(list(curve.there)) + shift
            axes.plot(there, list(curve.there.values()), color=INK, **_CROSSES)
            axes.plot(
                np.array(list(curve.study)) + shift, list(curve.study.values()), color=INK,
                marker="D", markerfacecolor="none", linestyle="none",
            )  # fmt: skip
        axes.set_xticks(range(len(headings)), headings)
        accuracy_axis(axes)
        _legend(figure, curves, _CROSSES, marker="s")
        return svg(figure)


def _legend(
    figure: Figure, curves: Sequence[Curve], there: Mapping[str, Any], marker: str | None = None
) -> None:
    """Names the arms by their colour and marker, and says how what is not judged right looks."""
    shown = {
        curve.label: Line2D(
            [], [], color=SERIES[i % len(SERIES)], marker=marker or MARKERS[i % len(MARKERS)]
        )
        for i, curve in enumerate(curves)
    }
    if any(curve.there for curve in curves):
        shown["judged as there"] = Line2D([], [], color=INK, **there)
    if any(curve.study for curve in curves):
        mark = "D" if marker else "o"
        shown["the study"] = Line2D(
            [], [], color=INK, marker=mark, markerfacecolor="none", linestyle=":"
        )
    figure.legend(shown.values(), shown.keys(), loc="outside right upper")
