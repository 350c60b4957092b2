"""Tests of a study at scale smoke: `python run.py --config configs/study.py:smoke`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxadv.configs import study
from jaxadv.study.experiments import EXPERIMENTS
from jaxadv.study.plan import make_plan, requested_runs

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).parents[2]


ONLY = "undefended,synthetic"  # a run of every mode; `configs/study.py:smoke` itself runs all


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the study in another process: one process has too few memory maps for all programs."""
    folder = tmp_path_factory.mktemp("smoke")
    command = ["run.py", "--config", "configs/study.py:smoke", "--workdir", str(folder / "study")]
    options = [f"--config.study.results={folder / 'results'}", f"--config.study.only={ONLY}"]
    done = subprocess.run(
        [sys.executable, *command, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "results"


def record(results, name):
    return json.loads((results / "runs" / f"{name}.json").read_text())


def test_every_requested_run_is_done(results):
    plan = make_plan(study.get_config("smoke"))
    requested = requested_runs(ONLY, EXPERIMENTS, plan)
    assert {plan[name].config.mode for name in requested} == {"train", "evaluate", "gan", "sample"}
    lines = (results / "index.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("|") and "/0" in line]
    states = {row[0].strip("| "): row[1] for row in rows}
    assert states.keys() == plan.keys()
    assert {name for name, state in states.items() if state == "done"} == set(requested)
    assert not (results / "failures.json").exists()


def test_every_experiment_has_its_section_and_its_plots(results):
    html = (results / "index.html").read_text()
    for name, experiment in EXPERIMENTS.items():
        assert f'<h3 id="{name}">' in html
        for kind in experiment.plots if name in ONLY else ():
            assert (results / "figures" / f"{name}_{kind}.svg").exists()


def test_models_are_evaluated_by_both_protocols(results):
    original = record(results, "net_natural/0/study")["evaluation"]
    corrected = record(results, "net_natural/0")["evaluation"]
    assert (original["split"], corrected["split"]) == ("held_out", "test")
    assert original["checkpoint"]["which"] == "last"
    assert not original["attacks"]["pgd40/0.03"]["random_start"]
    assert corrected["attacks"]["pgd40/0.03"]["random_start"]


def test_stochastic_models_are_planned_with_eot_and_dropout_in_training_mode():
    plan = make_plan(study.get_config("smoke"))
    noisy = plan["bignet_rse/0"].config.evaluation.attacks
    assert noisy.eot20.num_noise_samples == 20
    dropout = plan["biggernet_curriculum/0/study"].config.evaluation.attacks
    assert dropout.training_mode.noise == "training"


def test_trainings_use_samples_of_the_gan(results):
    assert record(results, "gan/0/synthetic")["manifest"]
    assert "of the synthetic images to their class" in (results / "index.md").read_text()
    config = record(results, "net_synthetic_half/0")["config"]
    assert config["data"]["synthetic"] == {
        "path": "gan/0/synthetic", "share": 0.5, "label_smoothing": 0.0,
    }  # fmt: skip
