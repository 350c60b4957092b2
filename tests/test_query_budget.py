import numpy as np
import pytest

from jaxadv.query_budget import accuracy_over_queries, cost_of_success

BROKEN = np.array([True, True, True, False, False])
QUERIES = np.array([0, 3, 40, 100, 100])  # the first was misclassified as it stood


def test_accuracy_falls_where_the_budget_reaches_a_success():
    curve = accuracy_over_queries(BROKEN, QUERIES, 100, anytime=True)
    assert [entry["queries"] for entry in curve] == [1, 2, 5, 10, 20, 50, 100]
    accuracies = [entry["accuracy"] for entry in curve]
    np.testing.assert_allclose(accuracies, [0.8, 0.8, 0.6, 0.6, 0.6, 0.4, 0.4])
    assert all(entry["ci95"][0] < entry["accuracy"] < entry["ci95"][1] for entry in curve)


def test_the_whole_budget_is_the_last_point():
    curve = accuracy_over_queries(BROKEN, QUERIES, 4001, anytime=True)
    assert [entry["queries"] for entry in curve[-3:]] == [1000, 2000, 4001]
    assert accuracy_over_queries(BROKEN, QUERIES, 0, anytime=True) == []


def test_an_attack_that_looks_only_at_the_end_has_one_point():
    (point,) = accuracy_over_queries(BROKEN, QUERIES, 100, anytime=False)
    assert point["accuracy"] == pytest.approx(0.4)


def test_the_cost_is_that_of_successes_only():
    cost = cost_of_success(BROKEN[1:], QUERIES[1:])
    assert cost == {"success_rate": 0.5, "mean_queries": 21.5, "median_queries": 21.5}


def test_nothing_broken_costs_nothing_known():
    unknown = {"mean_queries": None, "median_queries": None}
    assert cost_of_success(BROKEN[3:], QUERIES[3:]) == {"success_rate": 0.0, **unknown}
    assert cost_of_success(BROKEN[:0], QUERIES[:0]) == {"success_rate": None, **unknown}
