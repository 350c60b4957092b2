"""Tests of the runner and the page, with jobs that only write files."""

import json
import shutil

import numpy as np
import pytest

from jaxadv.configs import study
from jaxadv.core.example_results import AttackedExamples, ExampleResults
from jaxadv.core.types import UserError
from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.runs.checkpoints import Restored
from jaxadv.runs.signals import Stopped
from jaxadv.study import runner
from jaxadv.study.experiments import EXPERIMENTS
from jaxadv.study.plan import make_plan

pytestmark = pytest.mark.slow  # compiles much

EPS = ("0.01", "0.02", "0.03", "0.04", "0.05", "0.1")
CLAIM = "AdamW trains a more robust net than SGD at the same learning rate"
OPTIMIZER = ["net_curriculum/0", "net_curriculum/0/study", "net_sgd/0", "net_sgd/0/study"]


@pytest.fixture
def jobs(monkeypatch):
    """Replace the jobs; return the runs that were called, what each raises, and the weights."""
    called, raises, checkpoints = [], {}, {}

    def job(config, workdir):
        name = "/".join(workdir.parts[-3:] if config.mode == "evaluate" else workdir.parts[-2:])
        called.append(name)
        if name in raises:
            raise raises[name]
        workdir.mkdir(parents=True, exist_ok=True)
        robust = np.arange(100) < (60 if "sgd" in name else 80)
        share = binomial_accuracy(robust.sum(), 100).to_json()
        entry = {**share, "attack": "pgd", "norm": "linf", "queries": 40, "unmoved": 0,
                 "seconds": 1.0}  # fmt: skip
        attacks = {
            f"{attack}/{eps}": {**entry, "eps": float(eps)}
            for attack in ("pgd40", "pgd40_coarse")
            for eps in EPS
        }
        source = {"commit": "abc", "dirty": False, "date": "2026-01-02T", "device": "one",
                  "command": "python run.py", "seconds": 90.0}  # fmt: skip
        trained = workdir if config.mode == "train" else workdir.parent
        weights = checkpoints.setdefault(trained, str(trained))
        evaluation = {
            "checkpoint": {"which": config.get("which", "best"), "epoch": 1, "sha256": weights},
            "model": "net",
            "num_parameters": 62_006,
            "dataset": "digits, not CIFAR",
            "n": 100,
            "clean": share,
            "attacks": attacks,
            "worst_case": {},
            "aggregated_score": {},
            "provenance": source,
            "warnings": ["pgd40/0.01 is odd.", "All is.", "pgd40/0.02 is odd.", "All is."],
        }
        (workdir / "evaluation.json").write_text(json.dumps(evaluation))
        examples = ExampleResults(
            labels=np.zeros(100, int),
            predictions=np.zeros(100, int),
            margins=np.zeros(100),
            sample_ids=np.zeros(0, int),
            sample_images=np.zeros((0, 8, 8, 1)),
            attacks={key: AttackedExamples(robust=robust) for key in attacks},
        )
        np.savez(workdir / "examples.npz", **examples.to_arrays())

    for mode in ("train", "evaluate"):
        monkeypatch.setitem(runner._JOBS, mode, job)

    def restore(folder, which, targets):
        """Return the last checkpoint of a folder with an evaluation."""
        if not (folder / "evaluation.json").exists():
            return None
        return Restored(10, {}, {}, {"weights": checkpoints[folder]})

    monkeypatch.setattr(runner.checkpoints, "restore", restore)
    return called, raises, checkpoints


@pytest.fixture
def no_page(monkeypatch):
    """Do not write the page, which takes time."""
    monkeypatch.setattr(runner, "_write_page", lambda *_: None)


@pytest.fixture
def config(tmp_path):
    config = study.get_config()
    config.study.only = "optimizer"
    config.study.results = str(tmp_path / "results")
    return config


@pytest.fixture(autouse=True)
def plan(monkeypatch, config):
    """Replace the plan by one in which only the runs of `OPTIMIZER` are planned."""
    plan = {
        name: run._replace(planned=name in OPTIMIZER) for name, run in make_plan(config).items()
    }
    monkeypatch.setattr(runner, "make_plan", lambda _: plan)
    few = ("optimizer", "activation", "model_size")  # each takes time to plot
    monkeypatch.setattr(runner, "EXPERIMENTS", {name: EXPERIMENTS[name] for name in few})
    return plan


def plan_second_seed(plan):
    for name in ("net_curriculum/1", "net_sgd/1"):
        plan[name] = plan[name]._replace(planned=True)


def test_done_runs_are_not_repeated(jobs, no_page, config, tmp_path):
    called, _, _ = jobs
    runner.run(config, tmp_path / "study")
    assert called == OPTIMIZER
    runner.run(config, tmp_path / "study")
    assert called == OPTIMIZER
    # Records are enough; another machine has no checkpoints.
    shutil.rmtree(tmp_path / "study")
    runner.run(config, tmp_path / "study")
    assert called == OPTIMIZER
    # An evaluation without its training repeats the training.
    (tmp_path / "results/runs/net_sgd/0/study.json").unlink()
    runner.run(config, tmp_path / "study")
    assert called[4:] == ["net_sgd/0", "net_sgd/0/study"]


def test_record_of_another_config_is_refused(jobs, no_page, config, plan, tmp_path):
    runner.run(config, tmp_path / "study")
    plan["net_sgd/0"].config.train.num_epochs = 7
    with pytest.raises(
        UserError, match=r"the record of net_sgd/0 has another config .*was 10, is 7"
    ):
        runner.run(config, tmp_path / "study")


@pytest.mark.parametrize("name", ["failures.json", "costs.json"])
def test_damaged_files_are_reported_before_any_run(jobs, config, tmp_path, name):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text('{"half')
    with pytest.raises(UserError, match=rf"{name} is damaged: delete it"):
        runner.run(config, tmp_path / "study")
    assert jobs[0] == []


def test_evaluation_of_former_weights_is_repeated(jobs, no_page, config, tmp_path):
    called, _, checkpoints = jobs
    runner.run(config, tmp_path / "study")
    checkpoints[tmp_path / "study" / "net_sgd" / "0"] = "b"
    (tmp_path / "results/runs/net_sgd/0.json").unlink()
    runner.run(config, tmp_path / "study")  # trains again
    assert called[4:] == ["net_sgd/0", "net_sgd/0/study"]


def test_retrained_checkpoint_without_a_record_is_recorded_first(jobs, no_page, config, tmp_path):
    called, _, checkpoints = jobs
    runner.run(config, tmp_path / "study")
    # The training was repeated for an evaluation, and stopped before its record was written.
    checkpoints[tmp_path / "study" / "net_sgd" / "0"] = "b"
    (tmp_path / "results/runs/net_sgd/0/study.json").unlink()
    runner.run(config, tmp_path / "study")
    assert called[4:] == ["net_sgd/0", "net_sgd/0/study"]
    runner.run(config, tmp_path / "study")
    assert called[6:] == []


def test_page_leaves_out_evaluations_of_former_weights(jobs, config, tmp_path):
    _, raises, checkpoints = jobs
    runner.run(config, tmp_path / "study")
    checkpoints[tmp_path / "study" / "net_sgd" / "0"] = "b"
    (tmp_path / "results/runs/net_sgd/0.json").unlink()
    raises["net_sgd/0/study"] = UserError("the disk is full")
    with pytest.raises(UserError, match="1 of 2 runs failed"):
        runner.run(config, tmp_path / "study")
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| net_sgd/0/study | failed: the disk is full |" in page
    assert "| SGD | original protocol |" not in page


def test_damaged_record_is_reported(jobs, no_page, config, tmp_path):
    runner.run(config, tmp_path / "study")
    (tmp_path / "results/runs/net_sgd/0.json").write_text("{")
    with pytest.raises(UserError, match=r"net_sgd/0\.json or its \.npz is damaged: delete both"):
        runner.run(config, tmp_path / "study")


def test_other_runs_continue_after_a_failure(jobs, config, tmp_path, capsys):
    called, raises, _ = jobs
    raises["net_curriculum/0"] = UserError("the disk is full")
    with pytest.raises(UserError, match="2 of 4 runs failed: net_curriculum/0; net_curriculum/0/s"):
        runner.run(config, tmp_path / "study")
    assert called == ["net_curriculum/0", "net_sgd/0", "net_sgd/0/study"]
    assert "it needs net_curriculum/0, which failed" in capsys.readouterr().out
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| net_curriculum/0 | failed: the disk is full |" in page
    raises.clear()
    runner.run(config, tmp_path / "study")
    assert called[3:] == OPTIMIZER[:2]
    assert "| failed" not in (tmp_path / "results" / "index.md").read_text()


def test_page_compares_both_protocols_with_the_slides(jobs, config, plan, tmp_path):
    plan_second_seed(plan)
    runner.run(config, tmp_path / "study")
    markdown = (tmp_path / "results" / "index.md").read_text()
    _, _, part = markdown.partition("### Model size")
    assert "| net | slides |  | 39.6 | 32.5 |" in part
    interval = "(71.1\N{EN DASH}86.7)"
    assert f"| net | original protocol | 80.0 {interval} | ≠ 80.0 {interval} |" in part
    assert "| Model size | 7 | 7 | net (0.01: 39.6, ours 80.0; " in markdown
    assert "vit_3_128; vit_5_256; wrn_13_10 |" in markdown
    assert "Of 7 values of the slides that we measured too, 7 are significantly" in markdown
    assert "Hollow" in part
    _, _, part = markdown.partition("### SGD and AdamW")
    assert "Hollow" not in part.partition("### ReLU")[0]
    for plot in ("model_size_eps", "model_size_parameters"):
        svg = (tmp_path / "results" / "figures" / f"{plot}.svg").read_text()
        assert "original protocol" in svg
        assert "slides" in svg


def test_interrupted_study_writes_its_page_and_resumes(jobs, config, tmp_path):
    called, raises, _ = jobs
    raises["net_sgd/0"] = Stopped(15)
    with pytest.raises(Stopped):
        runner.run(config, tmp_path / "study")
    assert "| net_sgd/0 | not run |" in (tmp_path / "results" / "index.md").read_text()
    raises.clear()
    runner.run(config, tmp_path / "study")
    assert called == [*OPTIMIZER[:3], *OPTIMIZER[2:]]


def test_page_shows_the_records(jobs, config, plan, tmp_path):
    plan_second_seed(plan)
    estimates = {
        "net_gelu/0": {"gradients": 1, "seconds": 120.0, "device": "one"},  # of another plan
        "net_gelu/0/study": {"gradients": 491_520, "seconds": 120.0, "device": "one"},
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "costs.json").write_text(json.dumps({"costs": estimates}))
    runner.run(config, tmp_path / "study")
    markdown = (tmp_path / "results" / "index.md").read_text()
    html = (tmp_path / "results" / "index.html").read_text()
    sentence = "AdamW 80.0 %, SGD 60.0 %: +20.0 points (+12.2 to +27.8); 2 seeds each, 100 images"
    sentence = sentence.replace(" %", "\N{NO-BREAK SPACE}%")
    verdict = "supported under PGD-40; AutoAttack not run"
    assert f"{CLAIM}: <b>{verdict}</b>" in html
    assert f"<b>PGD-40</b>: {sentence} <small>Holm&nbsp;&lt;\N{NO-BREAK SPACE}0.001</small>" in html
    assert f"**{verdict}** | PGD-40: {sentence}; Holm < 0.001 |" in markdown
    assert "PGD-40 | 80.0, 80.0 | 60.0, 60.0 | < 0.001 | < 0.001 | < 0.001, < 0.001 |" in markdown
    (finding,) = [line for line in markdown.splitlines() if line.startswith("1. ")]
    assert "AdamW trains the model net to a higher robust accuracy than SGD" in finding
    assert "+20.0 points (+12.2 to +27.8) under PGD-40" in finding
    stored = json.loads((tmp_path / "results" / "verdicts.json").read_text())["claims"][0]
    assert (stored["text"], stored["verdict"]) == (CLAIM, verdict)
    assert stored["evidence"][1]["difference"] == pytest.approx(0.2)
    assert "| SGD | original protocol | 60.0 (50.2\N{EN DASH}69.1) |" in markdown
    assert "| SGD | corrected protocol | 60.0 (± 0.0 [2]) |" in markdown
    assert "360.0 (± 0.0 [2]) |" in markdown  # six times 60
    # 48,000 images times 1 + 0.5 int(10 + 30 t) for t from 0 to 0.9, and twice 10,000 x 6 x 40.
    assert "| net_sgd/0 | done | 1.1e+07 | 2 min | abc | 2026-01-02 | one |" in markdown
    assert "<svg" in html
    assert (tmp_path / "results" / "figures" / "optimizer_eps.svg").read_text().startswith("<svg")
    assert "| net, GELU | not run |" in markdown
    assert "| net_gelu/0 | not run | 1.1e+07 |  |" in markdown
    assert "| net_gelu/0/study | not run | 4.9e+05 | about 2 min |" in markdown
    assert "- net_sgd/0: pgd40/0.01, pgd40/0.02 is odd.\n- net_sgd/0: All is.\n" in markdown
