"""Several processes on this machine, each with two CPU devices, as one program."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import tiny_config

from jaxadv import train
from jaxadv.data import load

ROOT = Path(__file__).parent.parent


def two_epochs():
    """Returns the config of the job: with dropout, flips and an attack that starts at random."""
    config = tiny_config(**{"train.num_epochs": 2, "attack.random_start": True})
    of_queries = {"attack": "nes", "eps": (0.1,), "step_size": 0.05, "num_queries": 64}
    config.evaluation.attacks = {"pgd": config.evaluation.attacks.pgd, "nes": of_queries}
    return config


def start(job, workdir, num_processes=2, *, num_devices=2, come=None):
    """Starts the processes of a job; only those that `come`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
    }
    command = [sys.executable, "tests/processes_job.py", job, str(workdir)]
    together = [f"--coordinator=localhost:{port}", f"--num_processes={num_processes}"]
    if num_processes == 1:
        together = []
    return [
        subprocess.Popen(
            [*command, *together, *([f"--process_id={number}"] if together else [])],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in come or range(num_processes)
    ]


def ends(processes, timeout=120):
    """Returns the exit codes, and what each process wrote."""
    told = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], told


def test_values_are_shared(tmp_path):
    codes, told = ends(start("values", tmp_path))
    assert codes == [0, 0], told


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """The workdir of the tiny job on two processes of two devices."""
    workdir = tmp_path_factory.mktemp("spread")
    codes, told = ends(start("tiny", workdir))
    assert codes == [0, 0], told
    assert "epoch   2/2" in told[0][0]
    assert told[1][0] == ""
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same on one process of four devices."""
    workdir = tmp_path_factory.mktemp("together")
    codes, told = ends(start("tiny", workdir, 1, num_devices=4))
    assert codes == [0], told
    return workdir


def test_two_processes_give_what_one_gives_with_as_many_devices(spread, together):
    ours, others, theirs = (
        np.array(json.loads((workdir / f"losses_{number}.json").read_text()))
        for workdir, number in ((spread, 0), (spread, 1), (together, 0))
    )
    np.testing.assert_array_equal(ours, others)
    # Equal but for the order of sums, until a gradient near 0 has another sign in an attack.
    np.testing.assert_allclose(ours[0, :8], theirs[0, :8], rtol=1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=2e-2)
    ours, theirs = (
        json.loads((workdir / "evaluation.json").read_text()) for workdir in (spread, together)
    )
    assert ours["attacks"].keys() == theirs["attacks"].keys() == {"pgd/0.03", "pgd/0.1", "nes/0.1"}
    for name, attack in theirs["attacks"].items():
        assert ours["attacks"][name]["accuracy"] == pytest.approx(attack["accuracy"], abs=2 / 64)


def test_what_two_processes_saved_goes_on_in_one_with_fewer_devices(spread, tmp_path):
    workdir = shutil.copytree(spread, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "2")
    train.train(two_epochs(), load("digits", data_dir=None, validation_fraction=0.04), workdir)
    ours, theirs = (
        json.loads((path / "metrics.jsonl").read_text().splitlines()[1])
        for path in (workdir, spread)
    )
    assert ours["epoch"] == theirs["epoch"] == 2
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-2)


def test_an_exception_in_one_process_ends_all_with_its_traceback(tmp_path):
    began = time.monotonic()
    codes, told = ends(start("fail", tmp_path))
    assert codes == [1, 1]
    assert time.monotonic() - began < 30
    for _, stderr in told:
        first = stderr.index("process 1 of 2: Traceback")
        assert "ZeroDivisionError: of the second" in stderr[first:]
        assert "Traceback" not in stderr[:first]


def at_work(processes, workdir):
    """Waits until all processes work together."""
    marks = [workdir / str(number) for number in range(len(processes))]
    while not all(mark.exists() and mark.read_text() for mark in marks):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    return processes


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_others(tmp_path, number):
    processes = at_work(start("wait", tmp_path), tmp_path)
    processes[number].kill()
    began = time.monotonic()
    codes, _ = ends(processes, timeout=60)
    assert time.monotonic() - began < 30
    assert codes[1 - number] not in (0, None)


def test_a_request_to_stop_one_process_stops_all(tmp_path):
    processes = at_work(start("wait", tmp_path), tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    codes, told = ends(processes)
    assert codes == [0, 0]
    assert all("Stopped (SIGTERM). Go on with: python run.py" in stderr for _, stderr in told)


def test_what_one_process_was_asked_is_saved_before_all_stop(tmp_path):
    processes = start("slow", tmp_path)
    while not (tmp_path / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    codes, told = ends(processes)
    assert codes == [0, 0], told
    assert [path.name for path in (tmp_path / "interrupted").iterdir()] == ["0"]


def test_processes_of_different_configs_are_told(tmp_path):
    codes, told = ends(start("differ", tmp_path))
    assert codes == [1, 1]
    for _, stderr in told:
        assert "not given the same config (config.seed was 0, is 1)" in stderr
