"""Tests that all stored results are read as objects and written again without a loss."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxadv.configs import study
from jaxadv.core.results import Evaluation
from jaxadv.core.sample_quality import GanResult
from jaxadv.study.plan import make_plan
from jaxadv.study.records import check_config, current_records

RESULTS = Path(__file__).parents[1] / "results"


def evaluations(content: Any) -> Iterator[dict]:
    """Yield the evaluations in the content of a JSON file, also nested ones."""
    if isinstance(content, dict):
        if {"checkpoint", "clean", "attacks"} <= content.keys():
            yield content
        for value in content.values():
            yield from evaluations(value)


STORED = [
    (str(path.relative_to(RESULTS)), content)
    for path in sorted(RESULTS.rglob("*.json"))
    for content in evaluations(json.loads(path.read_text(encoding="utf-8")))
]


def to_json(evaluation: Evaluation) -> dict:
    return json.loads(json.dumps(evaluation.to_json()))


def lost(before: Any, after: Any, key: str = "") -> list[str]:
    """Return the keys whose values are missing or different afterwards; None may be left out."""
    if not isinstance(before, dict):
        return [] if before == after else [key]
    return [
        name
        for part, value in before.items()
        if value is not None or part in after
        for name in lost(value, after.get(part), f"{key}/{part}")
    ]


def test_all_evaluations_are_found():
    assert len(STORED) >= 161  # more with each experiment
    # A training that is repeated may have fewer attacks.
    assert sum(len(content["attacks"]) for _, content in STORED) >= 990
    assert len({name for name, _ in STORED}) >= 127


@pytest.mark.parametrize("folder", sorted({Path(name).parts[0] for name, _ in STORED}))
def test_evaluations_lose_nothing_in_a_round_trip(folder):
    for name, content in STORED:
        if Path(name).parts[0] != folder:
            continue
        evaluation = Evaluation.from_json(content)
        assert lost(content, to_json(evaluation)) == [], name
        assert Evaluation.from_json(to_json(evaluation)) == evaluation, name
        assert evaluation.clean.accuracy == content["clean"]["accuracy"]
        assert {entry.key: entry.accuracy for entry in evaluation.attacks} == {
            key: entry["accuracy"] for key, entry in content["attacks"].items()
        }, name


def test_records_of_the_study_belong_to_its_plan():
    plan = make_plan(study.get_config())
    records = current_records(RESULTS / "study", plan)
    assert len(records) == len(list((RESULTS / "study" / "runs").rglob("*.json"))) >= 105
    for name, record in records.items():
        check_config(record, name, plan[name].config)


def test_robust_examples_of_the_study_agree_with_the_accuracies():
    records = current_records(RESULTS / "study", make_plan(study.get_config()))
    num_checked = 0
    for name, record in records.items():
        for key, robust in record.robust.items():
            part, _, attack = key.partition("/")
            evaluation = getattr(record, part)
            entries = {"clean": evaluation.clean} | {one.key: one for one in evaluation.attacks}
            assert len(robust) == evaluation.n, name
            assert np.mean(robust) == pytest.approx(entries[attack].accuracy), (name, key)
            num_checked += 1
    assert num_checked > 900


def test_results_of_gans_lose_nothing_in_a_round_trip():
    stored = json.loads((RESULTS / "study/runs/gan/0.json").read_text(encoding="utf-8"))["gan"]
    gan = GanResult.from_json(stored)
    assert lost(stored, json.loads(json.dumps(gan.to_json()))) == []
    assert gan.samples.accuracy == stored["samples"]["judge_accuracy"]
