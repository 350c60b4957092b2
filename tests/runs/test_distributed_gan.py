"""Training and sampling of a GAN, and AutoAttack on its evaluator, in two processes.

Each process has two CPU devices. The runs are compared with those of one process with four.
"""

import shutil
import time

import numpy as np
import pytest
from processes import start, wait_for_exit
from tiny_config import tiny_gan_config

from jaxadv.configs import evaluate
from jaxadv.core.files import read_arrays, read_json, read_json_lines
from jaxadv.data.synthetic import open_synthetic
from jaxadv.runs import checkpoints

pytestmark = pytest.mark.slow  # starts processes

SAMPLINGS = {
    "prior": {"format": "npz"},
    "langevin": {"sampler": "ddls", "labels": "judged", "min_probability": 0.12},
}


def gan_config():
    """Return the config of two rounds, each longer than the steps between checks of signals."""
    return tiny_gan_config(**{"train.num_steps": 20, "train.steps_per_round": 10})


def sampling_config(name, workdir):
    config = gan_config()
    config.mode = "sample"
    config.sampling.ddls.num_steps = 3
    config.sampling.update({"path": str(workdir / name), **SAMPLINGS[name]})
    return config


def attack_config(checkpoint):
    config = evaluate.get_config("autoattack")
    config.checkpoint = str(checkpoint)
    config.evaluation.num_examples, config.evaluation.batch_size = 24, 64
    config.evaluation.attacks = {"autoattack": {"attack": "autoattack", "eps": (0.02,)}}
    return config


def run(job, workdir, *args, **options):
    codes, outputs = wait_for_exit(start(job, workdir, *args, **options))
    assert codes == [0] * len(codes), outputs
    return outputs


def run_and_kill(job, workdir, *, when):
    """Kill all processes of a job when a file exists."""
    processes = start(job, workdir)
    while not when.exists():
        assert all(process.poll() is None for process in processes), wait_for_exit(processes)
        time.sleep(0.1)
    for process in processes:
        process.kill()
    codes, _ = wait_for_exit(processes)
    assert codes == [-9, -9]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    outputs = run("gan", workdir)
    assert "round   2/2" in outputs[0][0]
    assert outputs[1][0] == ""
    return workdir


@pytest.fixture(scope="module")
def one_process(two_processes, tmp_path_factory):
    """One process with four devices, which samples and attacks what the two processes trained."""
    workdir = tmp_path_factory.mktemp("one")
    shutil.copytree(two_processes / "gan", workdir / "given")
    run("gan", workdir, 1, num_devices=4)
    return workdir


@pytest.fixture(scope="module")
def interrupted(two_processes, tmp_path_factory):
    """Two processes with a trained evaluator, which are interrupted four times.

    The GAN is killed after its first round and stopped in its second. The samplings are killed
    after the first shard, and the attacks in APGD-T.
    """
    workdir = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(two_processes / "gan" / "evaluator", workdir / "gan" / "evaluator")
    run_and_kill("gan", workdir, when=workdir / "gan" / "checkpoints" / "1" / "SHA256SUMS")
    outputs = run("gan_stopped_in_second_round", workdir)
    assert all("Stopped (SIGTERM). Resume with" in stderr for _, stderr in outputs)
    assert (workdir / "gan" / "interrupted" / "1").exists()
    run_and_kill("gan_hanging_in_sampling", workdir, when=workdir / "prior" / "images_00000.npy")
    assert not (workdir / "prior" / "manifest.json").exists()
    cache = workdir / "attacks" / "resume_cache"
    search = cache / "autoattack%2F0.02%2Fapgd_t%2F0%2Fsearch.npz"
    run_and_kill("gan_hanging_in_attacks", workdir, when=search)
    finished = "autoattack%2F0.02%2Fapgd_ce%2F0.npz"
    assert {path.name for path in cache.glob("*.npz")} == {search.name, finished}
    outputs = run("gan", workdir)
    assert f"Resuming from {cache}" in outputs[0][0]
    return workdir


def test_the_rounds_of_two_processes_agree_with_those_of_one(two_processes, one_process):
    """The processes add gradients in another order, which changes their last bits."""
    lines, of_one = (
        read_json_lines(workdir / "gan" / "metrics.jsonl")
        for workdir in (two_processes, one_process)
    )
    assert [line["step"] for line in lines] == [line["step"] for line in of_one] == [10, 20]
    for name in ("discriminator_loss", "generator_loss", "logit_real", "logit_fake"):
        for line, expected in zip(lines, of_one, strict=True):
            assert line[name] == pytest.approx(expected[name], rel=1e-5)
    distance = "judge_frechet_distance"
    for line, expected in zip(lines, of_one, strict=True):
        assert line[distance] == pytest.approx(expected[distance], rel=1e-3)


def test_the_samples_of_two_processes_are_those_of_one(two_processes, one_process):
    for name in SAMPLINGS:
        samples, expected = (
            open_synthetic(workdir / name, (32, 32, 3), 10)
            for workdir in (two_processes, one_process)
        )
        np.testing.assert_array_equal(samples.labels, expected.labels)
        images, of_one = (all_images.take(np.arange(50)) for all_images in (samples, expected))
        # Equal on the CPUs that were tried; rounding to uint8 may differ by one.
        assert np.abs(images.astype(int) - of_one).max() <= 1
        quality, of_one = (
            read_json(workdir / name / "manifest.json")["judged"]["samples"]
            for workdir in (two_processes, one_process)
        )
        distance = "judge_frechet_distance"
        assert quality[distance] == pytest.approx(of_one[distance], rel=1e-3)
    assert (two_processes / "prior.npz").exists()


def test_autoattack_of_two_processes_agrees_with_that_of_one(two_processes, one_process):
    """The bits are equal on the CPUs that were tried; a search may amplify a last bit."""
    name = "autoattack/0.02"
    attack, of_one = (
        read_json(workdir / "attacks" / "evaluation.json")["attacks"][name]
        for workdir in (two_processes, one_process)
    )
    assert attack["accuracy"] == pytest.approx(of_one["accuracy"], abs=1 / 24)
    assert of_one["stages"][1]["seconds"] > 0  # the first attack leaves images for the second
    margins, margins_of_one = (
        read_arrays(workdir / "attacks" / "examples.npz")[f"margin/{name}"]
        for workdir in (two_processes, one_process)
    )
    assert np.isclose(margins, margins_of_one, rtol=1e-3).mean() > 0.9


def without_times(content):
    """Return a JSON value without what differs between two runs of the same program."""
    if isinstance(content, list):
        return [without_times(value) for value in content]
    if not isinstance(content, dict):
        return content
    differing = ("seconds", "images_per_second", "provenance", "workdir")
    return {key: without_times(content[key]) for key in content.keys() - differing}


def test_an_interrupted_gan_ends_in_the_same_bits(two_processes, interrupted):
    for which in ("best", "last"):
        whole, resumed = (
            checkpoints.restore(workdir / "gan", which, {})
            for workdir in (two_processes, interrupted)
        )
        assert whole.epoch == resumed.epoch
        assert whole.sha256 == resumed.sha256
    whole, resumed = (
        without_times(read_json(workdir / "gan" / "gan.json"))
        for workdir in (two_processes, interrupted)
    )
    assert whole == resumed
    whole, resumed = (
        without_times(read_json_lines(workdir / "gan" / "metrics.jsonl"))
        for workdir in (two_processes, interrupted)
    )
    assert whole == resumed
    whole, resumed = (
        read_json(workdir / "prior" / "manifest.json")["sha256"]
        for workdir in (two_processes, interrupted)
    )
    assert whole == resumed


def test_an_interrupted_autoattack_ends_in_the_same_bits(two_processes, interrupted):
    whole, resumed = (
        without_times(read_json(workdir / "attacks" / "evaluation.json"))
        for workdir in (two_processes, interrupted)
    )
    assert whole == resumed
    whole, resumed = (
        read_arrays(workdir / "attacks" / "examples.npz")
        for workdir in (two_processes, interrupted)
    )
    assert whole.keys() == resumed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)
    assert not (interrupted / "attacks" / "resume_cache").exists()
