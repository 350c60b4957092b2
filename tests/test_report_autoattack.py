"""What a report says of AutoAttack and of distances."""

import copy
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from test_report import EVALUATION, N, entry, make_examples

from jaxadv import report, terminal

BALL = {"norm": "linf", "eps": 0.03, "queries": 7810, "seconds": 9.0, "noise": "on"}


@pytest.fixture
def evaluation():
    evaluation = copy.deepcopy(EVALUATION)
    stages = [{"name": "apgd_ce", "broken": 1234, "unconfirmed": 3, "seconds": 4.0}]
    evaluation["attacks"]["aa/0.03"] = entry(
        0.2, attack="autoattack", **BALL, version="standard", stages=stages,
        uint8={"accuracy": 0.25, "lost": 7},
    )  # fmt: skip
    evaluation["attacks"]["fab/0.03"] = entry(
        0.2, attack="fab", **BALL, early_stop=False, uint8={"accuracy": 0.2, "lost": 0}
    )
    return evaluation


@pytest.fixture
def page(tmp_path, evaluation):
    examples = make_examples()
    # A tenth is misclassified as it stands, and no boundary was found of a tenth.
    distances = np.repeat(
        [0.0, 0.02, 0.04, 0.08, np.inf], [N // 10, N // 5, N // 5, 2 * N // 5, N // 10]
    )
    examples |= {"distances/aa/0.03": distances, "distances/fab/0.03": distances}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    np.savez(tmp_path / "examples.npz", **examples)
    return report.write(tmp_path).read_text()


def test_the_stages_of_autoattack_and_what_rounding_undoes(page):
    assert "version standard" in page
    row = '<th scope="row">apgd_ce</th><td class="number">1,234</td><td class="number">3</td>'
    assert row in page
    again = "of the adversarial images of {}, L∞ eps 0.03, are classified correctly again"
    assert f"Written as bytes, 7 {again.format('aa')}, which leaves 25.00 %" in page
    assert f"Written as bytes, 0 {again.format('fab')}" in page


def test_the_terminal_shows_them_too(evaluation):
    file = io.StringIO()
    Console(width=120, file=file).print(terminal.table(evaluation))
    cells = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in file.getvalue().splitlines()]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["apgd_ce"] == ["", "", "1,234 broken", "", "4.0"]
    assert ["as bytes", "", "", "25.00 %", "7 undone"] in cells


def test_distances_where_the_attack_tells_them(page):
    section = page[page.index("<h2>Distance to the boundary, L") :]
    assert "within 0.0300" in section  # AutoAttack ends at its ball
    row = section[section.index('<th scope="row">fab/0.03</th>') :]
    for value in (f"{N - N // 10} of {N}", "0.0200", "0.0400", "0.0800"):
        cell = f'<td class="number">{value}</td>'
        assert cell in row
        row = row[row.index(cell) :]
