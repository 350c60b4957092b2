"""When a claim holds: known intervals and p values, and what seeds make of them."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t, ttest_ind

from jaxadv.metrics import proportion
from jaxadv.study.claims import (
    FAILS,
    HOLDS,
    NOT_RUN,
    OPEN,
    Spread,
    at_most,
    compare,
    from_slides,
    gain,
    judge,
    mcnemar,
    spreads,
)
from jaxadv.study.evidence import Entry, read_off

N = 1000


def entry(*right, training="net", weights="w", n=N, learned=True):
    """An entry of images that survive in ranges (start, end)."""
    survived = np.zeros(n, bool)
    for start, end in right:
        survived[start:end] = True
    found = proportion(survived.sum(), n)
    source = (weights, "pgd40/0.03")
    return Entry(
        found["accuracy"], tuple(found["ci95"]), survived, training, source, learned=learned
    )


def test_mcnemars_test_is_exact():
    assert mcnemar(entry((0, 500)), entry((30, 510))) == binomtest(30, 40).pvalue
    assert mcnemar(entry((0, 500)), entry((0, 500))) == 1.0


def test_one_training_varies_with_its_images_alone():
    found = gain({0: entry((0, 500))}, {0: entry((30, 510))}, None)  # 30 gained, 10 lost
    error = np.std([1] * 30 + [-1] * 10 + [0] * (N - 40)) / np.sqrt(N)
    assert found == pytest.approx((0.02, 0.02 - 1.96 * error, 0.02 + 1.96 * error), rel=1e-4)


def test_without_the_images_the_two_are_independent():
    one, other = entry((0, 500)), entry((0, 450))
    pairs = gain({0: one}, {0: other}, None)
    apart = gain({0: one._replace(survived=None)}, {0: other}, None)
    error = np.sqrt(0.5 * 0.5 / N + 0.45 * 0.55 / N)
    assert apart.high - apart.difference == pytest.approx(1.96 * error, rel=0.01)
    assert pairs.high < apart.high  # pairing tells more
    other_images = gain({0: one}, {0: entry((0, 50), n=100)}, None)
    assert other_images.high > apart.high
    held_out = other._replace(split="held_out")  # as many, but others
    assert gain({0: one}, {0: held_out}, None) == apart
    assert mcnemar(one, held_out) is None


@pytest.mark.parametrize(
    ("better", "worse", "equal_var"),
    [
        ([0.30, 0.32], [0.27, 0.28], True),  # too few for a deviation of their own
        ([0.30, 0.32, 0.31], [0.27, 0.28, 0.22], False),
    ],
)
def test_seeds_vary_as_in_students_test_where_the_images_do_not_matter(better, worse, equal_var):
    n = 10**7  # so many images that nothing of them is left
    sides = [
        {seed: entry((0, int(n * share)), n=n) for seed, share in enumerate(shares)}
        for shares in (better, worse)
    ]
    spread = spreads([{("a", "0.03"): named(sides[0], "a"), ("b", "0.03"): named(sides[1], "b")}])
    assert spread["0.03"].freedom == len(better) + len(worse) - 2
    found = gain(*sides, spread["0.03"])
    interval = ttest_ind(better, worse, equal_var=equal_var).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-3)


def test_images_and_seeds_add_up():
    one, other, spread = {0: entry((0, 560))}, {0: entry((0, 500)), 1: entry((0, 500))}, 0.02
    of_images, of_seeds = 0.06 * 0.94 / N, spread**2 * 1.5
    freedom = 3 * (of_images + of_seeds) ** 2 / of_seeds**2
    half = t.ppf(0.975, freedom) * np.sqrt(of_images + of_seeds)
    found = gain(one, other, Spread(spread, 3))
    assert found == pytest.approx((0.06, 0.06 - half, 0.06 + half))
    no_spread = gain(one, other, Spread(1e-9, 3))
    assert no_spread.high == pytest.approx(0.06 + norm.ppf(0.975) * np.sqrt(of_images))


def named(entries, training):
    return {seed: found._replace(training=training) for seed, found in entries.items()}


def test_a_training_that_two_experiments_show_counts_once():
    entries = {0: entry((0, 500)), 1: entry((0, 520))}
    once = {("net", "0.03"): entries, ("net", "clean"): {0: entry((0, 900))}}
    again = {("net, last", "0.03"): {0: entry((0, 300)), 1: entry((0, 500))}}
    entries[2] = entry((0, 100), learned=False)  # says nothing
    assert spreads([once]) == spreads([once, again])
    assert spreads([once]) == {"0.03": Spread(pytest.approx(np.std([0.5, 0.52], ddof=1)), 1)}


BETTER, WORSE, SAME = (
    entry(right, training=name, weights=name)
    for right, name in (((0, 560), "better"), ((0, 500), "worse"), ((1, 501), "same"))
)
SLIGHTLY, BY_A_POINT = (
    entry(right, training=name, weights=name)
    for right, name in (((0, 505), "slightly"), ((0, 510), "by a point"))
)
SMALL, LARGE = Spread(0.005, 10), Spread(0.05, 10)


@pytest.mark.parametrize(
    ("more", "less", "kind", "spread", "word"),
    [
        ({0: BETTER}, {0: WORSE}, "more", SMALL, HOLDS),
        ({0: WORSE}, {0: BETTER}, "more", SMALL, FAILS),
        ({0: SAME}, {0: WORSE}, "more", SMALL, OPEN),
        ({0: BETTER}, {0: WORSE}, "more", LARGE, OPEN),  # seeds may differ as much
        ({0: BETTER}, {0: WORSE}, "more", None, OPEN),  # and nobody knows
        ({2: BETTER}, {0: WORSE, 1: WORSE}, "more", SMALL, HOLDS),  # of other seeds
        ({0: SAME}, {0: WORSE}, "no_gain", Spread(0.001, 10), HOLDS),  # to less than a point
        ({0: SAME}, {0: WORSE}, "no_gain", SMALL, OPEN),
        ({0: BETTER}, {0: WORSE}, "no_gain", SMALL, FAILS),
        ({0: WORSE}, {0: BETTER}, "no_gain", SMALL, HOLDS),
        ({0: SLIGHTLY}, {0: WORSE}, "no_gain", Spread(0.0005, 10), HOLDS),  # .1 to .9 points
        ({0: BY_A_POINT}, {0: WORSE}, "no_gain", Spread(0.0005, 10), OPEN),  # .4 to 1.6
        ({0: SAME}, {0: WORSE}, "alike", SMALL, HOLDS),
        ({0: BETTER}, {0: WORSE}, "alike", SMALL, FAILS),
        ({0: WORSE}, {0: BETTER}, "alike", SMALL, FAILS),
    ],
)
def test_a_claim_is_told_where_the_interval_leaves_out_zero(more, less, kind, spread, word):
    assert compare(more, less, kind, spread).word == word


def test_two_looks_at_one_training_need_no_spread():
    best, last = entry((0, 560), weights="best"), entry((0, 500), weights="last")
    assert compare({0: best}, {0: last}, "more", None).word == HOLDS
    assert compare({0: best}, {1: last}, "more", None).word == NOT_RUN  # not of one seed
    one = compare({0: best}, {0: best}, "more", None)
    assert one.word == OPEN
    assert one.sentence == "The two are one: the best checkpoint is the last."
    both = compare({0: best, 1: best}, {0: last, 1: best}, "more", None)
    assert both.sentence.endswith(" In 1 of 2 seeds the best checkpoint is the last.")


def test_two_trainings_that_left_the_same_weights_need_no_spread():
    noisy = entry((0, 560), training="with noise at test time")
    assert compare({0: noisy}, {0: entry((0, 500))}, "more", LARGE).word == HOLDS
    anew = entry((0, 500), weights="others")
    assert compare({0: noisy}, {0: anew}, "more", LARGE).word == OPEN


def test_a_figure_of_the_slides_is_compared_with_ours_judged_as_there():
    slides = read_off({"net": {"0.03": 50.0, "0.1": 5.0, "score": 55.0}, "vit": {"0.03": 1.0}}, N)
    ours = {("net", "as there 0.03"): {0: entry((0, 560))}, ("net", "0.1"): {0: BETTER}}
    ((key, found),) = from_slides(ours | slides, {"0.03": Spread(1e-9, 3)}).items()
    assert key == ("net", "0.03")
    error = np.sqrt(0.56 * 0.44 / N + 0.5 * 0.5 / N)
    assert found.difference == pytest.approx(0.06)
    assert found.low == pytest.approx(0.06 - 1.96 * error, abs=1e-3)
    assert from_slides(ours | slides, {}) == {}  # nobody knows how seeds differ


def test_the_sentence_has_the_numbers():
    one = {0: entry((0, 500)), 1: entry((0, 560))}
    other = {0: entry((30, 510)), 1: entry((0, 500), weights="v")}
    other = named(other, "other")
    assert compare(one, other, "more", SMALL).sentence == (
        "53.0 % against 49.0 %: +4.0 (+2.7 to +5.3) points, 2 and 2 seeds; "
        "McNemar p = .002, < .001."
    )
    assert compare({0: BETTER}, {0: WORSE}, "more", SMALL).sentence == (
        "56.0 % against 50.0 %: +6.0 (+3.9 to +8.1) points, one seed each; McNemar p < .001."
    )


def test_the_sentence_shows_on_which_side_of_zero_an_end_is():
    many = 100_000
    one = {0: entry((0, 200), n=many)}
    other = {0: entry((0, 160), n=many, training="other", weights="v")}
    assert "+0.04 (+0.03 to +0.05) points" in compare(one, other, "more", Spread(1e-9, 3)).sentence


def test_at_most_looks_at_the_end_of_the_interval():
    none = entry((0, 0))
    assert at_most({0: none}, 0.01).word == HOLDS
    assert at_most({0: none}, 0.001).word == OPEN
    assert at_most({0: none, 1: BETTER}, 0.01).word == OPEN
    assert at_most({0: BETTER}, 0.01).word == FAILS


def claimed(more, less):
    return {"kind": "more", "more": (more, "0.03"), "less": (less, "0.03")}


def test_a_column_without_several_seeds_has_the_spread_of_the_common_one():
    better, worse = ("better", "as there 0.1"), ("worse", "as there 0.1")
    found = {better: {0: BETTER}, worse: {0: WORSE}}
    claim = {"kind": "more", "more": better, "less": worse}
    assert judge(claim, found, {"0.03": LARGE}).word == OPEN
    assert judge(claim, found, {"0.03": LARGE, "0.1": SMALL}).word == HOLDS


def test_a_model_that_guesses_bears_no_claim_out():
    guess = {0: entry((0, 100), training="guess", learned=False)}
    found = {("guess", "0.03"): guess, ("net", "0.03"): {0: BETTER}, ("none", "0.03"): {}}
    verdict = judge(claimed("net", "guess"), found, {"0.03": SMALL})
    assert verdict.word == OPEN
    assert verdict.sentence.endswith("But a model did not learn (‡).")
    at_most_claim = {"kind": "at_most", "entry": ("guess", "0.03"), "share": 0.2}
    assert judge(at_most_claim, found, {}).word == OPEN
    assert judge({**at_most_claim, "entry": ("net", "0.03")}, found, {}).word == FAILS
    assert judge(claimed("none", "guess"), found, {}).word == NOT_RUN
