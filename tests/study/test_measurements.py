"""Tests of finding measurements in the records."""

import numpy as np
import pytest

from jaxadv.core.results import Evaluation
from jaxadv.study.measurements import find, measure
from jaxadv.study.records import Record
from jaxadv.study.slides import EPS
from jaxadv.study.specification import CLEAN_AND_RADII, SCORE, SLIDES, Cell, Experiment


def evaluation(accuracy, weights="w", split="test", **attacks):
    """Return an evaluation with these accuracies on clean images and under attacks at eps 0.03."""
    share = {"ci95": (accuracy, accuracy), "n": 3}
    entries = {
        f"{name}/0.03": {
            "accuracy": value, "ci95": (value, value), "n": 3, "attack": "pgd", "norm": "linf",
            "eps": 0.03, "queries": 1, "unmoved": 0, "seconds": 0.0,
        }
        for name, value in attacks.items()
    }  # fmt: skip
    return Evaluation.from_json(
        {
            "checkpoint": {"which": "best", "epoch": 1, "sha256": weights},
            "model": "net",
            "num_parameters": 1,
            "dataset": "digits",
            "n": 3,
            "split": split,
            "provenance": {},
            "clean": {"accuracy": accuracy, **share},
            "attacks": entries,
            "worst_case": {},
            "aggregated_score": {},
        }
    )


ALL_ROBUST = {"evaluation/clean": np.ones(3, bool)}


def test_measurements_are_found_by_seed_and_kind():
    records = {
        "net/0": Record(evaluation=evaluation(0.5, a=0.1), evaluation_last=evaluation(0.4, "v")),
        "net/0/nes": Record(evaluation=evaluation(0.5, b=0.3)),
        "net/1": Record(evaluation=evaluation(0.6), robust=ALL_ROBUST),
        "net/1/nes": Record(evaluation=evaluation(0.7, b=0.2)),
    }

    def accuracies(training, *keys):
        return {seed: found.accuracy for seed, found in find(records, training, keys).items()}

    assert accuracies("net", "clean") == {0: 0.5, 1: 0.6}
    assert accuracies("net:last", "clean") == {0: 0.4, 1: 0.6}  # the best of seed 1 is the last
    assert accuracies("net", "nes:b/0.03") == {0: 0.3, 1: 0.2}
    assert accuracies("net:last", "nes:b/0.03") == {1: 0.2}  # of seed 0 the best was attacked
    assert accuracies("net", "a/0.03", "nes:b/0.03") == {0: 0.1, 1: 0.2}  # first key with a value
    assert accuracies("bignet", "clean") == {}
    assert find(records, "net", ("clean",))[1].images == ("test", 3)
    assert find(records, "net", ("clean",))[0].images is None
    assert find(records, "net", ("nothing/0.03",)) == {}
    assert find(records, "net", ("clean/training",)) == {}


def test_images_are_those_of_the_split():
    held_out = evaluation(0.5, split="held_out")
    records = {"net/0": Record(evaluation=held_out, robust=ALL_ROBUST)}
    assert find(records, "net", ("clean",))[0].images == ("held_out", 3)


def test_measurement_has_the_checksum_of_the_weights_and_the_attack():
    records = {
        "net/0": Record(evaluation=evaluation(0.5, "w", a=0.1)),
        "net/1": Record(evaluation=evaluation(0.6), evaluation_last=evaluation(0.4, "v")),
    }
    best, last = (find(records, training, ("clean",)) for training in ("net", "net:last"))
    assert best[0].source == last[0].source  # the best is the last
    assert best[1].source != last[1].source
    assert best[0].source != find(records, "net", ("a/0.03",))[0].source
    assert {found.training for found in (*best.values(), *last.values())} == {"net"}


def at_all_radii(accuracies):
    """Return an evaluation with an accuracy of 10 images for each radius, and these images."""
    of_one = evaluation(0.9)
    attacks = [
        {"accuracy": share, "ci95": (share - 0.1, share + 0.1), "n": 10, "attack": "pgd",
         "noise": "on", "norm": "linf", "eps": float(eps), "queries": 1, "unmoved": 0,
         "seconds": 0.0}
        for eps, share in zip(EPS, accuracies, strict=True)
    ]  # fmt: skip
    content = of_one.to_json() | {
        "attacks": {f"pgd40/{eps}": one for eps, one in zip(EPS, attacks, strict=True)}
    }
    robust = {
        f"evaluation/pgd40/{eps}": np.arange(10) < 10 * share
        for eps, share in zip(EPS, accuracies, strict=True)
    }
    return Record(evaluation=Evaluation.from_json(content), robust=robust)


def test_score_is_the_sum_of_the_accuracies_of_each_seed_at_all_radii():
    shares = (0.8, 0.6, 0.4, 0.2, 0.1, 0.0)
    records = {"net/0": at_all_radii(shares), "net/1": Record(evaluation=evaluation(0.5))}
    experiment = Experiment(
        "", "", "", "", trainings={"net": "net"}, claims=(), columns=CLEAN_AND_RADII, original={},
        slides={"net": {**dict.fromkeys(EPS, 10.0), SCORE: 60.0}, "vit": dict.fromkeys(EPS, 1.0)},
    )  # fmt: skip
    measured = measure(experiment, records)
    (score,) = measured[Cell("net", SCORE)].values()  # seed 1 has not all radii
    assert score.accuracy == pytest.approx(2.1)
    radii = [sum(image < 10 * share for share in shares) for image in range(10)]
    np.testing.assert_array_equal(score.robust, radii)
    half = 1.96 * np.std(radii) / np.sqrt(10)
    assert score.ci95 == pytest.approx((2.1 - half, 2.1 + half))
    of_slides = measured[Cell("net", SCORE, SLIDES)][0]
    assert of_slides.accuracy == pytest.approx(0.6, abs=0.01)
    assert of_slides.robust is None
    assert Cell("vit", SCORE, SLIDES) not in measured  # not on the slides
