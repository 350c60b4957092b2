"""Each seed is trained once, and its best checkpoint evaluated by PGD-40 and AutoAttack."""

import json
import sys

import pytest

from benchmarks import seeds


@pytest.fixture
def calls(monkeypatch):
    """Record the trainings and the evaluations, which leave files and do nothing else."""
    recorded = []

    def train(config, dataset, workdir):
        recorded.append(("train", config.seed, config.train.num_epochs))
        (workdir / "config.json").write_text("{}")
        (workdir / "metrics.jsonl").write_text("")

    def evaluate_checkpoint(config, dataset, evaluation, *, source, which, workdir):
        attacks = {entry.attack for entry in evaluation.attacks.values()}
        recorded.append((which, evaluation.num_examples, attacks))
        result = {"checkpoint": {"workdir": str(source)}, "n": evaluation.num_examples}
        (workdir / "evaluation.json").write_text(json.dumps(result))

    monkeypatch.setattr(seeds, "train", train)
    monkeypatch.setattr(seeds, "evaluate_checkpoint", evaluate_checkpoint)
    monkeypatch.setattr(seeds, "load_dataset", lambda data: None)
    return recorded


def test_each_seed_is_measured_once(calls, monkeypatch, tmp_path):
    arguments = ["seeds.py", "fast", "--epochs", "2", "--seeds", "3", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    seeds.main()
    evaluations = [("best", None, {"pgd"}), ("best", 1000, {"pgd", "autoattack"})]
    assert calls == [("train", 3, 2), *evaluations, ("train", 4, 2), *evaluations]
    seeds.main()
    assert len(calls) == 6
    folder = tmp_path / "fast_2_epochs_seed_3"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "result.json",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {"training_seconds", "pgd40", "autoattack", "provenance"}
    assert result["autoattack"] == {"checkpoint": {"workdir": folder.name}, "n": 1000}
