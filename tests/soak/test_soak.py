"""Kills by the hundred, and epochs by the thousand: run by hand, see results/reliability.md.

pytest tests/soak -n 2 --dist load -rP
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NUM_KILLS = int(os.environ.get("JAXADV_SOAK_KILLS", "200"))
NUM_EPOCHS = 1000
JOB = (
    "--config=configs/curriculum.py:digits",
    "--config.model.name=net",
    "--config.model.dropout=0.2",
    "--config.data.augmentation=flip",
    "--config.train.batch_size=460",
    "--config.attack.num_steps_end=10",
    "--config.validation.num_steps=1",
    "--config.evaluation.num_examples=2",
)
TINY_EPOCHS = (
    "--config.train.batch_size=1380",
    "--config.attack.num_steps_start=1",
    "--config.attack.num_steps_end=1",
)


def start(workdir, num_epochs, *flags):
    command = [sys.executable, "run.py", *JOB, *flags, f"--config.train.num_epochs={num_epochs}"]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(workdir, epoch):
    path = workdir / "checkpoints" / str(epoch) / "record" / "metadata"
    return json.loads(path.read_text())["sha256"]


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_that_are_killed_at_random_end_in_the_same_bits(tmp_path, seed):
    """Half of the kills are SIGKILL, half SIGTERM, from the start to the end of the evaluation."""
    generator = random.Random(seed)
    done = {signal.SIGKILL: 0, signal.SIGTERM: 0}
    num_epochs, num_kills, num_runs, began = 20, 0, 0, time.monotonic()
    finish(start(tmp_path / "whole", num_epochs))
    whole = weights(tmp_path / "whole", num_epochs)
    metrics = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    while num_kills < NUM_KILLS // 2:
        workdir = tmp_path / f"killed_{num_runs}"
        kills = 0
        while kills < 20:
            process = start(workdir, num_epochs)
            signum = generator.choice([signal.SIGKILL, signal.SIGTERM])
            try:
                # The first 4 seconds are imports, in which there is nothing to lose.
                process.wait(generator.uniform(4, 14))
                assert process.returncode == 0, process.stdout.read()
                break  # the run ended before the kill
            except subprocess.TimeoutExpired:
                process.send_signal(signum)
            output, _ = process.communicate()
            kills += 1
            done[signum] += 1
            if signum == signal.SIGTERM and process.returncode != 0:
                # Before the handler was installed, or after the work was complete.
                assert process.returncode == -signal.SIGTERM, output
            assert "Traceback" not in output, output
        else:
            finish(start(workdir, num_epochs))
        num_kills, num_runs = num_kills + kills, num_runs + 1
        assert weights(workdir, num_epochs) == whole
        for ours, theirs in zip(
            (workdir / "metrics.jsonl").read_text().splitlines(), metrics, strict=True
        ):
            assert json.loads(ours)["train_loss"] == json.loads(theirs)["train_loss"]
        seconds = time.monotonic() - began
        print(f"{done}, {num_runs} runs in the same bits, {seconds:.0f} s", flush=True)


@pytest.mark.soak
def test_memory_stays_flat_over_a_thousand_epochs(tmp_path):
    resident = {}
    with start(tmp_path / "run", NUM_EPOCHS, *TINY_EPOCHS) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                epoch = int(line.split()[1].split("/")[0])
                status = Path(f"/proc/{process.pid}/status").read_text()
                resident[epoch] = int(status.split("VmRSS:")[1].split()[0]) / 1024
    assert process.returncode == 0
    for epoch in (1, 10, 100, 200, 400, 600, 800, 1000):
        print(f"epoch {epoch:5}: {resident[epoch]:.0f} MiB", flush=True)
    assert resident[NUM_EPOCHS] < 1.02 * resident[NUM_EPOCHS // 5]
