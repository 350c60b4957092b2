"""Tests of confidence intervals, p values and verdicts on claims."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t, ttest_ind

from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.study import specification
from jaxadv.study.measurements import Measurement, measure
from jaxadv.study.specification import ORIGINAL, SLIDES, Cell, Experiment
from jaxadv.study.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_RUN,
    SUPPORTED,
    SeedSpread,
    assess,
    compare,
    compare_with_limit,
    differences_from_slides,
    mcnemar,
    seed_spreads,
    subtract,
)

N = 1000


def measurement(*robust_ranges, training="net", weights="w", n=N, learned=True):
    """Return a measurement in which the images in ranges (start, end) are robust."""
    robust = np.zeros(n, bool)
    for start, end in robust_ranges:
        robust[start:end] = True
    share = binomial_accuracy(robust.sum(), n)
    source = (weights, "pgd40/0.03")
    return Measurement(share.accuracy, share.ci95, robust, training, source, learned=learned)


def test_mcnemar_test_is_exact():
    assert mcnemar(measurement((0, 500)), measurement((30, 510))) == binomtest(30, 40).pvalue
    assert mcnemar(measurement((0, 500)), measurement((0, 500))) == 1.0


def test_variance_of_one_training_is_that_of_its_images():
    found = subtract(
        {0: measurement((0, 500))}, {0: measurement((30, 510))}, None
    )  # 30 gained, 10 lost
    error = np.std([1] * 30 + [-1] * 10 + [0] * (N - 40)) / np.sqrt(N)
    assert found == pytest.approx((0.02, 0.02 - 1.96 * error, 0.02 + 1.96 * error), rel=1e-4)


def test_measurements_without_results_per_image_count_as_independent():
    one, other = measurement((0, 500)), measurement((0, 450))
    paired = subtract({0: one}, {0: other}, None)
    independent = subtract({0: one._replace(robust=None)}, {0: other}, None)
    error = np.sqrt(0.5 * 0.5 / N + 0.45 * 0.55 / N)
    assert independent.high - independent.value == pytest.approx(1.96 * error, rel=0.01)
    assert paired.high < independent.high
    other_images = subtract({0: one}, {0: measurement((0, 50), n=100)}, None)
    assert other_images.high > independent.high
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
    interval = ttest_ind(better, worse, equal_var=equal_var).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-3)


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
    assert found == pytest.approx((0.06, 0.06 - half, 0.06 + half))
    no_spread = subtract(one, other, SeedSpread(1e-9, 3))
    assert no_spread.high == pytest.approx(0.06 + norm.ppf(0.975) * np.sqrt(of_images))


def of_training(by_seed, training):
    return {seed: one._replace(training=training) for seed, one in by_seed.items()}


def test_training_in_two_experiments_counts_once_in_the_spread():
    by_seed = {0: measurement((0, 500)), 1: measurement((0, 520))}
    once = {Cell("net", "0.03"): by_seed, Cell("net", "clean"): {0: measurement((0, 900))}}
    again = {Cell("net, last", "0.03"): {0: measurement((0, 300)), 1: measurement((0, 500))}}
    by_seed[2] = measurement((0, 100), learned=False)  # left out
    assert seed_spreads([once]) == seed_spreads([once, again])
    assert seed_spreads([once]) == {
        "0.03": SeedSpread(pytest.approx(np.std([0.5, 0.52], ddof=1)), 1)
    }


BETTER, WORSE, SAME = (
    measurement(right, training=name, weights=name)
    for right, name in (((0, 560), "better"), ((0, 500), "worse"), ((1, 501), "same"))
)
SLIGHTLY, BY_A_POINT = (
    measurement(right, training=name, weights=name)
    for right, name in (((0, 505), "slightly"), ((0, 510), "by a point"))
)
SMALL, LARGE = SeedSpread(0.005, 10), SeedSpread(0.05, 10)


@pytest.mark.parametrize(
    ("first", "second", "kind", "spread", "word"),
    [
        ({0: BETTER}, {0: WORSE}, "higher", SMALL, SUPPORTED),
        ({0: WORSE}, {0: BETTER}, "higher", SMALL, CONTRADICTED),
        ({0: SAME}, {0: WORSE}, "higher", SMALL, INCONCLUSIVE),
        ({0: BETTER}, {0: WORSE}, "higher", LARGE, INCONCLUSIVE),  # within the spread of seeds
        ({0: BETTER}, {0: WORSE}, "higher", None, INCONCLUSIVE),  # unknown spread
        ({2: BETTER}, {0: WORSE, 1: WORSE}, "higher", SMALL, SUPPORTED),  # other seeds
        (
            {0: SAME},
            {0: WORSE},
            "no_gain",
            SeedSpread(0.001, 10),
            SUPPORTED,
        ),  # by less than a point
        ({0: SAME}, {0: WORSE}, "no_gain", SMALL, INCONCLUSIVE),
        ({0: BETTER}, {0: WORSE}, "no_gain", SMALL, CONTRADICTED),
        ({0: WORSE}, {0: BETTER}, "no_gain", SMALL, SUPPORTED),
        (
            {0: SLIGHTLY},
            {0: WORSE},
            "no_gain",
            SeedSpread(0.0005, 10),
            SUPPORTED,
        ),  # 0.1 to 0.9 points
        (
            {0: BY_A_POINT},
            {0: WORSE},
            "no_gain",
            SeedSpread(0.0005, 10),
            INCONCLUSIVE,
        ),  # 0.4 to 1.6 points
        ({0: SAME}, {0: WORSE}, "equal", SMALL, SUPPORTED),
        ({0: BETTER}, {0: WORSE}, "equal", SMALL, CONTRADICTED),
        ({0: WORSE}, {0: BETTER}, "equal", SMALL, CONTRADICTED),
    ],
)
def test_verdict_follows_from_the_confidence_interval(first, second, kind, spread, word):
    assert compare(first, second, kind, spread).word == word


def test_two_evaluations_of_one_training_need_no_spread():
    best, last = measurement((0, 560), weights="best"), measurement((0, 500), weights="last")
    assert compare({0: best}, {0: last}, "higher", None).word == SUPPORTED
    assert compare({0: best}, {1: last}, "higher", None).word == NOT_RUN  # no common seed
    same = compare({0: best}, {0: best}, "higher", None)
    assert same.word == INCONCLUSIVE
    assert same.sentence == "Both are the same model: the best checkpoint is the last."
    both = compare({0: best, 1: best}, {0: last, 1: best}, "higher", None)
    assert both.sentence.endswith(" In 1 of 2 seeds the best checkpoint is the last.")


def test_two_trainings_with_the_same_weights_need_no_spread():
    noisy = measurement((0, 560), training="with noise at test time")
    assert compare({0: noisy}, {0: measurement((0, 500))}, "higher", LARGE).word == SUPPORTED
    retrained = measurement((0, 500), weights="others")
    assert compare({0: noisy}, {0: retrained}, "higher", LARGE).word == INCONCLUSIVE


def slide_measurements(slides):
    experiment = Experiment("", "", "", trainings={}, claims=(), slides=slides, num_slide_images=N)
    return measure(experiment, {})


def test_slides_are_compared_with_the_original_protocol():
    slides = slide_measurements(
        {"net": {"0.03": 50.0, "0.1": 5.0, "score": 55.0}, "vit": {"0.03": 1.0}}
    )
    assert slides.keys() == {
        Cell("net", "0.03", SLIDES), Cell("net", "0.1", SLIDES), Cell("vit", "0.03", SLIDES)
    }  # fmt: skip
    ours = {
        Cell("net", "0.03", ORIGINAL): {0: measurement((0, 560))}, Cell("net", "0.1"): {0: BETTER}
    }  # fmt: skip
    spreads = {"0.03": SeedSpread(1e-9, 3)}
    ((key, found),) = differences_from_slides(ours | slides, spreads).items()
    assert key == ("net", "0.03")
    error = np.sqrt(0.56 * 0.44 / N + 0.5 * 0.5 / N)
    assert found.value == pytest.approx(0.06)
    assert found.low == pytest.approx(0.06 - 1.96 * error, abs=1e-3)
    assert differences_from_slides(ours | slides, {}) == {}  # unknown spread


def test_evidence_has_the_difference_and_the_p_values():
    one = {0: measurement((0, 500)), 1: measurement((0, 560))}
    other = {0: measurement((30, 510)), 1: measurement((0, 500), weights="v")}
    other = of_training(other, "other")
    assert compare(one, other, "higher", SMALL).sentence == (
        "53.0 % vs. 49.0 %: +4.0 (+2.7 to +5.3) points, 2 and 2 seeds; McNemar p = 0.002, < 0.001."
    )
    assert compare({0: BETTER}, {0: WORSE}, "higher", SMALL).sentence == (
        "56.0 % vs. 50.0 %: +6.0 (+3.9 to +8.1) points, one seed each; McNemar p < 0.001."
    )


def test_evidence_shows_the_sign_of_values_near_zero():
    many = 100_000
    one = {0: measurement((0, 200), n=many)}
    other = {0: measurement((0, 160), n=many, training="other", weights="v")}
    assert (
        "+0.04 (+0.03 to +0.05) points"
        in compare(one, other, "higher", SeedSpread(1e-9, 3)).sentence
    )


def test_limit_is_compared_with_the_wilson_interval():
    none = measurement((0, 0))
    assert compare_with_limit({0: none}, 0.01).word == SUPPORTED
    assert compare_with_limit({0: none}, 0.001).word == INCONCLUSIVE
    assert compare_with_limit({0: none, 1: BETTER}, 0.01).word == INCONCLUSIVE
    assert compare_with_limit({0: BETTER}, 0.01).word == CONTRADICTED


def claim_higher(first, second):
    return specification.higher("", Cell(first, "0.03"), Cell(second, "0.03"))


def test_column_without_several_seeds_has_the_spread_of_the_common_column():
    better, worse = Cell("better", "0.1", ORIGINAL), Cell("worse", "0.1", ORIGINAL)
    measurements = {better: {0: BETTER}, worse: {0: WORSE}}
    claim = specification.higher("", better, worse)
    assert assess(claim, measurements, {"0.03": LARGE}).word == INCONCLUSIVE
    assert assess(claim, measurements, {"0.03": LARGE, "0.1": SMALL}).word == SUPPORTED


def test_claims_about_models_that_did_not_learn_are_inconclusive():
    guess = {0: measurement((0, 100), training="guess", learned=False)}
    cell = Cell("guess", "0.03")
    found = {cell: guess, Cell("net", "0.03"): {0: BETTER}, Cell("none", "0.03"): {}}
    verdict = assess(claim_higher("net", "guess"), found, {"0.03": SMALL})
    assert verdict.word == INCONCLUSIVE
    assert verdict.sentence.endswith("But a model did not learn (‡).")
    assert assess(specification.at_most("", cell, 0.2), found, {}).word == INCONCLUSIVE
    at_most = specification.at_most("", Cell("net", "0.03"), 0.2)
    assert assess(at_most, found, {}).word == CONTRADICTED
    assert assess(claim_higher("none", "guess"), found, {}).word == NOT_RUN
