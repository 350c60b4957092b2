"""Tests of verdicts and their evidence in words."""

import pytest
from study_measurements import measurement, of_training

from jaxadv.study import evidence, findings
from jaxadv.study.differences import SeedSpread
from jaxadv.study.findings import Assessed, Finding
from jaxadv.study.specification import SCORE, Cell, Claim, at_most, higher
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
)

MINUS = "\N{MINUS SIGN}"
SMALL = SeedSpread(0.005, 10)
CLAIM = higher("It is higher", Cell("a", "0.03"), Cell("b", "0.03"))


def side(*shares, training="a"):
    """Return measurements of seeds with these numbers of robust images of 1,000."""
    return {
        seed: measurement((0, share), training=training, weights=f"{training}{seed}")
        for seed, share in enumerate(shares)
    }


def compared(first, second, claim=CLAIM):
    found = compare("PGD-40", first, of_training(second, "b"), claim, SMALL)
    return evidence.sentence(claim, found).replace("\N{NO-BREAK SPACE}", " ")


def of_kind(kind, column="0.03"):
    return Claim("", "", kind, Cell("a", column), Cell("b", column))


def test_sentence_has_the_difference_the_seeds_and_the_images():
    assert compared(side(560), side(500)) == (
        "a 56.0 %, b 50.0 %: +6.0 points (+3.9 to +8.1); one seed each, 1,000 images"
    )
    assert compared(side(560, 560, 560), side(500)).endswith(
        "3 seeds against one seed, 1,000 images"
    )
    assert compared(side(560, 560), side(500, 500)).endswith("2 seeds each, 1,000 images")
    score = of_kind("higher", SCORE)
    assert compared(side(560), side(500), score).startswith("a 56.0, b 50.0: +6.0 points")


def test_sentence_bounds_an_effect_that_is_not_shown():
    assert f"({MINUS}1.0 to +2.2); a gain of up to 2.2 points" in compared(side(506), side(500))
    assert "a gain of up to" not in compared(side(560), side(500))
    lower = of_kind("lower")
    assert f"({MINUS}1.0 to +2.2); a loss of up to 1.0 points is possible" in compared(
        side(506), side(500), lower
    )
    equal = of_kind("equal")
    assert "possible" not in compared(side(506), side(500), equal)
    no_gain = compare(
        "", side(501), side(500, training="b"), of_kind("no_gain"), SeedSpread(1e-3, 9)
    )
    assert no_gain.word == SUPPORTED
    assert "a gain of up to 0.5 points" in evidence.sentence(of_kind("no_gain"), no_gain)


def test_sentence_shows_the_sign_of_values_near_zero():
    one = {0: measurement((0, 200), n=100_000)}
    other = {0: measurement((0, 160), n=100_000, training="other", weights="v")}
    found = compare("", one, other, CLAIM, SeedSpread(1e-9, 3))
    assert "+0.04 points (+0.03 to +0.05)" in evidence.sentence(CLAIM, found)


def test_sentence_on_models_that_did_not_train():
    guess = {0: measurement((0, 100), training="b", learned=False)}
    cells = CLAIM.first, CLAIM.second
    verdict = assess(CLAIM, dict(zip(cells, (side(560), guess), strict=True)), {"0.03": SMALL})
    assert evidence.sentence(CLAIM, verdict.decisive) == "the only seed of “b” did not train"
    three = guess | {1: measurement((0, 500), training="b"), 2: measurement((0, 500), training="b")}
    verdict = assess(CLAIM, dict(zip(cells, (side(560), three), strict=True)), {"0.03": SMALL})
    assert evidence.sentence(CLAIM, verdict.decisive).startswith(
        "1 of 3 seeds of “b” did not train; the others: a 56.0"
    )


def test_sentence_on_a_limit():
    claim = at_most("", Cell("a", "0.03"), 0.05)
    found = evidence.sentence(claim, compare_with_limit("", side(0, 40), 0.05))
    assert found.replace("\N{NO-BREAK SPACE}", " ") == (
        "0.0 % (0.0 to 0.4); 4.0 % (3.0 to 5.4); limit 5 %"
    )


def test_sentence_on_the_same_model():
    best = side(560)
    assert "both are the same model" in evidence.sentence(
        CLAIM, compare("", best, best, CLAIM, None)
    )


def test_sentence_names_the_sides_and_says_if_only_the_images_vary():
    claim = higher("", CLAIM.first, CLAIM.second, sides=("with", "without"))
    one, same_weights = measurement((0, 560)), measurement((0, 500), training="noisy")
    text = evidence.sentence(claim, compare("", {0: one}, {0: same_weights}, claim, SMALL))
    assert text.replace("\N{NO-BREAK SPACE}", " ").startswith("with 56.0 %, without 50.0 %")
    assert text.endswith("; the interval covers the images only")


def found(attack, word, borderline=False):
    return Evidence(attack, word, {}, {}, borderline=borderline)


@pytest.mark.parametrize(
    ("evidence_of", "words"),
    [
        ((found("AutoAttack", SUPPORTED), found("PGD-40", SUPPORTED)), "supported"),
        (
            (found("AutoAttack", INCONCLUSIVE), found("PGD-40", SUPPORTED)),
            "supported under PGD-40, inconclusive under AutoAttack",
        ),
        (
            (found("AutoAttack", NOT_RUN), found("PGD-40", SUPPORTED, borderline=True)),
            "supported (borderline) under PGD-40; AutoAttack not run",
        ),
        (
            (found("AutoAttack", SUPPORTED, borderline=True), found("PGD-40", SUPPORTED)),
            "supported (borderline under AutoAttack)",
        ),
        ((found("AutoAttack", NOT_RUN), found("PGD-40", DID_NOT_TRAIN)), "did not train"),
        ((found("clean", NOT_RUN),), "not run"),
        ((found("clean", DID_NOT_TRAIN),), "did not train"),
    ],
)
def test_verdict_names_the_attacks_that_decide_differently(evidence_of, words):
    assert evidence.verdict_in_words(Verdict(evidence_of)) == words


def test_details_have_the_accuracy_and_mcnemars_p_value_of_each_seed():
    one = {0: measurement((0, 500)), 1: measurement((0, 560))}
    other = {0: measurement((30, 510)), 1: measurement((0, 500), weights="v")}
    details = evidence.details(compare("", one, of_training(other, "b"), CLAIM, SMALL))
    assert details == {"first": "50.0, 56.0", "second": "48.0, 50.0", "mcnemar": "0.002, < 0.001"}


def test_finding_is_written_for_its_verdicts_only():
    finding = Finding("Models {gan} gain {0[size]} under {0[attack]}.", ((CLAIM, SUPPORTED),))

    def in_words(*evidence_of, finding=finding):
        assessed = Assessed(7, CLAIM, CLAIM.text, "", Verdict(evidence_of))
        text = findings.in_words(finding, {CLAIM: assessed}, gan="of a GAN")
        return text.replace("\N{NO-BREAK SPACE}", " ")

    supported = compare("PGD-40", side(560), side(500, training="b"), CLAIM, SMALL)
    assert in_words(supported) == (
        "Models of a GAN gain 6.0 points (3.9 to 8.1) under PGD-40. (claim 7)"
    )
    assert in_words(found("AutoAttack", NOT_RUN), supported).endswith(
        "(claim 7: AutoAttack not run)"
    )
    other = compare("PGD-40", side(506), side(500, training="b"), CLAIM, SMALL)
    assert in_words(other).startswith(
        "It is higher: inconclusive; PGD-40: a 50.6 %, b 50.0 %: +0.6 points"
    )
    assert in_words(found("PGD-40", NOT_RUN)) == "Not run: It is higher (claim 7)."
    unknown = compare("PGD-40", side(560), side(500, training="b"), CLAIM, None)
    inconclusive = Finding("No gain: {0[change]}.", ((CLAIM, INCONCLUSIVE),))
    # There is no difference to show.
    assert "no config has several seeds" in in_words(unknown, finding=inconclusive)


def test_qualifiers_say_what_weakens_a_verdict():
    one, three = side(560), side(500, 500, 500, training="b")
    decisive = compare("AutoAttack", one, three, CLAIM, SeedSpread(0.02, 100))
    assert decisive.borderline
    verdict = Verdict((decisive, found("PGD-40", SUPPORTED)))
    weaknesses = ["borderline", "one seed against 3 seeds"]
    if decisive.word != SUPPORTED:
        weaknesses.insert(1, "supported under PGD-40")
    assert evidence.qualifiers(verdict, {}) == weaknesses
    strong = compare("clean", side(900, 900), side(500, 500, training="b"), CLAIM, SMALL)
    assert evidence.qualifiers(Verdict((strong,)), {"clean": 0.01}) == []
    uncorrected = evidence.qualifiers(Verdict((strong,)), {"clean": 0.06})
    assert uncorrected == ["not significant after Holm's correction"]


@pytest.mark.parametrize("finding", findings.FINDINGS, ids=lambda finding: finding.text[:30])
def test_every_finding_can_be_written(finding):
    evidence_of = {
        SUPPORTED: (side(560), side(500, training="b")),
        CONTRADICTED: (side(500), side(560, training="b")),
        INCONCLUSIVE: (side(506), side(500, training="b")),
    }
    assessed = {}
    for number, (claim, word) in enumerate(finding.claims):
        sides = evidence_of[word][::-1] if claim.kind == "lower" else evidence_of[word]
        comparison = compare("AutoAttack", *sides, claim, SMALL)
        assert comparison.word == word
        assessed[claim] = Assessed(number, claim, claim.text, "", Verdict((comparison,)))
    text = findings.in_words(finding, assessed, gan="of a GAN")
    assert text.startswith(finding.text.split("{")[0])
    assert "points (" in text


def test_values_of_a_comparison():
    shown = evidence.values(compare("PGD-40", side(506), side(500, training="b"), CLAIM, SMALL))
    assert {name: value.replace("\N{NO-BREAK SPACE}", " ") for name, value in shown.items()} == {
        "attack": "PGD-40", "first": "50.6 %", "second": "50.0 %",
        "change": f"+0.6 points ({MINUS}1.0 to +2.2)", "size": f"0.6 points ({MINUS}1.0 to 2.2)",
    }  # fmt: skip


def test_size_of_a_loss_is_positive():
    loss = compare("", side(500), side(560, training="b"), CLAIM, SMALL)
    assert evidence.values(loss)["size"] == "6.0 points (3.9 to 8.1)"
    assert evidence.values(loss)["change"] == f"{MINUS}6.0 points ({MINUS}8.1 to {MINUS}3.9)"
