"""One process of the runs in test_distributed.py and test_distributed_gan.py.

python tests/runs/distributed_job.py JOB[_without_private_api] WORKDIR [flags of run.py]
"""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from jaxadv.attacks import batching
from jaxadv.cli import flags
from jaxadv.cli import job as program
from jaxadv.core.devices import local_rows
from jaxadv.evaluation import checkpoint
from jaxadv.gan import sampling
from jaxadv.gan import train as gan_train
from jaxadv.runs import checkpoints, distributed
from jaxadv.runs.resume_cache import DiskCache
from jaxadv.training import train
from jaxadv.training.loop import run_steps

WITHOUT_PRIVATE_API = "_without_private_api"  # end of the name of a job


def tiny_job(_, workdir: Path) -> list[str]:
    """Train and evaluate a small net, and store the losses of each step."""
    from test_distributed import two_epochs

    losses = []

    def run_and_record(*args, **options):
        result = run_steps(*args, **options)
        losses.append([metrics["loss"] for metrics in result[1]])
        return result

    train.run_steps = run_and_record
    warnings = train.run(two_epochs(), workdir)
    (workdir / f"losses_{jax.process_index()}.json").write_text(json.dumps(losses))
    return warnings


def save_slowly(_, workdir: Path) -> list[str]:
    """Train, and take longer to save than the time that other processes wait at exit."""
    from test_distributed import two_epochs

    write = checkpoints.write

    def write_slowly(*args):
        time.sleep(6)
        write(*args)

    checkpoints.write = write_slowly
    return train.run(two_epochs(), workdir)


def communicate(_, workdir: Path) -> list[str]:
    """Exchange values between the processes."""
    index = jax.process_index()
    shared = distributed.from_first(lambda: {"index": index, "none": None, "list": [1.5, "a"]})
    assert shared == {"index": 0, "none": None, "list": [1.5, "a"]}
    assert distributed.any_process(index == 1)
    assert not distributed.any_process(False)
    # Of four devices the first process has the first two.
    assert local_rows(8).tolist() == [2 * index, 2 * index + 1, 2 * index + 4, 2 * index + 5]
    mark = workdir / "mark"
    assert distributed.first_process_first(mark.exists if index else mark.touch) in (None, True)
    return []


def wait_for_slow_first(_, workdir: Path) -> list[str]:
    """Wait for the first process longer than its library of collectives waits for a connection."""
    distributed.from_first(lambda: time.sleep(35))
    return []


def fail(_, workdir: Path) -> list[str]:
    """Raise an error in the second process, while the first waits for it."""
    if jax.process_index() == 1:
        raise ZeroDivisionError("in the second process")
    return wait(_, workdir)


def wait(_, workdir: Path) -> list[str]:
    """Run collectives forever."""
    (workdir / f"{jax.process_index()}").write_text(str(os.getpid()))
    while not distributed.any_process(False):
        pass
    return []


def train_sample_and_attack(_, workdir: Path) -> list[str]:
    """Train a GAN; sample it, or the GAN in the folder `given`; attack its evaluator.

    What is finished is not repeated.
    """
    from test_distributed_gan import SAMPLINGS, attack_config, gan_config, sampling_config

    if not distributed.from_first((workdir / "gan" / "gan.json").exists):
        gan_train.run(gan_config(), workdir / "gan")
    given = workdir / "given"
    source = given if given.exists() else workdir / "gan"
    for name in SAMPLINGS:
        sampling.run(sampling_config(name, workdir), source)
    _shorten_autoattack()
    return checkpoint.run(attack_config(source / "evaluator"), workdir / "attacks")


def _shorten_autoattack() -> None:
    """Keep the first two attacks of AutoAttack, with two target classes instead of nine."""
    module: Any = import_module("jaxadv.attacks.autoattack")
    standard = module._stages("linf", num_targets=2)["standard"]
    module._stages = lambda *_: {
        "standard": {name: standard[name] for name in ("apgd_ce", "apgd_t")}
    }


def stop_in_second_round(_, workdir: Path) -> list[str]:
    """Stop the second process in the third step of the second round."""
    batches = gan_train._batches

    def batches_and_stop(*args):
        for number, batch in enumerate(batches(*args), start=1):
            if number == 3 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    gan_train._batches = batches_and_stop
    return train_sample_and_attack(None, workdir)


def hang_in_sampling(_, workdir: Path) -> list[str]:
    """Hang in the first process when it has written the first shard of samples."""
    write_shard = sampling.ShardWriter._write_shard

    def write_and_hang(self):
        write_shard(self)
        time.sleep(1000)

    sampling.ShardWriter._write_shard = write_and_hang
    return train_sample_and_attack(None, workdir)


def hang_in_attacks(_, workdir: Path) -> list[str]:
    """Hang in the first process when it has saved a part of AutoAttack's second search."""
    write = DiskCache.__setitem__

    def write_and_hang(self, name, record):
        write(self, name, record)
        if name.endswith("apgd_t/0/search"):
            time.sleep(1000)

    DiskCache.__setitem__ = write_and_hang
    batching._SECONDS_BETWEEN_SAVES = 0
    return train_sample_and_attack(None, workdir)


if __name__ == "__main__":
    job, workdir = sys.argv[1:3]
    if job.endswith(WITHOUT_PRIVATE_API):
        distributed._private = lambda module, name: None
        job = job.removesuffix(WITHOUT_PRIVATE_API)
    train_run = {
        "tiny": tiny_job,
        "communicate": communicate,
        "fail": fail,
        "wait": wait,
        "save_slowly": save_slowly,
        "wait_for_slow_first": wait_for_slow_first,
        "gan": train_sample_and_attack,
        "gan_stopped_in_second_round": stop_in_second_round,
        "gan_hanging_in_sampling": hang_in_sampling,
        "gan_hanging_in_attacks": hang_in_attacks,
    }[job]
    program.import_module = lambda _: type("Job", (), {"run": staticmethod(train_run)})
    sys.argv = ["run.py", "--workdir", workdir, *sys.argv[3:]]
    program.app.run(program.main, flags_parser=flags.parse_flags)
