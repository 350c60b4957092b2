"""Tests of differences between accuracies, their intervals and p values."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t, ttest_ind
from study_measurements import N, measurement, of_training

from jaxadv.study.differences import Difference, SeedSpread, mcnemar, seed_spreads, subtract
from jaxadv.study.specification import Cell


def test_mcnemar_test_is_exact():
    assert mcnemar(measurement((0, 500)), measurement((30, 510))) == binomtest(30, 40).pvalue
    assert mcnemar(measurement((0, 500)), measurement((0, 500))) == 1.0


def test_variance_of_one_training_is_that_of_its_images():
    found = subtract(
        {0: measurement((0, 500))}, {0: measurement((30, 510))}, None
    )  # 30 gained, 10 lost
    error = np.std([1] * 30 + [-1] * 10 + [0] * (N - 40)) / np.sqrt(N)
    assert found == pytest.approx((0.02, error, np.inf))
    assert found.interval() == pytest.approx((0.02 - 1.96 * error, 0.02 + 1.96 * error), rel=1e-4)


def test_measurements_without_results_per_image_count_as_independent():
    one, other = measurement((0, 500)), measurement((0, 450))
    paired = subtract({0: one}, {0: other}, None)
    independent = subtract({0: one._replace(robust=None)}, {0: other}, None)
    error = np.sqrt(0.5 * 0.5 / N + 0.45 * 0.55 / N)
    assert independent.error == pytest.approx(error, rel=0.01)
    assert paired.error < independent.error
    other_images = subtract({0: one}, {0: measurement((0, 50), n=100)}, None)
    assert other_images.error > independent.error
    held_out = other._replace(split="held_out")  # as many images, but different ones
    assert subtract({0: one}, {0: held_out}, None) == independent
    assert mcnemar(one, held_out) is None


@pytest.mark.parametrize(
    ("better", "worse", "equal_var"),
    [
        ([0.30, 0.32], [0.27, 0.28], True),  # too few to estimate their own deviation
        ([0.30, 0.32, 0.31], [0.27, 0.28, 0.22], False),
    ],
)
def test_interval_over_seeds_is_that_of_students_t_test_with_many_images(better, worse, equal_var):
    n = 10**7  # so many images that their variance vanishes
    sides = [
        {seed: measurement((0, int(n * share)), n=n) for seed, share in enumerate(shares)}
        for shares in (better, worse)
    ]
    cells = Cell("a", "0.03"), Cell("b", "0.03")
    spread = seed_spreads(
        [{cells[0]: of_training(sides[0], "a"), cells[1]: of_training(sides[1], "b")}]
    )
    assert spread["0.03"].freedom == len(better) + len(worse) - 2
    found = subtract(*sides, spread["0.03"])
    expected = ttest_ind(better, worse, equal_var=equal_var)
    for level in (0.90, 0.95):
        interval = expected.confidence_interval(level)
        assert found.interval(level) == pytest.approx((interval.low, interval.high), rel=1e-3)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-3)
    assert found.is_significant == (expected.pvalue < 0.05)


def test_variances_of_images_and_seeds_add_up():
    one, other, spread = (
        {0: measurement((0, 560))},
        {0: measurement((0, 500)), 1: measurement((0, 500))},
        0.02,
    )
    of_images, of_seeds = 0.06 * 0.94 / N, spread**2 * 1.5
    freedom = 3 * (of_images + of_seeds) ** 2 / of_seeds**2
    half = t.ppf(0.975, freedom) * np.sqrt(of_images + of_seeds)
    found = subtract(one, other, SeedSpread(spread, 3))
    assert found.interval() == pytest.approx((0.06 - half, 0.06 + half))
    no_spread = subtract(one, other, SeedSpread(1e-9, 3))
    high = no_spread.interval()[1]
    assert high == pytest.approx(0.06 + norm.ppf(0.975) * np.sqrt(of_images))


def test_training_in_two_experiments_counts_once_in_the_spread():
    by_seed = {0: measurement((0, 500)), 1: measurement((0, 520))}
    once = {Cell("net", "0.03"): by_seed, Cell("net", "clean"): {0: measurement((0, 900))}}
    again = {Cell("net, last", "0.03"): {0: measurement((0, 300)), 1: measurement((0, 500))}}
    by_seed[2] = measurement((0, 100), learned=False)  # left out
    assert seed_spreads([once]) == seed_spreads([once, again])
    assert seed_spreads([once]) == {
        "0.03": SeedSpread(pytest.approx(np.std([0.5, 0.52], ddof=1)), 1)
    }


def test_p_value_is_that_of_the_interval_which_ends_at_the_threshold():
    difference = Difference(0.05, 0.02, 7)
    low, _ = difference.interval(0.9)
    assert difference.p_value(low) == pytest.approx(0.1)
    assert Difference(0.0, 0.0).p_value() == 1.0  # the same evaluation twice
    assert Difference(0.01, 0.0).p_value() == 0.0


def test_scores_have_no_mcnemar_test():
    score = measurement((0, 500))._replace(robust=np.full(N, 3))
    assert mcnemar(score, score) is None
