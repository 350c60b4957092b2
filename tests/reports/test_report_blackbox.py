"""Black-box attacks in the report."""

import copy
import json

import pytest
from test_report import EVALUATION, attack_entry, entry

from jaxadv.reports import report


def black_box_entry(accuracy, attack, **changes):
    over_queries = [{"queries": n, **entry(a)} for n, a in ((1, 0.55), (10_000, accuracy))]
    cost = {"success_rate": 0.4567, "median_queries": 1234.5, "mean_queries": 2345.6}
    ball = {"norm": "linf", "eps": 0.1, "queries": 10_000, "seconds": 9.0, "noise": "on"}
    return attack_entry(
        accuracy, attack=attack, **ball, over_queries=over_queries, **{**cost, **changes}
    )


@pytest.fixture
def section(tmp_path):
    evaluation = copy.deepcopy(EVALUATION)
    steps = {"step_size": 0.02, "samples_per_gradient": 100, "directions": "normal", "sigma": 0.001}
    no_success = {"success_rate": 0.0, "median_queries": None, "mean_queries": None}
    evaluation["attacks"] |= {
        "nes/0.1": black_box_entry(0.2222, "nes") | steps,
        "square/0.1": black_box_entry(0.3333, "square", **no_success),
        "search/0.1": black_box_entry(0.5555, "random_search", **dict.fromkeys(no_success)),
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = report.write_report(tmp_path).read_text()
    assert "steps of 0.02, gradients estimated from 100 normal samples, sigma 0.001" in page
    assert page.count("<h2>Black-box attacks") == 1
    start = page.index("<h2>Black-box attacks, L∞ eps 0.10</h2>")
    return page[start : page.index("<h2>Training")]


def test_query_budget_and_query_cost_are_shown(section):
    for number in ("10,000", "45.7 %", "1,234", "2,346", "0.0 %"):
        assert number in section


def test_strongest_white_box_attack_is_the_dashed_line(section):
    plot = section[: section.index("</svg>")]
    assert ">pgd40<" in plot
    assert ">restarts<" not in plot
    for name in ("nes", "square", "search"):
        assert f">{name}<" in plot
