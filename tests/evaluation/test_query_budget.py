import numpy as np
import pytest

from jaxadv.evaluation.metrics import accuracy_over_queries, query_cost

FOOLED = np.array([True, True, True, False, False])
QUERIES = np.array([0, 3, 40, 100, 100])  # the first is misclassified without perturbation


def test_accuracy_falls_where_the_budget_covers_a_success():
    curve = accuracy_over_queries(FOOLED, QUERIES, 100, anytime=True)
    assert [point.queries for point in curve] == [1, 2, 5, 10, 20, 50, 100]
    accuracies = [point.accuracy for point in curve]
    np.testing.assert_allclose(accuracies, [0.8, 0.8, 0.6, 0.6, 0.6, 0.4, 0.4])
    assert all(point.ci95[0] < point.accuracy < point.ci95[1] for point in curve)


def test_the_full_budget_is_the_last_point():
    curve = accuracy_over_queries(FOOLED, QUERIES, 4001, anytime=True)
    assert [point.queries for point in curve[-3:]] == [1000, 2000, 4001]
    assert accuracy_over_queries(FOOLED, QUERIES, 0, anytime=True) == ()


def test_an_attack_that_checks_success_only_at_the_end_has_one_point():
    (point,) = accuracy_over_queries(FOOLED, QUERIES, 100, anytime=False)
    assert point.accuracy == pytest.approx(0.4)


def test_the_cost_is_that_of_successes_only():
    cost = query_cost(FOOLED[1:], QUERIES[1:], ())
    assert (cost.success_rate, cost.mean_queries, cost.median_queries) == (0.5, 21.5, 21.5)


def test_without_successes_the_cost_is_unknown():
    for rows, success_rate in ((slice(3, None), 0.0), (slice(0), None)):
        cost = query_cost(FOOLED[rows], QUERIES[rows], ())
        assert cost.success_rate == success_rate
        assert cost.mean_queries is cost.median_queries is None
