"""What one of several processes does in tests/test_processes.py.

python tests/processes_job.py JOB WORKDIR [run.py's flags]
"""

import json
import os
import sys
import time
from pathlib import Path

import jax

import run as program
from jaxadv import checkpoint, processes, train
from jaxadv.parallel import own_rows
from jaxadv.steps import run_steps


def tiny_job(_, workdir: Path) -> list[str]:
    """Trains and evaluates a small net, and writes down the losses of each step."""
    from test_processes import two_epochs

    losses = []

    def recorded(*args, **options):
        ended = run_steps(*args, **options)
        losses.append([metrics["loss"] for metrics in ended[1]])
        return ended

    train.run_steps = recorded
    warnings = train.run(two_epochs(), workdir)
    (workdir / f"losses_{jax.process_index()}.json").write_text(json.dumps(losses))
    return warnings


def slow(_, workdir: Path) -> list[str]:
    """Trains, and takes longer to save than the others have to part."""
    from test_processes import two_epochs

    write = checkpoint.write

    def write_slowly(*args):
        time.sleep(6)
        write(*args)

    checkpoint.write = write_slowly
    return train.run(two_epochs(), workdir)


def differ(config, workdir: Path) -> list[str]:
    """Has another config in each process."""
    config.seed = jax.process_index()
    return train.run(config, workdir)


def values(_, workdir: Path) -> list[str]:
    """Shares values that differ between the processes."""
    me = jax.process_index()
    shared = processes.from_first(lambda: {"me": me, "none": None, "list": [1.5, "a"]})
    assert shared == {"me": 0, "none": None, "list": [1.5, "a"]}
    assert processes.any_process(me == 1)
    assert not processes.any_process(False)
    # Of four devices the first process has the first two.
    assert own_rows(8).tolist() == [2 * me, 2 * me + 1, 2 * me + 4, 2 * me + 5]
    mark = workdir / "mark"
    assert processes.first_goes_before(mark.exists if me else mark.touch) in (None, True)
    return []


def fail(_, workdir: Path) -> list[str]:
    """Has an error in the second process, while the first waits for it."""
    if jax.process_index() == 1:
        raise ZeroDivisionError("of the second")
    return wait(_, workdir)


def wait(_, workdir: Path) -> list[str]:
    """Waits for nothing, in step with the other processes."""
    (workdir / f"{jax.process_index()}").write_text(str(os.getpid()))
    while not processes.any_process(False):
        pass
    return []


if __name__ == "__main__":
    job, workdir = sys.argv[1:3]
    train_run = {
        "tiny": tiny_job,
        "values": values,
        "fail": fail,
        "wait": wait,
        "slow": slow,
        "differ": differ,
    }[job]
    program.import_module = lambda _: type("Job", (), {"run": staticmethod(train_run)})
    flags = ["--config", "configs/curriculum.py:digits", "--workdir", workdir]
    sys.argv = ["run.py", *flags, *sys.argv[3:]]
    program.app.run(program.main, flags_parser=program._parse)
