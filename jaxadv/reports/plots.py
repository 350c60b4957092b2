"""Plots of the reports, drawn by Matplotlib and returned as inline SVG.

To add a plot to the report of a run, write it here, call it in `_evaluation_sections` of
`jaxadv/reports/report.py`, and place it in `templates/report.html`.
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from jaxadv.core.results import (
    Accuracy,
    AccuracyAtBudget,
    AttackEntry,
    CertifiedAccuracy,
    WorstCase,
)

INK, RULE = "#111111", "#dddddd"
CLEAN, ROBUST = "#0072b2", "#d55e00"  # Okabe and Ito's palette, for colour-blind readers
SERIES = (ROBUST, CLEAN, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a3d22", "#8c8c8c")
MARKERS = "osD^vPX*"
WIDTH = 9.0  # inches; 864 pixels in a browser
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
# Variables of templates/page.html, so that plots follow the page's light or dark colours.
_CSS_COLORS = {
    INK: "currentColor",
    RULE: "var(--rule)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, start=1)},
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_ID = re.compile(r'(\bid="|href="#|url\(#)([^")]+)')


def accuracy_over_eps(
    clean: Accuracy, curves: Mapping[str, Sequence[AttackEntry | WorstCase]], worst: str
) -> str:
    """Plot accuracy over eps with the 95 % interval of each point.

    Args:
      clean: accuracy at eps 0, where every curve starts.
      curves: results by ascending eps for each label. A single eps is drawn as a point with an
        error bar.
      worst: label of the curve that is drawn dashed and above the others.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, results) in enumerate(curves.items()):
            color, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
            style: dict[str, Any] = {"color": color, "marker": marker}
            if name == worst:
                style |= {"color": INK, "linestyle": "--", "zorder": 3}
            eps = [result.eps for result in results]
            if len(results) > 1:
                _curve(axes, [0.0, *eps], [clean, *results], name, style)
            else:
                _curve(axes, eps, results, name, style)
        radii = {result.eps for results in curves.values() for result in results}
        axes.set_xticks(sorted({0.0, *radii}))
        axes.set_xlabel("eps")
        accuracy_axis(axes)
        figure.legend(loc="outside right upper")
        return svg(figure)


def certified_accuracy(radii: Sequence[CertifiedAccuracy]) -> str:
    """Plot certified accuracy over the L2 radius with the 95 % interval of each point.

    Args:
      radii: results by ascending radius.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        style = {"color": CLEAN, "marker": "o"}
        _curve(axes, [result.radius for result in radii], radii, "certified", style)
        axes.set_xlabel("L2 radius")
        accuracy_axis(axes, "certified accuracy")
        return svg(figure)


def accuracy_over_queries(
    curves: Mapping[str, Sequence[AccuracyAtBudget]], white_box: Mapping[str, Accuracy]
) -> str:
    """Plot accuracy over the query budget with the 95 % interval of each point.

    Args:
      curves: results by ascending query budget (1 or more) for each black-box attack.
      white_box: results of white-box attacks, drawn as dashed horizontal lines.

    Returns:
      An `<svg>` element.
    """
    budgets = [result.queries for results in curves.values() for result in results]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, results) in enumerate(curves.items()):
            style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
            _curve(axes, [result.queries for result in results], results, name, style)
        for name, white_box_result in white_box.items():
            axes.axhspan(*white_box_result.ci95, color=INK, alpha=0.1, linewidth=0)
            axes.axhline(white_box_result.accuracy, color=INK, linestyle="--", label=name)
        # The axis spans at least a decade, so that powers of ten label it.
        axes.set_xscale("log")
        axes.set_xlim(min(budgets) / 1.3, max(*budgets, 10 * min(budgets)) * 1.3)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("query budget per image")
        accuracy_axis(axes)
        figure.legend(loc="outside right upper")
        return svg(figure)


def accuracy_over_distance(
    distances: Mapping[str, Float[np.ndarray, "n"]], radii: Mapping[str, float]
) -> str:
    """Plot the share of examples whose nearest misclassified image is farther than a distance.

    Args:
      distances: for each attack the distance of each example to the nearest misclassified image
        that the attack found; infinite where it found none.
      radii: eps of the attacks that stop inside their ball; their curves start at eps.

    Returns:
      An `<svg>` element.
    """
    finite = [values[np.isfinite(values)] for values in distances.values()]
    farthest = max(np.concatenate(finite).max(initial=0.0), *radii.values(), 0.0) or 1.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        for i, (name, values) in enumerate(distances.items()):
            color, start = SERIES[i % len(SERIES)], radii.get(name, 0.0)
            x = np.unique([start, *np.clip(values, start, farthest), farthest])
            y = [(values > distance).mean() for distance in x]
            axes.step(x, y, where="post", color=color, label=name)
            if start:
                axes.plot(x[:1], y[:1], color=color, marker="o")
        axes.set_xlabel("distance")
        axes.set_xlim(0, farthest)
        accuracy_axis(axes)
        figure.legend(loc="outside right upper")
        return svg(figure)


def training_curves(metrics: Sequence[Mapping[str, Any]], best_epoch: int | None) -> str:
    """Plot accuracies, losses, and the curriculum's eps and steps over the epochs.

    Args:
      metrics: lines of `metrics.jsonl`; a value of None leaves a gap.
      best_epoch: epoch of the best checkpoint, marked by a dotted line.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
        panels = figure.subplots(4, sharex=True, height_ratios=(3.2, 2.4, 1, 1))
        accuracy, loss, eps, num_steps = panels
        train, validation = {"linestyle": "--", "linewidth": 1.1}, {"marker": "."}
        plot_metrics(accuracy, metrics, {
            "validation_accuracy_clean": ("clean, validation", {"color": CLEAN, **validation}),
            "train_accuracy_clean": ("clean, train", {"color": CLEAN, **train}),
            "validation_accuracy_robust":
                ("adversarial, validation", {"color": ROBUST, **validation}),
            "train_accuracy_adversarial": ("adversarial, train", {"color": ROBUST, **train}),
        })  # fmt: skip
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        plot_metrics(loss, metrics, {
            "train_loss": ("total, train", {"color": INK, "linewidth": 1.1}),
            "train_loss_clean": ("clean, train", {"color": CLEAN, **train}),
            "train_loss_adversarial": ("adversarial, train", {"color": ROBUST, **train}),
        })  # fmt: skip
        budget = {"color": INK, "drawstyle": "steps-mid", "marker": "."}
        plot_metrics(eps, metrics, {"eps": (None, budget)})
        plot_metrics(num_steps, metrics, {"num_steps": (None, budget)})
        for axes, label in zip(panels, ("accuracy", "loss", "training eps", "steps"), strict=True):
            axes.set_ylabel(label)
            if best_epoch is not None:
                axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=":")
        if best_epoch is not None:
            _annotate(accuracy, best_epoch, "best")
        num_steps.set_xlabel("epoch")
        num_steps.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
        return svg(figure)


def gan_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Plot the losses of a GAN and the quality of its samples over the rounds.

    Args:
      metrics: lines of `metrics.jsonl`.

    Returns:
      An `<svg>` element.
    """
    panels = {
        "loss": {"discriminator_loss": "discriminator", "generator_loss": "generator"},
        "Fréchet distance": {"judge_frechet_distance": "evaluator features"},
        "share": {
            "judge_accuracy": "evaluator accuracy",
            "judge_precision": "precision",
            "judge_recall": "recall",
            "duplicates": "duplicates",
            "copies": "copies",
        },
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.0), layout="constrained")
        for axes, (label, series) in zip(
            figure.subplots(3, sharex=True), panels.items(), strict=True
        ):
            styles = {
                key: (name, {"color": SERIES[i], "marker": MARKERS[i]})
                for i, (key, name) in enumerate(series.items())
            }
            plot_metrics(axes, metrics, styles)
            axes.set_ylabel(label)
            if label == "share":
                accuracy_axis(axes, label)
                axes.set_xlabel("round")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            elif label != "loss":
                axes.set_ylim(bottom=0)
        figure.align_ylabels()
        return svg(figure)


def margin_histogram(margins: Mapping[str, Float[np.ndarray, "n"]]) -> str:
    """Plot a histogram of the margins of all examples, clean and under attack.

    Args:
      margins: for one or two conditions the margin of each example: the largest other logit minus
        the logit of the label; positive is misclassified. The end bins include the outer 0.5 % of
        the values and infinite margins; NaN counts as misclassified.

    Returns:
      An `<svg>` element.
    """
    margins = {name: np.where(np.isnan(values), np.inf, values) for name, values in margins.items()}
    together = np.concatenate(list(margins.values()))
    finite = together[np.isfinite(together)]
    low, high = np.quantile(finite, (0.005, 0.995)) if len(finite) else (0.0, 0.0)
    bins = np.linspace(min(low, -1e-3), max(high, 1e-3), 61).tolist()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        for (name, values), color in zip(margins.items(), (CLEAN, ROBUST), strict=False):
            share = np.full(len(values), 100 / len(values))
            values = np.clip(values, bins[0], bins[-1])
            axes.hist(values, bins, weights=share, color=color, alpha=0.3)
            axes.hist(values, bins, weights=share, color=color, label=name, histtype="step")
        axes.axvline(0, color=INK, linewidth=0.8)
        _annotate(axes, 0, "misclassified →")
        axes.set_xlabel("margin: largest other logit minus logit of the label")
        axes.set_ylabel("examples, %")
        figure.legend(loc="outside right upper")
        return svg(figure)


def accuracy_axis(axes: Axes, label: str = "accuracy") -> None:
    """Label the vertical axis and format it as percentages from 0."""
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def plot_metrics(
    axes: Axes,
    metrics: Sequence[Mapping[str, Any]],
    series: Mapping[str, tuple[str | None, Mapping[str, Any]]],
) -> None:
    """Plot values of `metrics.jsonl` over the epochs; `series` gives their labels and styles."""
    epochs = [line["epoch"] for line in metrics]
    for key, (label, style) in series.items():
        values = np.array([line.get(key) for line in metrics], dtype=float)  # None becomes NaN
        if not np.isnan(values).all():
            axes.plot(epochs, values, label=label, **style)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def svg(figure: Figure) -> str:
    """Return a figure as an `<svg>` element; equal figures give equal bytes."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    element = buffer.getvalue()
    element = element[element.index("<svg") :]
    # Matplotlib's ids are random. They must also differ between the plots of a page.
    numbers: dict[str, int] = {}
    element = _ID.sub(lambda id_: f"{id_[1]}{numbers.setdefault(id_[2], len(numbers))}", element)
    element = _ID.sub(rf"\g<1>f{zlib.crc32(element.encode()):08x}-\g<2>", element)
    for color, variable in _CSS_COLORS.items():
        element = element.replace(color, variable)
    return element


def standalone(element: str) -> str:
    """Return an `<svg>` element as the content of an SVG file, in the colours of a light page."""
    for color, variable in _CSS_COLORS.items():
        element = element.replace(variable, color)
    return element.replace("<svg ", '<svg style="background: #ffffff" ', 1)


def _curve(
    axes: Axes,
    x: Sequence[float | int],
    results: Sequence[Accuracy],
    label: str,
    style: Mapping[str, Any],
) -> None:
    """Plot accuracies with their intervals: a curve with a band, or one point with a bar."""
    accuracy = [result.accuracy for result in results]
    low, high = zip(*(result.ci95 for result in results), strict=True)
    if len(results) == 1:
        below_above = [[accuracy[0] - low[0]], [high[0] - accuracy[0]]]
        style = {**style, "linestyle": "none", "zorder": 4}
        axes.errorbar(x, accuracy, below_above, label=label, capsize=3, **style)
        return
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(x, accuracy, label=label, **style)


def _annotate(axes: Axes, x: int, text: str) -> None:
    """Write a text above the panel, starting at x."""
    axes.annotate(
        text, (x, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 2),
        textcoords="offset points", fontsize=8.5,
    )  # fmt: skip
