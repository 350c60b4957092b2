"""When a claim holds: known p values and intervals, and what several seeds make of them."""

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxadv.metrics import proportion
from jaxadv.study import evidence
from jaxadv.study.evidence import (
    FAILS,
    HOLDS,
    NOT_RUN,
    OPEN,
    Entry,
    at_most,
    compare,
    find,
    judge,
    paired,
)
from jaxadv.study.records import Record

N = 1000


def entry(*right, n=N):
    """An entry of images that survive in ranges (start, end)."""
    survived = np.zeros(n, bool)
    for start, end in right:
        survived[start:end] = True
    found = proportion(survived.sum(), n)
    return Entry(found["accuracy"], tuple(found["ci95"]), survived)


def test_paired_is_mcnemars_exact_test():
    one, other = entry((0, 500)), entry((30, 510))  # 30 gained, 10 lost
    difference, (low, high), p = paired(one, other)
    assert difference == pytest.approx(0.02)
    assert p == binomtest(30, 40).pvalue
    error = np.std([1] * 30 + [-1] * 10 + [0] * (N - 40)) / np.sqrt(N)
    assert (low, high) == pytest.approx((0.02 - 1.96 * error, 0.02 + 1.96 * error))


def test_without_the_images_the_two_are_independent():
    one, other = entry((0, 500)), entry((0, 450))
    _, _, same_images = paired(one, other)
    difference, (low, high), p = paired(one._replace(survived=None), other)
    assert difference == pytest.approx(0.05)
    assert same_images < p < 0.05  # pairing tells more
    error = np.sqrt(0.5 * 0.5 / N + 0.45 * 0.55 / N)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.01)
    assert paired(one, entry((0, 50), n=100))[0] == pytest.approx(0.0)  # other images


BETTER, WORSE, SAME = entry((0, 560)), entry((0, 500)), entry((1, 501))


@pytest.mark.parametrize(
    ("more", "less", "or_equal", "word"),
    [
        ({0: BETTER}, {0: WORSE}, False, HOLDS),
        ({0: WORSE}, {0: BETTER}, False, FAILS),
        ({0: SAME}, {0: WORSE}, False, OPEN),
        ({0: BETTER, 1: SAME}, {0: WORSE, 1: WORSE}, False, OPEN),  # one seed does not tell
        ({0: BETTER, 1: WORSE}, {0: WORSE, 1: BETTER}, False, OPEN),
        ({0: BETTER, 1: BETTER}, {0: WORSE, 1: WORSE}, False, HOLDS),
        ({0: BETTER, 2: WORSE}, {0: WORSE, 1: BETTER}, False, HOLDS),  # the seeds of both
        ({0: SAME}, {0: WORSE}, True, HOLDS),  # no gain, to less than a point
        ({0: WORSE}, {0: BETTER}, True, FAILS),
        ({0: entry((0, 500))}, {0: entry((40, 545))}, True, OPEN),  # may gain a point
        ({}, {0: WORSE}, False, NOT_RUN),
        ({0: BETTER}, {1: WORSE}, False, NOT_RUN),
    ],
)
def test_a_claim_holds_where_every_seed_tells_the_two_apart(more, less, or_equal, word):
    assert compare(more, less, or_equal).word == word


def test_the_sentence_has_the_numbers():
    verdict = compare({0: entry((0, 500)), 1: BETTER}, {0: entry((30, 510)), 1: WORSE}, False)
    assert verdict.sentence == (
        "53.0 % against 49.0 %: +4.0 points; by seed +2.0 (+0.8 to +3.2, p = .002); "
        "+6.0 (+4.5 to +7.5, p < .001)."
    )


def test_at_most_looks_at_the_end_of_the_interval():
    none = entry((0, 0))
    assert at_most({0: none}, 0.01).word == HOLDS
    assert at_most({0: none}, 0.001).word == OPEN
    assert at_most({0: none, 1: BETTER}, 0.01).word == OPEN
    assert at_most({0: BETTER}, 0.01).word == FAILS
    assert at_most({}, 0.01).word == NOT_RUN


def record(accuracy, weights="w", **attacks):
    entries = {name: {"accuracy": value, "ci95": [value, value]} for name, value in attacks.items()}
    clean = {"accuracy": accuracy, "ci95": [accuracy, accuracy]}
    checkpoint = {"which": "best", "sha256": weights}
    return {"checkpoint": checkpoint, "clean": clean, "clean_noise": {}, "attacks": entries}


def test_an_entry_is_looked_for_by_seed_and_kind():
    records = {
        "net/0": Record(
            {"evaluation": record(0.5, a=0.1), "evaluation_last": record(0.4, "v")}, {}
        ),
        "net/0/nes": Record({"evaluation": record(0.5, b=0.3)}, {}),
        "net/1": Record({"evaluation": record(0.6)}, {"evaluation/clean": np.ones(3, bool)}),
        "net/1/nes": Record({"evaluation": record(0.7, b=0.2)}, {}),
    }

    def accuracies(arm, *keys):
        return {seed: found.accuracy for seed, found in find(records, arm, keys).items()}

    assert accuracies("net", "clean") == {0: 0.5, 1: 0.6}
    assert accuracies("net:last", "clean") == {0: 0.4, 1: 0.6}  # its best is the last too
    assert accuracies("net", "nes:b") == {0: 0.3, 1: 0.2}
    assert accuracies("net:last", "nes:b") == {1: 0.2}  # of seed 0 the best was attacked
    assert accuracies("net", "a", "nes:b") == {0: 0.1, 1: 0.2}  # the first that is there
    assert accuracies("bignet", "clean") == {}
    assert find(records, "net", ("clean",))[1].n == 3
    assert evidence.find(records, "net", ("nothing",)) == {}
    assert find(records, "net", ("clean/training",)) == {}


def test_a_model_that_guesses_bears_no_claim_out():
    guess = record(0.1) | {"largest_class": 0.1}
    records = {
        "guess/0": Record({"evaluation": guess}, {}),
        "net/0": Record({"evaluation": record(0.5) | {"largest_class": 0.1}}, {}),
    }
    found = {(arm, "clean"): find(records, arm, ("clean",)) for arm in ("guess", "net", "none")}

    def verdict(more, less):
        claim = {"more": (more, "clean"), "less": (less, "clean"), "or_equal": False}
        return judge(claim, found)

    assert verdict("net", "guess").word == OPEN
    assert verdict("net", "guess").sentence.endswith("But a model did not learn (‡).")
    assert judge({"entry": ("guess", "clean"), "at_most": 0.2}, found).word == OPEN
    assert judge({"entry": ("net", "clean"), "at_most": 0.2}, found).word == FAILS
    assert verdict("none", "guess").word == NOT_RUN
