"""A run that changes its number of devices whenever it resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxadv.runs.checkpoints import read_tree

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).parents[2]


def train_on(num_devices, workdir, *num_checks):
    """Train on CPU devices, and return what the run prints."""
    return subprocess.run(
        [sys.executable, "tests/runs/elastic_job.py", workdir, *num_checks],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "JAX_NUM_CPU_DEVICES": str(num_devices),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    ).stdout


def test_a_run_on_1_then_4_then_2_devices_equals_a_run_on_1(tmp_path):
    train_on(1, tmp_path / "whole")
    workdir = tmp_path / "elastic"
    train_on(1, workdir, "2")
    assert "after epoch 0 and 2 steps of the next" in train_on(4, workdir, "3")
    assert "after epoch 1 and 1 steps of the next" in train_on(2, workdir)
    ours, theirs = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (workdir, tmp_path / "whole")
    )
    for name in ("epoch", "step", "learning_rate"):
        assert [line[name] for line in ours] == [line[name] for line in theirs]
    for name in ("train_loss", "train_accuracy_clean", "validation_accuracy_clean"):
        np.testing.assert_allclose(
            [line[name] for line in ours], [line[name] for line in theirs], rtol=1e-6
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        *(read_tree(path / "checkpoints/2/weights") for path in (workdir, tmp_path / "whole")),
    )
