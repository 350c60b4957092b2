"""All experiments at scale smoke, as `python run.py --config configs/study.py:smoke` runs them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from configs import study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """In a process of its own: what all tests compile is too much for one (vm.max_map_count)."""
    folder = tmp_path_factory.mktemp("smoke")
    command = ["run.py", "--config", "configs/study.py:smoke", "--workdir", str(folder / "study")]
    done = subprocess.run(
        [sys.executable, *command, f"--config.study.results={folder / 'results'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "results"


def record(results, name):
    return json.loads((results / "runs" / f"{name}.json").read_text())


def test_every_run_that_is_planned_is_done(results):
    config = study.get_config("smoke")
    lines = (results / "index.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("|") and "/0" in line]
    states = {row[0].strip("| "): row[1] for row in rows}
    assert states == {
        name: "done" if config.runs[name].planned else "not run" for name in config.order
    }
    assert not (results / "failures.json").exists()


def test_every_experiment_has_its_figure_and_its_verdicts(results):
    html = (results / "index.html").read_text()
    config = study.get_config("smoke")
    for name in config.experiments.order:
        assert f'<h2 id="{name}">' in html
        for kind in config.experiments[name].figures:
            assert (results / "figures" / f"{name}_{kind}.svg").exists()
    unknown = [row for row in html.split("</tr>") if 'class="word">not run' in row]
    # No CPU trains the largest, and the narrow one is not judged as there.
    reasons = ("wrn_13_10", "vit_5_256", "narrow")
    told = Counter(next(reason for reason in reasons if reason in row) for row in unknown)
    assert told == dict(zip(reasons, (3, 1, 1), strict=True))


def test_models_are_judged_as_there_and_right(results):
    there = record(results, "net_natural/0/study")["evaluation"]
    right = record(results, "net_natural/0")["evaluation"]
    assert (there["split"], right["split"]) == ("held_out", "test")
    assert there["checkpoint"]["which"] == "last"
    assert not there["attacks"]["pgd40/0.03"]["random_start"]
    assert right["attacks"]["pgd40/0.03"]["random_start"]
    noisy = record(results, "bignet_rse/0")["evaluation"]["attacks"]
    assert noisy["eot20/0.03"]["num_noise_samples"] == 20


def test_judged_as_in_training_a_model_drops_out(results):
    attacks = record(results, "biggernet_curriculum/0/study")["evaluation"]["attacks"]
    assert attacks["training_mode/0.03"]["noise"] == "training"
    clean = record(results, "biggernet_curriculum/0/study")["evaluation"]["clean_noise"]
    assert clean.keys() == {"training"}


def test_a_share_of_the_batches_came_from_the_gan(results):
    assert record(results, "gan/0/synthetic")["manifest"]
    assert (
        "of the synthetic ones for what they are meant to be" in (results / "index.md").read_text()
    )
    config = record(results, "net_synthetic_half/0")["config"]
    assert config["data"]["synthetic"] == {
        "path": "gan/0/synthetic", "share": 0.5, "label_smoothing": 0.0,
    }  # fmt: skip
