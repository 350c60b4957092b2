"""Which entry of the records an arm has under a heading."""

import numpy as np

from jaxadv.study.evidence import find
from jaxadv.study.records import Record


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
    assert find(records, "net", ("clean",))[1].images == ("test", 3)
    assert find(records, "net", ("clean",))[0].images is None
    assert find(records, "net", ("nothing",)) == {}
    assert find(records, "net", ("clean/training",)) == {}


def test_images_are_those_of_their_split():
    evaluation = record(0.5) | {"split": "held_out"}
    records = {"net/0": Record({"evaluation": evaluation}, {"evaluation/clean": np.ones(3, bool)})}
    assert find(records, "net", ("clean",))[0].images == ("held_out", 3)


def test_an_entry_tells_which_weights_and_attack_it_is_of():
    records = {
        "net/0": Record({"evaluation": record(0.5, "w", a=0.1)}, {}),
        "net/1": Record({"evaluation": record(0.6), "evaluation_last": record(0.4, "v")}, {}),
    }
    best, last = (find(records, arm, ("clean",)) for arm in ("net", "net:last"))
    assert best[0].source == last[0].source  # the best is the last
    assert best[1].source != last[1].source
    assert best[0].source != find(records, "net", ("a",))[0].source
    assert {found.training for found in (*best.values(), *last.values())} == {"net"}
