import copy
import json

import numpy as np
import pytest
from test_report import EVALUATION, N, Page, entry, fill, pgd

from jaxadv.core.results import Accuracy
from jaxadv.core.types import UserError
from jaxadv.reports import plots
from jaxadv.reports.compare import difference_interval, write_comparison


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Return two workdirs; the second model is better, and has another learning rate."""
    monkeypatch.setattr(plots, "training_curves", lambda *_: "<svg></svg>")
    for name in ("slow", "better"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
    change(tmp_path / "better", clean=entry(0.8))
    config = json.loads((tmp_path / "better" / "config.json").read_text())
    config["model"]["name"], config["new"] = "net", True
    (tmp_path / "better" / "config.json").write_text(json.dumps(config))
    return tmp_path / "slow", tmp_path / "better"


def change(workdir, **values):
    evaluation = copy.deepcopy(EVALUATION) | values
    (workdir / "evaluation.json").write_text(json.dumps(evaluation))


def compare(pair, tmp_path):
    return Page(write_comparison(pair, tmp_path / "pages" / "both.html").read_text())


def test_the_page_shows_both_runs_and_their_differences(pair, tmp_path):
    page = compare(pair, tmp_path)
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["clean"][1:4] == ["55.2 %", "80.0 %", "+24.8"]
    assert rows["pgd40, L\N{INFINITY}"][1:4] == ["29.3 %", "29.3 %", "+0.0"]
    assert rows["Training"] == ["3 epochs, 3 h 05 min"] * 2
    assert rows["model.name"] == ["bignet", "net"]
    assert rows["new"] == ["\N{EN DASH}", "True"]
    assert "data.name" not in rows
    assert page.html.count("<svg>") == 2
    assert not page.addresses


def test_attacks_with_other_arguments_are_not_compared(pair, tmp_path):
    other = {**EVALUATION["attacks"], "pgd40/0.1": pgd(0.0123, 0.1, num_steps=7)}
    other["new/0.1"] = pgd(0.2, 0.1)
    del other["restarts/0.03"]
    change(pair[1], attacks=other)
    page = compare(pair, tmp_path)
    labels = [row[0] for row in page.rows]
    assert labels.count("pgd40, L\N{INFINITY}") == 1
    assert "Not compared, because" in page.text
    assert "new/0.1, pgd40/0.1, restarts/0.03." in page.text


def test_images_that_both_runs_classify_alike_do_not_widen_the_interval(pair, tmp_path):
    """The runs differ on 2 of 200 images."""
    arrays = dict(np.load(pair[1] / "examples.npz"))
    arrays["predictions/clean"] = np.zeros(N, int)
    np.savez(pair[0] / "examples.npz", **{**arrays, "predictions/clean": np.r_[1, 1, [0] * 198]})
    change(pair[0], clean=entry(0.99))
    change(pair[1], clean=entry(1.0))
    np.savez(pair[1] / "examples.npz", **arrays)
    page = compare(pair, tmp_path)
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["clean"][3:] == ["+1.0", "\N{MINUS SIGN}0.7 to +2.7"]
    assert "McNemar" in page.text
    assert "<b>" not in page.html[page.html.index("<tbody>") :]
    (pair[0] / "examples.npz").unlink()
    page = compare(pair, tmp_path)
    assert "independent samples" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["clean"][3:] == ["+1.0", "\N{MINUS SIGN}3.7 to +5.7"]


def test_other_images_with_the_same_labels_are_no_pairs(pair, tmp_path):
    arrays = dict(np.load(pair[1] / "examples.npz"))
    np.savez(pair[1] / "examples.npz", **{**arrays, "sample/images": arrays["sample/images"] / 2})
    assert "independent samples" in compare(pair, tmp_path).text


def test_a_worst_case_is_compared_if_all_its_attacks_are(pair, tmp_path):
    keys = ["pgd40/0.1", "fgsm/0.03"]
    attacks = {**EVALUATION["attacks"], "pgd40/0.1": pgd(0.0123, 0.1, num_steps=7)}
    worst = {"linf/0.1": entry(0.1, norm="linf", eps=0.1, attacks=keys)}
    for run in pair:
        change(run, worst_case=worst)
    assert any(row[0].startswith("worst case") for row in compare(pair, tmp_path).rows)
    change(pair[1], worst_case=worst, attacks=attacks)
    assert not any(row[0].startswith("worst case") for row in compare(pair, tmp_path).rows)


def test_the_interval_of_pairs_is_that_of_agresti_and_min():
    """Example of the paper's form: half an observation in each of the two cells."""
    correct = (np.r_[[True] * 30, [False] * 70], np.r_[[True] * 25, [False] * 60, [True] * 15])
    one, other = (
        Accuracy(accuracy=float(array.mean()), ci95=(0.0, 1.0), n=100) for array in correct
    )
    low, high = difference_interval(one, other, correct)
    gained, lost, n = 15.5, 5.5, 102
    error = np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    np.testing.assert_allclose([low, high], 10 / n + 1.959964 * error * np.array([-1, 1]))


def test_a_difference_of_few_images_is_not_significant(pair, tmp_path):
    """4 images gained and none lost of 200: McNemar's exact p is 0.125; of 6, 0.031."""
    arrays = dict(np.load(pair[1] / "examples.npz"))
    for num_lost, is_bold in ((4, False), (6, True)):
        predictions = np.zeros(N, int)
        predictions[:num_lost] = 1
        np.savez(pair[0] / "examples.npz", **{**arrays, "predictions/clean": predictions})
        change(pair[0], clean=entry(1 - num_lost / N))
        change(pair[1], clean=entry(1.0))
        html = compare(pair, tmp_path).html
        assert ("<b>" in html[html.index("<tbody>") :]) == is_bold


def test_runs_that_cannot_be_compared_are_errors(pair, tmp_path):
    page = tmp_path / "page.html"
    with pytest.raises(UserError, match="3 runs are given: a comparison takes two"):
        write_comparison([*pair, pair[0]], page)
    change(pair[1], dataset="digits")
    with pytest.raises(UserError, match="was evaluated on CIFAR-10 test and better on digits"):
        write_comparison(pair, page)
    (pair[1] / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"better has no evaluation\.json: the run is not"):
        write_comparison(pair, page)
    with pytest.raises(UserError, match="no workdir"):
        write_comparison([pair[0], tmp_path / "none"], page)
    assert not page.exists()
