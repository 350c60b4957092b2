"""Runs of several processes on this machine, each with two CPU devices."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from processes import start, wait_for_exit
from tiny_config import tiny_config

from jaxadv.data import load
from jaxadv.training import train

pytestmark = pytest.mark.slow  # starts processes


def two_epochs():
    """Return the config of the job: with dropout, flips and a random start of the attack."""
    config = tiny_config(**{"train.num_epochs": 2, "attack.random_start": True})
    of_queries = {"attack": "nes", "eps": (0.1,), "step_size": 0.05, "num_queries": 64}
    config.evaluation.attacks = {"pgd": config.evaluation.attacks.pgd, "nes": of_queries}
    return config


def test_values_are_exchanged(tmp_path):
    codes, outputs = wait_for_exit(start("communicate", tmp_path))
    assert codes == [0, 0], outputs


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Workdir of the tiny job on two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("two")
    codes, outputs = wait_for_exit(start("tiny", workdir))
    assert codes == [0, 0], outputs
    assert "epoch   2/2" in outputs[0][0]
    assert outputs[1][0] == ""
    return workdir


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Workdir of the tiny job on one process with four devices."""
    workdir = tmp_path_factory.mktemp("one")
    codes, outputs = wait_for_exit(start("tiny", workdir, 1, num_devices=4))
    assert codes == [0], outputs
    return workdir


def test_two_processes_agree_with_one_process_of_as_many_devices(two_processes, one_process):
    first, second, single = (
        np.array(json.loads((workdir / f"losses_{number}.json").read_text()))
        for workdir, number in ((two_processes, 0), (two_processes, 1), (one_process, 0))
    )
    np.testing.assert_array_equal(first, second)
    # Equal up to the order of sums, until a gradient near 0 has another sign in an attack.
    np.testing.assert_allclose(first[0, :8], single[0, :8], rtol=1e-6)
    np.testing.assert_allclose(first, single, rtol=2e-2)
    of_two, of_one = (
        json.loads((workdir / "evaluation.json").read_text())
        for workdir in (two_processes, one_process)
    )
    assert (
        of_two["attacks"].keys() == of_one["attacks"].keys() == {"pgd/0.03", "pgd/0.1", "nes/0.1"}
    )
    for name, attack in of_one["attacks"].items():
        assert of_two["attacks"][name]["accuracy"] == pytest.approx(attack["accuracy"], abs=2 / 64)


def test_a_run_of_two_processes_resumes_in_one_with_fewer_devices(two_processes, tmp_path):
    workdir = shutil.copytree(two_processes, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "2")
    train.train(two_epochs(), load("digits", data_dir=None, validation_fraction=0.04), workdir)
    resumed, original = (
        json.loads((path / "metrics.jsonl").read_text().splitlines()[1])
        for path in (workdir, two_processes)
    )
    assert resumed["epoch"] == original["epoch"] == 2
    assert resumed["train_loss"] == pytest.approx(original["train_loss"], rel=1e-2)


def test_an_exception_in_one_process_ends_all_with_its_traceback(tmp_path):
    began = time.monotonic()
    codes, outputs = wait_for_exit(start("fail", tmp_path))
    assert codes == [1, 1]
    assert time.monotonic() - began < 30
    for _, stderr in outputs:
        first = stderr.index("process 1 of 2: Traceback")
        assert "ZeroDivisionError: in the second process" in stderr[first:]
        assert "Traceback" not in stderr[:first]


def test_without_the_private_api_of_jax_values_are_exchanged(tmp_path):
    codes, outputs = wait_for_exit(start("communicate_without_private_api", tmp_path))
    assert codes == [0, 0], outputs
    assert not any("Traceback" in stderr for _, stderr in outputs)


def test_without_the_private_api_of_jax_a_process_waits_for_a_slow_first(tmp_path):
    codes, outputs = wait_for_exit(start("wait_for_slow_first_without_private_api", tmp_path))
    assert codes == [0, 0], outputs


def test_without_the_private_api_of_jax_an_exception_in_one_process_ends_all(tmp_path):
    began = time.monotonic()
    codes, outputs = wait_for_exit(start("fail_without_private_api", tmp_path))
    assert codes[0] != 0
    assert codes[1] == 1
    assert time.monotonic() - began < 60
    assert "ZeroDivisionError: in the second process" in outputs[1][1]


def wait_until_running(processes, workdir):
    """Wait until all processes run collectives."""
    marks = [workdir / str(number) for number in range(len(processes))]
    while not all(mark.exists() and mark.read_text() for mark in marks):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    return processes


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_others(tmp_path, number):
    processes = wait_until_running(start("wait", tmp_path), tmp_path)
    processes[number].kill()
    began = time.monotonic()
    codes, _ = wait_for_exit(processes, timeout=60)
    assert time.monotonic() - began < 30
    assert codes[1 - number] not in (0, None)


def test_sigterm_of_one_process_stops_all(tmp_path):
    processes = wait_until_running(start("wait", tmp_path), tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = wait_for_exit(processes)
    assert codes == [0, 0]
    assert all("Stopped (SIGTERM). Resume with: python run.py" in stderr for _, stderr in outputs)


def test_the_state_is_saved_before_all_processes_stop(tmp_path):
    processes = start("save_slowly", tmp_path)
    while not (tmp_path / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = wait_for_exit(processes)
    assert codes == [0, 0], outputs
    assert [path.name for path in (tmp_path / "interrupted").iterdir()] == ["0"]


@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--config.seed=1", "config.seed was 0, is 1"),
        ("--config.mode=sample", "config.mode was gan, is sample"),
    ],
)
def test_different_configs_of_the_processes_are_reported(tmp_path, flag, difference):
    config = "--config=configs/gan.py:digits"
    codes, outputs = wait_for_exit(start("wait", tmp_path, flags=((config,), (config, flag))))
    assert codes == [1, 1]
    for _, stderr in outputs:
        assert f"the processes have different configs ({difference}): pass the same" in stderr
