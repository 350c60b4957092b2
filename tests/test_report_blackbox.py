"""What a report says of attacks that see outputs only."""

import copy
import json

import pytest
from test_report import EVALUATION, entry

from jaxadv import report


def asked(accuracy, attack, **changes):
    over_queries = [{"queries": n, **entry(a)} for n, a in ((1, 0.55), (10_000, accuracy))]
    ledger = {"success_rate": 0.4567, "median_queries": 1234.5, "mean_queries": 2345.6}
    ball = {"norm": "linf", "eps": 0.1, "queries": 10_000, "seconds": 9.0, "noise": "on"}
    return entry(
        accuracy, attack=attack, **ball, over_queries=over_queries, **{**ledger, **changes}
    )


@pytest.fixture
def section(tmp_path):
    evaluation = copy.deepcopy(EVALUATION)
    steps = {"step_size": 0.02, "samples_per_gradient": 100, "directions": "normal", "sigma": 0.001}
    nothing = {"success_rate": 0.0, "median_queries": None, "mean_queries": None}
    evaluation["attacks"] |= {
        "nes/0.1": asked(0.2222, "nes") | steps,
        "square/0.1": asked(0.3333, "square", **nothing),
        "search/0.1": asked(0.5555, "random_search", **dict.fromkeys(nothing)),
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = report.write(tmp_path).read_text()
    assert "steps of 0.02 on 100 normal samples of sigma 0.001" in page
    assert page.count("<h2>Black box") == 1
    start = page.index("<h2>Black box, L∞ eps 0.10</h2>")
    return page[start : page.index("<h2>Training")]


def test_it_shows_the_budget_and_the_cost_of_a_success(section):
    for figure in ("10,000", "45.67 %", "1,234", "2,346", "0.00 %"):
        assert figure in section


def test_the_strongest_white_box_of_the_ball_is_the_level(section):
    drawing = section[: section.index("</svg>")]
    assert ">pgd40<" in drawing
    assert ">restarts<" not in drawing
    for name in ("nes", "square", "search"):
        assert f">{name}<" in drawing
