"""Tests of verdicts on claims."""

import numpy as np
import pytest
from scipy.stats import norm
from study_measurements import N, measurement, of_training

from jaxadv.study import specification
from jaxadv.study.differences import Difference, SeedSpread
from jaxadv.study.measurements import measure
from jaxadv.study.specification import ORIGINAL, SCORE, SLIDES, Cell, Claim, Experiment
from jaxadv.study.verdicts import (
    CONTRADICTED,
    DID_NOT_TRAIN,
    INCONCLUSIVE,
    NOT_RUN,
    SUPPORTED,
    Evidence,
    Verdict,
    assess,
    compare,
    compare_with_limit,
    differences_from_slides,
    holm,
    holm_of_claims,
)

BETTER, WORSE, SAME = (
    measurement(right, training=name, weights=name)
    for right, name in (((0, 560), "better"), ((0, 500), "worse"), ((1, 501), "same"))
)
SLIGHTLY, BY_A_POINT = (
    measurement(right, training=name, weights=name)
    for right, name in (((0, 505), "slightly"), ((0, 510), "by a point"))
)
SMALL, LARGE = SeedSpread(0.005, 10), SeedSpread(0.05, 10)
A, B = Cell("a", "0.03"), Cell("b", "0.03")


def claim_of(kind, threshold=0.0):
    return Claim("", "", kind, A, B, threshold)


@pytest.mark.parametrize(
    ("first", "second", "kind", "spread", "word"),
    [
        ({0: BETTER}, {0: WORSE}, "higher", SMALL, SUPPORTED),
        ({0: WORSE}, {0: BETTER}, "higher", SMALL, CONTRADICTED),
        ({0: SAME}, {0: WORSE}, "higher", SMALL, INCONCLUSIVE),
        ({0: BETTER}, {0: WORSE}, "higher", LARGE, INCONCLUSIVE),  # within the spread of seeds
        ({0: BETTER}, {0: WORSE}, "higher", None, INCONCLUSIVE),  # unknown spread
        ({2: BETTER}, {0: WORSE, 1: WORSE}, "higher", SMALL, SUPPORTED),  # other seeds
        ({0: WORSE}, {0: BETTER}, "lower", SMALL, SUPPORTED),
        ({0: BETTER}, {0: WORSE}, "lower", SMALL, CONTRADICTED),
        ({0: SAME}, {0: WORSE}, "lower", SMALL, INCONCLUSIVE),
        ({0: SAME}, {0: WORSE}, "no_gain", SeedSpread(0.001, 10), SUPPORTED),  # less than a point
        ({0: SAME}, {0: WORSE}, "no_gain", SMALL, INCONCLUSIVE),
        ({0: BETTER}, {0: WORSE}, "no_gain", SMALL, CONTRADICTED),
        ({0: WORSE}, {0: BETTER}, "no_gain", SMALL, SUPPORTED),
        # A small gain is a gain: 0.1 to 0.9 points, and 0.4 to 1.6 points.
        ({0: SLIGHTLY}, {0: WORSE}, "no_gain", SeedSpread(0.0005, 10), CONTRADICTED),
        ({0: BY_A_POINT}, {0: WORSE}, "no_gain", SeedSpread(0.0005, 10), CONTRADICTED),
        ({0: SAME}, {0: WORSE}, "equal", SMALL, SUPPORTED),
        ({0: BETTER}, {0: WORSE}, "equal", SMALL, CONTRADICTED),
        ({0: WORSE}, {0: BETTER}, "equal", SMALL, CONTRADICTED),
    ],
)
def test_verdict_follows_from_the_confidence_interval(first, second, kind, spread, word):
    assert compare("PGD-40", first, second, claim_of(kind), spread).word == word


@pytest.mark.parametrize(
    ("threshold", "word"), [(0.03, SUPPORTED), (0.06, INCONCLUSIVE), (0.09, CONTRADICTED)]
)
def test_gain_is_compared_with_the_threshold(threshold, word):
    found = compare("clean", {0: BETTER}, {0: WORSE}, claim_of("higher", threshold), SMALL)
    assert found.word == word
    assert (found.p > 0.9) == (threshold == 0.06)


def test_verdict_that_another_level_changes_is_borderline():
    error, freedom = 0.01, 10

    def found(value):
        """Return the evidence of a difference of so many points."""
        first = measurement((0, int(N * (0.5 + value))), training="a", weights="a")
        spread = SeedSpread(error, freedom)  # of the difference, without that of the images
        first = {0: first._replace(robust=None, ci95=(0.0, 0.0))}
        second = {0: WORSE._replace(robust=None, ci95=(0.0, 0.0))}
        return compare("", first, second, claim_of("higher"), spread)

    # Student's t with 10 degrees of freedom: 1.812, 2.228 and 3.169 times sqrt(2) points.
    for value, word, borderline in (
        (0.020, INCONCLUSIVE, False),
        (0.029, INCONCLUSIVE, True),
        (0.035, SUPPORTED, True),
        (0.050, SUPPORTED, False),
    ):
        assert (found(value).word, found(value).borderline) == (word, borderline)


def test_two_evaluations_of_one_training_need_no_spread():
    best, last = measurement((0, 560), weights="best"), measurement((0, 500), weights="last")
    higher = claim_of("higher")
    assert compare("", {0: best}, {0: last}, higher, None).word == SUPPORTED
    assert compare("", {0: best}, {1: last}, higher, None).word == NOT_RUN  # no common seed
    same = compare("", {0: best}, {0: best}, higher, None)
    assert (same.word, same.identical, same.p) == (INCONCLUSIVE, (0,), None)
    both = compare("", {0: best, 1: best}, {0: last, 1: best}, higher, None)
    assert both.identical == (1,)


def test_two_trainings_with_the_same_weights_need_no_spread():
    noisy, higher = measurement((0, 560), training="with noise at test time"), claim_of("higher")
    found = compare("", {0: noisy}, {0: measurement((0, 500))}, higher, LARGE)
    assert (found.word, found.images_only) == (SUPPORTED, True)
    retrained = measurement((0, 500), weights="others")
    found = compare("", {0: noisy}, {0: retrained}, higher, LARGE)
    assert (found.word, found.images_only) == (INCONCLUSIVE, False)


def slide_measurements(slides):
    experiment = Experiment(
        "", "", "", "", trainings={}, claims=(), slides=slides, num_slide_images=N
    )
    return measure(experiment, {})


def test_slides_are_compared_with_the_original_protocol():
    slides = slide_measurements({"net": {"0.03": 50.0, "0.1": 5.0}, "vit": {"0.03": 1.0}})
    assert slides.keys() == {
        Cell("net", "0.03", SLIDES), Cell("net", "0.1", SLIDES), Cell("vit", "0.03", SLIDES)
    }  # fmt: skip
    ours = {
        Cell("net", "0.03", ORIGINAL): {0: measurement((0, 560))}, Cell("net", "0.1"): {0: BETTER}
    }  # fmt: skip
    spreads = {"0.03": SeedSpread(1e-9, 3)}
    ((key, found),) = differences_from_slides(ours | slides, spreads).items()
    assert key == ("net", "0.03")
    assert found.value == pytest.approx(0.06)
    assert found.error == pytest.approx(np.sqrt(0.56 * 0.44 / N + 0.5 * 0.5 / N), rel=0.01)
    assert differences_from_slides(ours | slides, {}) == {}  # unknown spread


def test_limit_is_compared_with_the_wilson_interval():
    none = measurement((0, 0))
    assert compare_with_limit("", {0: none}, 0.01).word == SUPPORTED
    assert compare_with_limit("", {0: none}, 0.001).word == INCONCLUSIVE
    assert compare_with_limit("", {0: none, 1: BETTER}, 0.01).word == INCONCLUSIVE
    assert compare_with_limit("", {0: BETTER}, 0.01).word == CONTRADICTED
    # The p value is that of the level at which the interval ends at the limit.
    at_limit = compare_with_limit("", {0: none}, none.ci95[1])
    assert at_limit.p == pytest.approx(0.05)
    assert at_limit.borderline
    assert not compare_with_limit("", {0: none}, 0.01).borderline


def test_column_without_several_seeds_has_the_spread_of_the_common_column():
    better, worse = Cell("better", "0.1", ORIGINAL), Cell("worse", "0.1", ORIGINAL)
    measurements = {better: {0: BETTER}, worse: {0: WORSE}}
    claim = specification.higher("", better, worse)
    assert assess(claim, measurements, {"0.03": LARGE}).decisive.word == INCONCLUSIVE
    spreads = {"0.03": LARGE, "0.1": SMALL}
    assert assess(claim, measurements, spreads).decisive.word == SUPPORTED


AA = "AutoAttack 0.03"
SPREADS = {"0.03": SMALL, AA: SMALL}


def test_robustness_at_eps_003_is_decided_by_autoattack_and_pgd():
    found = {A: {0: BETTER}, B: {0: WORSE}, A._replace(column=AA): {0: SAME}}
    found[B._replace(column=AA)] = {0: WORSE}
    verdict = assess(claim_of("higher"), found, SPREADS)
    words = {one.attack: one.word for one in verdict.evidence}
    assert words == {"AutoAttack": INCONCLUSIVE, "PGD-40": SUPPORTED}
    assert verdict.decisive.attack == "AutoAttack"
    del found[B._replace(column=AA)]
    verdict = assess(claim_of("higher"), found, SPREADS)
    assert [one.word for one in verdict.evidence] == [NOT_RUN, SUPPORTED]
    assert verdict.decisive.attack == "PGD-40"


def test_checkpoints_of_one_training_are_decided_by_pgd_alone():
    best, last = measurement((0, 560), weights="best"), measurement((0, 500), weights="last")
    verdict = assess(claim_of("higher"), {A: {0: best}, B: {0: last}}, SPREADS)
    assert [one.attack for one in verdict.evidence] == ["PGD-40"]


@pytest.mark.parametrize(
    ("cell", "attack"),
    [
        (Cell("a", "clean"), "clean"),
        (Cell("a", "0.05"), "PGD-40, eps 0.05"),
        (Cell("a", "4000"), "4,000 queries"),
        (Cell("a", SCORE), "aggregated score"),
        (Cell("a", "0.03", ORIGINAL), "original protocol"),
    ],
)
def test_other_columns_are_decided_by_themselves(cell, attack):
    other = cell._replace(label="b")
    verdict = assess(
        specification.higher("", cell, other), {cell: {0: BETTER}, other: {0: WORSE}}, SPREADS
    )
    assert [one.attack for one in verdict.evidence] == [attack]


def test_seeds_that_did_not_train_are_a_verdict_of_their_own():
    guess = measurement((0, 100), training="guess", learned=False)
    net = of_training({0: BETTER, 1: BETTER}, "net")
    found = {A: net, B: {0: guess, 1: WORSE._replace(training="guess")}}
    (evidence,) = assess(claim_of("higher"), found, {"0.03": SMALL}).evidence[1:]
    assert evidence.word == DID_NOT_TRAIN
    assert evidence.collapsed == (([], 2), ([0], 2))
    # The comparison is that of the others.
    assert evidence.difference == compare("", net, {1: WORSE}, claim_of("higher"), SMALL).difference
    found[B] = {0: guess}
    (evidence,) = assess(claim_of("higher"), found, {"0.03": SMALL}).evidence[1:]
    assert (evidence.word, evidence.difference) == (DID_NOT_TRAIN, None)
    at_most = specification.at_most("", B, 0.2)
    assert assess(at_most, found, {}).decisive.word == DID_NOT_TRAIN
    assert assess(at_most, {B: {0: BETTER}}, {}).decisive.word == CONTRADICTED
    assert assess(claim_of("higher"), {A: net, B: {}}, {}).decisive.word == NOT_RUN


def test_a_seed_that_did_not_train_counts_under_every_attack():
    guess = measurement((0, 100), training="guess", learned=False)
    found = {
        A: of_training({0: BETTER}, "net"),
        B: {0: guess, 1: WORSE._replace(training="guess")},
        A._replace(column=AA): of_training({0: BETTER}, "net"),
        B._replace(column=AA): {1: WORSE._replace(training="guess")},  # not attacked
    }
    verdict = assess(claim_of("higher"), found, SPREADS)
    assert [one.word for one in verdict.evidence] == [DID_NOT_TRAIN, DID_NOT_TRAIN]
    assert [one.collapsed for one in verdict.evidence] == [(([], 1), ([0], 2))] * 2


def test_what_is_left_after_a_collapse_may_be_one_model():
    best = measurement((0, 560), weights="best")
    guess = measurement((0, 100), weights="guess", learned=False)
    found = {A: {0: best, 1: guess}, B: {0: best, 1: guess}}
    (evidence,) = assess(claim_of("higher"), found, SPREADS).evidence
    assert (evidence.word, evidence.identical) == (DID_NOT_TRAIN, (0,))


def test_holm_corrects_for_the_number_of_tests():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.9, 0.001]) == pytest.approx([0.9, 0.002])
    assert holm([]) == []


def test_all_tests_of_the_page_are_corrected_together():
    def verdict(*p_values):
        return Verdict(
            tuple(Evidence(f"attack {i}", SUPPORTED, {}, {}, p=p) for i, p in enumerate(p_values))
        )

    first, none, last = holm_of_claims([verdict(0.01, None), verdict(), verdict(0.04, 0.02)])
    assert first == pytest.approx({"attack 0": 0.03})
    assert none == {}
    assert last == pytest.approx({"attack 0": 0.04, "attack 1": 0.04})


@pytest.mark.parametrize(
    ("kind", "first", "bound"),
    [
        ("higher", BETTER, 0.0),
        ("lower", BETTER, 0.0),
        ("no_gain", BETTER, 0.0),  # contradicted: there is a gain
        ("no_gain", SAME, 0.01),  # not a gain of a point
        ("equal", BETTER, None),  # no small p value supports it
    ],
)
def test_p_value_is_that_of_the_bound_that_decides(kind, first, bound):
    spread = SeedSpread(1e-9, 10)
    found = compare("", {0: first}, {0: WORSE}, claim_of(kind), spread)
    if bound is None:
        assert found.p is None
        return
    error = float(np.std(first.robust.astype(int) - WORSE.robust)) / np.sqrt(N)  # of the images
    distance = abs(first.accuracy - WORSE.accuracy - bound)
    assert found.p == pytest.approx(2 * norm.sf(distance / error), rel=1e-3)


def test_difference_of_one_training_has_no_seed_variance():
    found = compare(
        "", {0: BETTER}, {0: BETTER._replace(source=("x", "y"))}, claim_of("equal"), None
    )
    assert found.difference == Difference(0.0, 0.0)
