"""AutoAttack, rounding to 8 bits, and distances in the report and in the terminal table."""

import copy
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from test_report import EVALUATION, N, attack_entry, entry, make_examples

from jaxadv.core.results import Evaluation
from jaxadv.reports import report, tables

BALL = {"norm": "linf", "eps": 0.03, "queries": 7810, "seconds": 9.0, "noise": "on"}


@pytest.fixture
def evaluation():
    evaluation = copy.deepcopy(EVALUATION)
    stages = [{"name": "apgd_ce", "broken": 1234, "unconfirmed": 3, "seconds": 4.0}]
    evaluation["attacks"]["aa/0.03"] = attack_entry(
        0.2, attack="autoattack", **BALL, version="standard", stages=stages,
        uint8=entry(0.25, lost=7),
    )  # fmt: skip
    evaluation["attacks"]["fab/0.03"] = attack_entry(
        0.2, attack="fab", **BALL, early_stop=False, uint8=entry(0.2, lost=0)
    )
    evaluation["attacks"]["fmn/0.03"] = attack_entry(0.2, attack="fmn", **BALL, num_steps=100)
    evaluation["attacks"]["mi/0.03"] = attack_entry(
        0.2, attack="mi_fgsm", **BALL, decay=1.0, nesterov=True, diversity=0.5, kernel_size=7
    )
    return evaluation


@pytest.fixture
def page(tmp_path, evaluation):
    examples = make_examples()
    # 10 % are misclassified without perturbation; for 10 % no misclassified image was found.
    distances = np.repeat(
        [0.0, 0.02, 0.04, 0.08, np.inf], [N // 10, N // 5, N // 5, 2 * N // 5, N // 10]
    )
    for key in ("aa/0.03", "fab/0.03", "fmn/0.03"):
        examples |= {f"survived/{key}": distances > 0, f"distances/{key}": distances}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    np.savez(tmp_path / "examples.npz", **examples)
    return report.write_report(tmp_path).read_text()


def test_report_shows_the_attacks_of_autoattack_and_the_effect_of_rounding(page):
    assert "autoattack, L∞, version standard" in page
    head = page[: page.index("<h2>")]
    assert "<dt>AutoAttack, L∞ eps 0.03</dt><dd><b>20.0 %</b>" in head
    assert "fab, L∞, without early stopping" in page
    assert (
        "mi_fgsm, L∞, look-ahead (NI-FGSM), random sizes with probability 0.5 (DI-FGSM), gradients "
        "smoothed over 7 pixels (TI-FGSM), momentum 1"
    ) in page
    row = '<th scope="row">apgd_ce</th><td class="number">1,234</td><td class="number">3</td>'
    assert row in page
    rounded = (
        "of the misclassified adversarial images of {} (L∞, eps 0.03) are classified correctly."
    )
    accuracy = "The accuracy on the rounded images is"
    assert f"After rounding to 8 bits, 7 {rounded.format('aa')} {accuracy} 25.0 %." in page
    assert f"After rounding to 8 bits, 0 {rounded.format('fab')} {accuracy} 20.0 %." in page


def test_terminal_table_shows_them(evaluation):
    file = io.StringIO()
    Console(width=120, file=file).print(tables.table(Evaluation.from_json(evaluation)))
    cells = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in file.getvalue().splitlines()]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["apgd_ce"] == ["", "", "1,234 misclassified", "", "4.0"]
    assert ["rounded to 8 bits", "", "", "25.0 %", "7 correct again"] in cells


def test_optimality_of_attacks_that_measure_all_distances(tmp_path, evaluation):
    for name in ("aa/0.03", "mi/0.03"):
        del evaluation["attacks"][name]
    near = np.repeat([0.0, 0.02, 0.04], [N // 10, N // 2, N - N // 10 - N // 2])
    examples = make_examples()
    for key, distances in (("fab/0.03", near), ("fmn/0.03", np.where(near > 0, 0.04, 0))):
        examples |= {f"survived/{key}": distances > 0.03, f"distances/{key}": distances}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    np.savez(tmp_path / "examples.npz", **examples)
    page = report.write_report(tmp_path).read_text()
    section = page[page.index("<h2>Distance to the decision boundary, L") :]
    assert '<th class="number">Optimality</th><th class="number">Forward passes</th>' in section
    for name, optimality in (("fab", "1.000"), ("fmn", "0.000")):
        row = section[section.index(f'<th scope="row">{name}/0.03</th>') :].split("</tr>")[0]
        assert row.endswith(f'{optimality}</td><td class="number">7,810</td>')


def test_distances_where_the_attack_measures_them(page):
    section = page[page.index("<h2>Distance to the decision boundary, L") :]
    assert section.count("within 0.0300") == 1  # AutoAttack stops at its first success
    row = section[section.index('<th scope="row">fab/0.03</th>') :]
    for value in (f"{N - N // 10} of {N}", "0.0200", "0.0400", "0.0800"):
        cell = f'<td class="number">{value}</td>'
        assert cell in row
        row = row[row.index(cell) :]
