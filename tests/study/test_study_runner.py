"""The runner, with jobs that only leave files: what is skipped, and what the page says."""

import json
import shutil

import numpy as np
import pytest

from configs import study
from jaxadv import checkpoint
from jaxadv.checkpoint_io import Restored
from jaxadv.metrics import proportion
from jaxadv.stopping import Stopped
from jaxadv.study import runner
from jaxadv.types import UserError

EPS = ("0.01", "0.02", "0.03", "0.04", "0.05", "0.1")
OPTIMIZER = ["net_curriculum/0", "net_curriculum/0/study", "net_sgd/0", "net_sgd/0/study"]


@pytest.fixture
def jobs(monkeypatch):
    """Replaces the jobs; returns the runs that were called, and what each raises."""
    called, raises, checkpoints = [], {}, {}

    def job(config, workdir):
        name = "/".join(workdir.parts[-3:] if config.mode == "evaluate" else workdir.parts[-2:])
        called.append(name)
        if name in raises:
            raise raises[name]
        workdir.mkdir(parents=True, exist_ok=True)
        survived = np.arange(100) < (60 if "sgd" in name else 80)
        entry = proportion(survived.sum(), 100)
        keys = [f"{attack}/{eps}" for attack in ("pgd40", "pgd40_coarse") for eps in EPS]
        source = {"commit": "abc", "dirty": False, "date": "2026-01-02T", "device": "one",
                  "command": "python run.py", "seconds": 90.0}  # fmt: skip
        trained = workdir if config.mode == "train" else workdir.parent
        weights = checkpoints.setdefault(trained, str(trained))
        evaluation = {
            "checkpoint": {"which": config.get("which", "best"), "sha256": weights},
            "dataset": "digits, not CIFAR",
            "clean": entry,
            "clean_noise": {},
            "attacks": dict.fromkeys(keys, entry),
            "provenance": source,
            "warnings": ["pgd40/0.01 is odd.", "All is.", "pgd40/0.02 is odd.", "All is."],
        }
        (workdir / "evaluation.json").write_text(json.dumps(evaluation))
        labels = np.zeros(100, int)
        arrays = {f"survived/{key}": survived for key in keys}
        np.savez(workdir / "examples.npz", **arrays, labels=labels, **{"predictions/clean": labels})

    for mode in ("train", "evaluate"):
        monkeypatch.setitem(runner._JOBS, mode, job)

    def restore(folder, which, targets):
        """Returns the last checkpoint of what has left an evaluation."""
        if not (folder / "evaluation.json").exists():
            return None
        return Restored(10, {}, {}, {"weights": checkpoints[folder]})

    monkeypatch.setattr(checkpoint, "restore", restore)
    return called, raises, checkpoints


@pytest.fixture
def no_page(monkeypatch):
    """Spares a test, which does not look at it, the time to draw it."""
    monkeypatch.setattr(runner, "_write_page", lambda *_: None)


@pytest.fixture
def config(tmp_path):
    config = study.get_config()
    config.study.only = "optimizer"
    config.experiments.order = ("optimizer", "activation", "model_size")  # each takes time to draw
    config.study.results = str(tmp_path / "results")
    for name in config.order:
        config.runs[name].planned = name in OPTIMIZER
    return config


def test_what_is_done_is_not_run_again(jobs, no_page, config, tmp_path):
    called, _, _ = jobs
    runner.run(config, tmp_path / "study")
    assert called == OPTIMIZER
    runner.run(config, tmp_path / "study")
    assert called == OPTIMIZER
    # The records alone say so: another machine has no checkpoints.
    shutil.rmtree(tmp_path / "study")
    runner.run(config, tmp_path / "study")
    assert called == OPTIMIZER
    # But what an evaluation starts from is made again.
    (tmp_path / "results/runs/net_sgd/0/study.json").unlink()
    runner.run(config, tmp_path / "study")
    assert called[4:] == ["net_sgd/0", "net_sgd/0/study"]


def test_a_record_of_another_config_is_refused(jobs, no_page, config, tmp_path):
    runner.run(config, tmp_path / "study")
    config.runs["net_sgd/0"].config.train.num_epochs = 7
    with pytest.raises(
        UserError, match=r"the record of net_sgd/0 is of another config .*was 10, is 7"
    ):
        runner.run(config, tmp_path / "study")


@pytest.mark.parametrize("name", ["failures.json", "costs.json"])
def test_damaged_notes_are_told_before_anything_is_run(jobs, config, tmp_path, name):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text('{"half')
    with pytest.raises(UserError, match=rf"{name} is damaged: delete it"):
        runner.run(config, tmp_path / "study")
    assert jobs[0] == []


def test_an_evaluation_of_other_weights_than_the_trainings_is_not_done(
    jobs, no_page, config, tmp_path
):
    called, _, checkpoints = jobs
    runner.run(config, tmp_path / "study")
    checkpoints[tmp_path / "study" / "net_sgd" / "0"] = "b"
    (tmp_path / "results/runs/net_sgd/0.json").unlink()
    runner.run(config, tmp_path / "study")  # trains anew
    assert called[4:] == ["net_sgd/0", "net_sgd/0/study"]


def test_a_checkpoint_of_other_weights_than_the_trainings_record_is_recorded_first(
    jobs, no_page, config, tmp_path
):
    called, _, checkpoints = jobs
    runner.run(config, tmp_path / "study")
    # The training was done anew for an evaluation, and stopped before its record was written.
    checkpoints[tmp_path / "study" / "net_sgd" / "0"] = "b"
    (tmp_path / "results/runs/net_sgd/0/study.json").unlink()
    runner.run(config, tmp_path / "study")
    assert called[4:] == ["net_sgd/0", "net_sgd/0/study"]
    runner.run(config, tmp_path / "study")
    assert called[6:] == []


def test_the_page_leaves_out_evaluations_of_other_weights(jobs, config, tmp_path):
    _, raises, checkpoints = jobs
    runner.run(config, tmp_path / "study")
    checkpoints[tmp_path / "study" / "net_sgd" / "0"] = "b"
    (tmp_path / "results/runs/net_sgd/0.json").unlink()
    raises["net_sgd/0/study"] = UserError("the disk is full")
    with pytest.raises(UserError, match="1 of 2 runs failed"):
        runner.run(config, tmp_path / "study")
    page = (tmp_path / "results" / "index.md").read_text()
    assert "| net_sgd/0/study | failed: the disk is full |" in page
    assert "| SGD | judged as there |" not in page


def test_a_damaged_record_is_told(jobs, no_page, config, tmp_path):
    runner.run(config, tmp_path / "study")
    (tmp_path / "results/runs/net_sgd/0.json").write_text("{")
    with pytest.raises(UserError, match=r"net_sgd/0\.json or its \.npz is damaged: delete both"):
        runner.run(config, tmp_path / "study")


def test_a_failure_does_not_stop_the_rest(jobs, config, tmp_path, capsys):
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


def test_the_page_lays_ours_beside_the_slides(jobs, config, tmp_path):
    for name in ("net_curriculum/1", "net_sgd/1"):
        config.runs[name].planned = True
    runner.run(config, tmp_path / "study")
    markdown = (tmp_path / "results" / "index.md").read_text()
    _, _, part = markdown.partition("## Model size")
    assert "| net | the study |  | 39.6 | 32.5 |" in part
    interval = "(71.1\N{EN DASH}86.7)"
    assert f"| net | judged as there | 80.0 {interval} | ≠ 80.0 {interval} |" in part
    assert "Of 6 figures of the slides 6 can be told from ours, judged as there (≠)." in part
    assert "Hollow" in part
    _, _, part = markdown.partition("## SGD against AdamW")
    assert "Hollow" not in part.partition("## ReLU")[0]
    for figure in ("model_size_eps", "model_size_parameters"):
        drawn = (tmp_path / "results" / "figures" / f"{figure}.svg").read_text()
        assert "judged as there" in drawn
        assert "the study" in drawn
    short = [line for line in markdown.splitlines() if line.startswith("- **holds**: ")]
    assert short == ["- **holds**: AdamW trains better than SGD (at one learning rate)."]


def test_a_study_that_is_stopped_writes_its_page_and_goes_on(jobs, config, tmp_path):
    called, raises, _ = jobs
    raises["net_sgd/0"] = Stopped(15)
    with pytest.raises(Stopped):
        runner.run(config, tmp_path / "study")
    assert "| net_sgd/0 | not run |" in (tmp_path / "results" / "index.md").read_text()
    raises.clear()
    runner.run(config, tmp_path / "study")
    assert called == [*OPTIMIZER[:3], *OPTIMIZER[2:]]


def test_the_page_says_what_the_records_say(jobs, config, tmp_path):
    for name in ("net_curriculum/1", "net_sgd/1"):
        config.runs[name].planned = True
    estimates = {
        "net_gelu/0": {"gradients": 1, "seconds": 120.0, "device": "one"},  # of another plan
        "net_gelu/0/study": {"gradients": 491_520, "seconds": 120.0, "device": "one"},
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "costs.json").write_text(json.dumps({"costs": estimates}))
    runner.run(config, tmp_path / "study")
    markdown = (tmp_path / "results" / "index.md").read_text()
    html = (tmp_path / "results" / "index.html").read_text()
    sentence = (
        "80.0 % against 60.0 %: +20.0 (+12.2 to +27.8) points, 2 and 2 seeds; "
        "McNemar p &lt; .001, &lt; .001."
    )
    claim = "AdamW trains better than SGD (at one learning rate)"
    assert f"<strong>{claim}: holds.</strong> {sentence}" in html
    assert f"holds.** {sentence.replace('&lt;', '<')}" in markdown
    assert "| SGD | judged as there | 60.0 (50.2\N{EN DASH}69.1) |" in markdown
    assert "| SGD | judged right | 60.0 (± 0.0 [2]) |" in markdown
    assert "360.0 |" in markdown  # six times 60
    # 48,000 images times 1 + .5 int(10 + 30 t) for t from 0 to .9; twice 10,000 times 6 times 40.
    assert "| net_sgd/0 | done | 1.1e+07 | 2 min | abc | 2026-01-02 | one |" in markdown
    assert "<svg" in html
    assert (tmp_path / "results" / "figures" / "optimizer_eps.svg").read_text().startswith("<svg")
    assert "| GELU | not run |" in markdown
    assert "| net_gelu/0 | not run | 1.1e+07 |  |" in markdown
    assert "| net_gelu/0/study | not run | 4.9e+05 | about 2 min |" in markdown
    assert "- net_sgd/0: pgd40/0.01, pgd40/0.02 is odd.\n- net_sgd/0: All is.\n" in markdown
