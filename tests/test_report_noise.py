"""What a report and the terminal's table say of a model with noise, and of certificates."""

import copy
import io
import json

import pytest
from rich.console import Console
from test_report import EVALUATION, entry, pgd

from jaxadv import figures, report, terminal


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
            "radii": [{"radius": r, **entry(a)} for r, a in ((0.0, 0.41), (0.25, 0.2109))],
        },
    }
    return noisy


@pytest.fixture
def page(evaluation, tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    return report.write(tmp_path).read_text()


def test_the_page_tells_one_pass_the_mean_and_the_vote_apart(page):
    section = page[page.index("<h2>Noise</h2>") : page.index("<h2>Certified")]
    for figure in ("43.21 %", "54.32 %", "23.45 %", "1.23", "24.68 %", "29.31 %"):
        assert figure in section
    assert "mean softmax of 50 passes" in section
    assert "clean, noise off" in section
    assert {"61.23 %", "13.57 %"} <= set(section.replace("<", ">").split(">"))


def test_the_settings_name_the_average_and_the_noise(page):
    assert "softmax of 20 noise samples" in page
    assert "the model&#39;s noise off" in page or "the model's noise off" in page


def test_the_page_shows_the_certificates(page):
    section = page[page.index("<h2>Certified") : page.index("<h2>Training")]
    for words in ("sigma 0.25", "200 test images", "5,000", "abstained on 17", "21.09 %"):
        assert words in section
    assert "<svg" in section


def test_the_page_says_what_rounding_and_broken_passes_do_to_certificates(evaluation, tmp_path):
    evaluation["certified"] |= {"rounding_allowance": 4.6e-5, "nonfinite_passes": 0}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = report.write(tmp_path).read_text()
    assert "an allowance for float32 rounding of at most 5e-05" in page
    assert "NaN" not in page
    evaluation["certified"] |= {"nonfinite_passes": 1234, "nonfinite_examples": 7}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    broken = "1,234 forward passes, on 7 images, had NaN or infinite logits"
    assert broken in report.write(tmp_path).read_text()


def test_curves_are_those_of_the_model_with_its_noise(page):
    curves = page[page.index("<h2>Accuracy over eps") : page.index("<h2>Training")]
    assert ">eot20<" in curves
    assert ">noise_off<" not in curves


def test_a_model_without_noise_has_no_such_section(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    page = report.write(tmp_path).read_text()
    assert "<h2>Noise</h2>" not in page
    assert "<h2>Certified" not in page


def test_the_terminal_shows_passes_too(evaluation):
    file = io.StringIO()
    Console(width=160, file=file).print(terminal.table(evaluation))
    (eot,) = (line for line in file.getvalue().splitlines() if "eot20" in line)
    assert "23.45 ± 1.23" in eot
    assert "24.68 %" in eot
    assert "one pass" not in str([c.header for c in terminal.table(EVALUATION).columns])


def test_the_certified_curve_names_its_axes(evaluation):
    svg = figures.certified_accuracy(evaluation["certified"]["radii"])
    assert "L2 radius" in svg
    assert "certified accuracy" in svg
