"""One process of the runs in test_distributed.py.

python tests/runs/distributed_job.py JOB WORKDIR [run.py's flags]
"""

import json
import os
import sys
import time
from pathlib import Path

import jax

import run as program
from jaxadv.core.devices import local_rows
from jaxadv.runs import checkpoints, distributed
from jaxadv.training import train
from jaxadv.training.loop import run_steps


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


def different_configs(config, workdir: Path) -> list[str]:
    """Train with another config in each process."""
    config.seed = jax.process_index()
    return train.run(config, workdir)


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


if __name__ == "__main__":
    job, workdir = sys.argv[1:3]
    train_run = {
        "tiny": tiny_job,
        "communicate": communicate,
        "fail": fail,
        "wait": wait,
        "save_slowly": save_slowly,
        "different_configs": different_configs,
    }[job]
    program.import_module = lambda _: type("Job", (), {"run": staticmethod(train_run)})
    flags = ["--config", "configs/curriculum.py:digits", "--workdir", workdir]
    sys.argv = ["run.py", *flags, *sys.argv[3:]]
    program.app.run(program.main, flags_parser=program._parse_flags)
