"""Models with noise and certified accuracy in the report and in the terminal table."""

import copy
import io
import json

import pytest
from rich.console import Console
from test_report import EVALUATION, entry, pgd

from jaxadv.core.results import CertifiedAccuracy, Evaluation
from jaxadv.reports import plots, report, tables


def passes(mean, majority):
    return {"single_pass": {"mean": mean, "std": 0.0123}, "majority": entry(majority)}


@pytest.fixture
def evaluation():
    noisy = copy.deepcopy(EVALUATION)
    noisy["clean"] |= passes(0.4321, 0.5432)
    eot = {"num_noise_samples": 20, "noise_average": "softmax", "noise": "on"}
    noisy["attacks"] = {
        "eot20/0.03": pgd(0.2931, 0.03, **eot) | passes(0.2345, 0.2468),
        "noise_off/0.03": pgd(0.1357, 0.03, num_noise_samples=1, noise="off"),
    }
    noisy |= {
        "stochastic": True,
        "num_passes": 50,
        "clean_noise": {"off": entry(0.6123)},
        "aggregated_score": {},
        "certified": {
            "sigma": 0.25,
            "num_selection": 100,
            "num_estimation": 5000,
            "failure": 0.001,
            "n": 200,
            "abstained": 17,
            "seconds": 9.0,
            "radii": [{"radius": r, **entry(a)} for r, a in ((0.0, 0.41), (0.25, 0.2109))],
        },
    }
    return noisy


@pytest.fixture
def page(evaluation, tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    return report.write_report(tmp_path).read_text()


def test_noise_section_has_single_passes_mean_softmax_and_majority_vote(page):
    section = page[page.index("<h2>Noise</h2>") : page.index("<h2>Certified")]
    for number in ("43.2 %", "54.3 %", "23.4 %", ">1.2<", "24.7 %", "29.3 %"):
        assert number in section
    assert "mean softmax over 50 forward passes" in section
    assert "clean, noise off" in section
    assert {"61.2 %", "13.6 %"} <= set(section.replace("<", ">").split(">"))


def test_settings_name_the_noise_average_and_the_model_noise(page):
    assert "mean softmax over 20 noise samples" in page
    assert "model noise off" in page


def test_certified_accuracy_section(page):
    section = page[page.index("<h2>Certified") : page.index("<h2>Training")]
    for words in ("sigma 0.25", "200 test images", "5,000", "abstained on 17", "21.1 %"):
        assert words in section
    assert "<svg" in section


def test_certified_accuracy_caption_reports_rounding_and_nonfinite_passes(evaluation, tmp_path):
    evaluation["certified"] |= {"rounding_allowance": 4.6e-5, "nonfinite_passes": 0}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = report.write_report(tmp_path).read_text()
    assert "an allowance for float32 rounding of at most 5e-05" in page
    assert "NaN" not in page
    evaluation["certified"] |= {"nonfinite_passes": 1234, "nonfinite_examples": 7}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    nonfinite = "1,234 forward passes, on 7 images, had NaN or infinite logits"
    assert nonfinite in report.write_report(tmp_path).read_text()


def test_curves_are_of_the_model_with_its_noise_on(page):
    curves = page[page.index("<h2>Accuracy over eps") : page.index("<h2>Training")]
    assert ">eot20<" in curves
    assert ">noise_off<" not in curves


def test_deterministic_models_have_no_noise_section(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    page = report.write_report(tmp_path).read_text()
    assert "<h2>Noise</h2>" not in page
    assert "<h2>Certified" not in page


def test_terminal_table_has_single_passes_and_majority_votes(evaluation):
    file = io.StringIO()
    Console(width=160, file=file).print(tables.table(Evaluation.from_json(evaluation)))
    (eot,) = (line for line in file.getvalue().splitlines() if "eot20" in line)
    assert "23.4 ± 1.2" in eot
    assert "24.7 %" in eot
    deterministic = tables.table(Evaluation.from_json(EVALUATION))
    assert "single forward pass" not in [column.header for column in deterministic.columns]


def test_certified_accuracy_figure_labels_its_axes(evaluation):
    radii = map(CertifiedAccuracy.from_json, evaluation["certified"]["radii"])
    svg = plots.certified_accuracy(tuple(radii))
    assert "L2 radius" in svg
    assert "certified accuracy" in svg
