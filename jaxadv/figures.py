"""The figures of a report, as inline SVG; see `jaxadv.drawing`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from jaxadv.drawing import (
    CLEAN,
    INK,
    MARKERS,
    ROBUST,
    SERIES,
    STYLE,
    WIDTH,
    accuracy_axis,
    note,
    over_epochs,
    svg,
)


def accuracy_over_eps(
    clean: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, Any]]], worst: str
) -> str:
    """Draws accuracy over the radius, with the interval of each point.

    Args:
      clean: entry of the clean accuracy; where every curve begins.
      curves: for each name its entries with `eps`, `accuracy` and `ci95`, by ascending eps. A
        single radius is a point with an error bar.
      worst: name of the curve that is drawn in ink, over the others.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        colors = {name: SERIES[i % len(SERIES)] for i, name in enumerate(curves)}
        for i, (name, entries) in enumerate(curves.items()):
            ink = {"color": INK, "linestyle": "--", "zorder": 3} if name == worst else {}
            style = {"color": colors[name], "marker": MARKERS[i % len(MARKERS)], **ink}
            start = [{**clean, "eps": 0.0}] if len(entries) > 1 else []
            _curve(axes, [*start, *entries], name, style)
        radii = {entry["eps"] for entries in curves.values() for entry in entries}
        axes.set_xticks(sorted({0.0, *radii}))
        axes.set_xlabel("eps")
        accuracy_axis(axes)
        figure.legend(loc="outside right upper")
        return svg(figure)


def certified_accuracy(radii: Sequence[Mapping[str, Any]]) -> str:
    """Draws certified accuracy over the L2 radius, with the interval of each point.

    Args:
      radii: entries with `radius`, `accuracy` and `ci95`, by ascending radius.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        _curve(axes, radii, "certified", {"color": CLEAN, "marker": "o"}, x="radius")
        axes.set_xlabel("L2 radius")
        accuracy_axis(axes, "certified accuracy")
        return svg(figure)


def accuracy_over_queries(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], white_box: Mapping[str, Mapping[str, Any]]
) -> str:
    """Draws accuracy over the query budget, with the interval of each point.

    Args:
      curves: for each black-box attack its entries with `queries`, above 0, `accuracy` and
        `ci95`, by ascending budget.
      white_box: entries of attacks that see the gradient, drawn as levels.

    Returns:
      An `<svg>` element.
    """
    budgets = [entry["queries"] for entries in curves.values() for entry in entries]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, entries) in enumerate(curves.items()):
            style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
            _curve(axes, entries, name, style, x="queries")
        for name, entry in white_box.items():
            axes.axhspan(*entry["ci95"], color=INK, alpha=0.1, linewidth=0)
            axes.axhline(entry["accuracy"], color=INK, linestyle="--", label=name)
        # A scale of at least a decade, so that some powers of ten name it.
        axes.set_xscale("log")
        axes.set_xlim(min(budgets) / 1.3, max(*budgets, 10 * min(budgets)) * 1.3)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("queries for each image")
        accuracy_axis(axes)
        figure.legend(loc="outside right upper")
        return svg(figure)


def accuracy_over_distance(
    distances: Mapping[str, Float[np.ndarray, "n"]], radii: Mapping[str, float]
) -> str:
    """Draws the share of examples whose nearest misclassified image is farther than a distance.

    Args:
      distances: of each example, for each attack; infinite where it found none.
      radii: of the attacks that stopped at their ball, whose curves begin there.

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
            at = np.unique([start, *np.clip(values, start, farthest), farthest])
            left = [(values > distance).mean() for distance in at]
            axes.step(at, left, where="post", color=color, label=name)
            if start:
                axes.plot(at[:1], left[:1], color=color, marker="o")
        axes.set_xlabel("distance")
        axes.set_xlim(0, farthest)
        accuracy_axis(axes)
        figure.legend(loc="outside right upper")
        return svg(figure)


def training_curves(metrics: Sequence[Mapping[str, Any]], best_epoch: int | None) -> str:
    """Draws accuracies, losses and the curriculum's budget over the epochs.

    Args:
      metrics: the lines of `metrics.jsonl`; a value that is None leaves a gap.
      best_epoch: epoch of the best checkpoint, which is marked.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
        panels = figure.subplots(4, sharex=True, height_ratios=(3.2, 2.4, 1, 1))
        accuracy, loss, eps, num_steps = panels
        train, validation = {"linestyle": "--", "linewidth": 1.1}, {"marker": "."}
        over_epochs(accuracy, metrics, {
            "validation_accuracy_clean": ("clean, validation", {"color": CLEAN, **validation}),
            "train_accuracy_clean": ("clean, train", {"color": CLEAN, **train}),
            "validation_accuracy_robust":
                ("attacked, validation", {"color": ROBUST, **validation}),
            "train_accuracy_adversarial": ("attacked, train", {"color": ROBUST, **train}),
        })  # fmt: skip
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        over_epochs(loss, metrics, {
            "train_loss": ("train", {"color": INK, "linewidth": 1.1}),
            "train_loss_clean": ("clean, train", {"color": CLEAN, **train}),
            "train_loss_adversarial": ("attacked, train", {"color": ROBUST, **train}),
        })  # fmt: skip
        budget = {"color": INK, "drawstyle": "steps-mid", "marker": "."}
        over_epochs(eps, metrics, {"eps": (None, budget)})
        over_epochs(num_steps, metrics, {"num_steps": (None, budget)})
        for axes, label in zip(panels, ("accuracy", "loss", "training eps", "steps"), strict=True):
            axes.set_ylabel(label)
            if best_epoch is not None:
                axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=":")
        if best_epoch is not None:
            note(accuracy, best_epoch, "best")
        num_steps.set_xlabel("epoch")
        num_steps.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
        return svg(figure)


def gan_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Draws the losses of a GAN and what its judge says, over the rounds.

    Args:
      metrics: the lines of `metrics.jsonl`.

    Returns:
      An `<svg>` element.
    """
    panels = {
        "loss": {"discriminator_loss": "discriminator", "generator_loss": "generator"},
        "Fréchet distance": {"judge_frechet_distance": "judge's features"},
        "share": {
            "judge_accuracy": "judged right",
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
            over_epochs(axes, metrics, styles)
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
    """Draws how far examples are from the decision, under each of one or two conditions.

    Args:
      margins: name of the condition -> largest other logit minus the true one, for each example;
        above 0 the example is misclassified. The outer half per cent is drawn in the end bins,
        as are infinite margins, and NaN as misclassified.

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
        note(axes, 0, "misclassified →")
        axes.set_xlabel("largest other logit minus true logit")
        axes.set_ylabel("examples, %")
        figure.legend(loc="outside right upper")
        return svg(figure)


def _curve(
    axes: Axes,
    entries: Sequence[Mapping[str, Any]],
    name: str,
    style: Mapping[str, Any],
    x: str = "eps",
) -> None:
    """Draws the accuracy of the entries over their `x`; a single one as a point with a bar."""
    at = [entry[x] for entry in entries]
    accuracy = [entry["accuracy"] for entry in entries]
    low, high = zip(*(entry["ci95"] for entry in entries), strict=True)
    if len(entries) == 1:
        below_above = [[accuracy[0] - low[0]], [high[0] - accuracy[0]]]
        style = {**style, "linestyle": "none", "zorder": 4}
        axes.errorbar(at, accuracy, below_above, label=name, capsize=3, **style)
        return
    axes.fill_between(at, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(at, accuracy, label=name, **style)
