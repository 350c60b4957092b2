import re
from functools import cache
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from jaxadv.core.results import Accuracy, AccuracyAtBudget, WorstCase
from jaxadv.reports import plots


def result(accuracy):
    return {"accuracy": accuracy, "ci95": (accuracy - 0.05, accuracy + 0.05), "n": 200}


def point(eps, accuracy):
    return WorstCase(norm="linf", eps=eps, attacks=(), **result(accuracy))


CLEAN = Accuracy(**result(0.6))


def texts(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")]


@cache
def draw_accuracy(name="pgd40"):
    curves = {name: [point(0.01, 0.5), point(0.03, 0.3)], "single": [point(0.03, 0.25)]}
    worst = [point(0.01, 0.5), point(0.03, 0.2)]
    return plots.accuracy_over_eps(CLEAN, {**curves, "worst case": worst}, worst="worst case")


@cache
def draw_training(best_epoch=2, **changes):
    lines = [
        {"epoch": epoch, "eps": 0.01, "num_steps": 10, "train_loss": 2.0,
         "train_accuracy_clean": 0.4, "validation_accuracy_clean": 0.5, **changes}
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    return plots.training_curves(lines, best_epoch)


@cache
def draw_margins():
    return plots.margin_histogram({"clean": np.linspace(-3, 1, 50), "pgd": np.linspace(-1, 3, 50)})


@cache
def draw_queries():
    curve = [AccuracyAtBudget(queries=n, **result(a)) for n, a in ((1, 0.6), (5000, 0.2))]
    return plots.accuracy_over_queries(
        {"nes": curve, "once": curve[:1]}, {"pgd40": Accuracy(**result(0.15))}
    )


@pytest.mark.parametrize("draw", [draw_accuracy, draw_training, draw_margins, draw_queries])
def test_colours_are_css_variables_of_the_page(draw):
    svg = draw()
    colors = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg))
    assert colors <= {
        "none",
        "currentColor",
        "var(--rule)",
        *(f"var(--series-{i})" for i in range(9)),
    }
    assert "currentColor" in colors
    assert "var(--series-1)" in colors or "var(--series-2)" in colors


def test_query_axis_is_logarithmic_and_the_white_box_attack_is_labelled():
    written = texts(draw_queries())
    assert {"nes", "once", "pgd40", "query budget per image"} <= set(written)
    assert "1,000" in written


def test_query_axis_spans_a_decade_for_a_single_budget():
    once = AccuracyAtBudget(queries=4001, **result(0.3))
    written = texts(plots.accuracy_over_queries({"nes": [once]}, {}))
    assert "10,000" in written
    assert not any("\N{MULTIPLICATION SIGN}" in text for text in written)


def test_ids_are_unique_across_figures_and_references_resolve():
    svgs = [draw_accuracy(), draw_training(), draw_margins()]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]
    for svg, own in zip(svgs, ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own


def test_equal_figures_give_equal_bytes():
    assert draw_accuracy.__wrapped__() == draw_accuracy()


def test_accuracy_over_eps_labels_every_curve_and_eps():
    written = texts(draw_accuracy())
    assert {"pgd40", "single", "worst case", "0.00", "0.01", "0.03"} <= set(written)


def test_labels_are_not_parsed_as_mathematics():
    assert "<b>$x_1$&" in texts(draw_accuracy("<b>$x_1$&"))


def test_training_curves_mark_the_best_epoch_and_omit_missing_values():
    written = texts(draw_training())
    assert "best" in written
    assert {"clean, train", "clean, validation", "total, train"} <= set(written)
    assert "adversarial, train" not in written
    assert "adversarial, train" in texts(draw_training(train_accuracy_adversarial=0.3))
    assert "best" not in texts(draw_training(best_epoch=None))


def test_margins_of_one_sign_still_show_zero():
    svg = plots.margin_histogram({"clean": np.full(20, -2.0)})
    assert "misclassified →" in texts(svg)


@pytest.mark.parametrize("values", [[-1.0, 2.0, np.inf, np.nan, -np.inf], [np.nan, np.inf]])
def test_nonfinite_margins_are_in_the_end_bins(values, monkeypatch):
    drawn, hist = [], Axes.hist

    def recorded(self, values, bins, **style):
        drawn.append((values, bins))
        return hist(self, values, bins, **style)

    monkeypatch.setattr(Axes, "hist", recorded)
    plots.margin_histogram({"clean": np.array(values)})
    ends = {np.inf: drawn[0][1][-1], -np.inf: drawn[0][1][0]}
    expected = [ends.get(np.inf if np.isnan(value) else value, value) for value in values]
    np.testing.assert_array_equal(drawn[0][0], np.clip(expected, ends[-np.inf], ends[np.inf]))
    assert np.isfinite(drawn[0][0]).all()


def test_accuracy_over_distance_labels_attacks_and_handles_infinite_distances():
    distances = {"fab": np.array([0.0, 0.1, 0.2, np.inf]), "autoattack": np.array([0.05, 0.3])}
    svg = plots.accuracy_over_distance(distances, {"autoattack": 0.1})
    assert {"fab", "autoattack", "distance", "accuracy"} <= set(texts(svg))
    nothing = plots.accuracy_over_distance({"fab": np.full(3, np.inf)}, {})
    assert "fab" in texts(nothing)


def test_matplotlib_settings_are_unchanged():
    before = dict(matplotlib.rcParams)
    draw_accuracy.__wrapped__()
    assert dict(matplotlib.rcParams) == before
