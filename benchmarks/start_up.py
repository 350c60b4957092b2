"""Time the start of a training: from the command to the end of its first step.

    PYTHONPATH=. python benchmarks/start_up.py --out results/performance

The training is `configs/curriculum.py:digits`. The first start has an empty folder of compiled
programs, the later ones find those of the first. Then the whole job, the training and its
evaluation, runs from an empty folder. Each start is in a separate process. Nothing
else should run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxadv.core.devices import set_up_cpu
from jaxadv.core.files import write_json
from jaxadv.runs.workdir import provenance, source_version

ARGUMENTS = ["run.py", "--config", "configs/curriculum.py:digits"]
# Runs the command of its arguments until the first step, and writes the time to a file.
STOP_AFTER_FIRST_STEP = """
import os, runpy, sys, time
import jaxadv.training.train as training

original = training._step

def step(*arguments):
    result = original(*arguments)
    result[1]["loss"].block_until_ready()
    with open(os.environ["END_OF_FIRST_STEP"], "w") as file:
        file.write(str(time.time()))
    os._exit(0)

training._step = step
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Measure first and later starts and whole jobs, print them, and write `start_up.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    options = parser.parse_args()
    set_up_cpu()  # for the name of the device in the record
    source_version()
    began = time.monotonic()
    starts = [time_starts(num_later=2) for _ in range(options.repetitions)]
    record = {
        "first_start": [first for first, _ in starts],
        "later_start": [seconds for _, later in starts for seconds in later],
        "whole_job": [time_job() for _ in range(options.repetitions)],
    }
    for name, seconds in record.items():
        print(f"{name}: {np.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")
    options.out.mkdir(parents=True, exist_ok=True)
    provenance_of_run = provenance(time.monotonic() - began)
    write_json(options.out / "start_up.json", {**record, "provenance": provenance_of_run})


def time_starts(num_later: int) -> tuple[float, list[float]]:
    """Return the seconds to the end of the first step: without, and with compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        seconds = [time_start(cache) for _ in range(1 + num_later)]
    return seconds[0], seconds[1:]


def time_start(cache: str) -> float:
    """Return the seconds from the command to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        end = Path(folder, "end")
        began = time.time()
        _run(["-c", STOP_AFTER_FIRST_STEP, *ARGUMENTS], folder, cache, END_OF_FIRST_STEP=str(end))
        return float(end.read_text()) - began


def time_job() -> float:
    """Return the seconds of the whole job without compiled programs."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        began = time.time()
        _run(ARGUMENTS, folder, cache)
        return time.time() - began


def _run(arguments: list[str], folder: str, cache: str, **variables: str) -> None:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, **variables}
    command = [sys.executable, *arguments, "--workdir", str(Path(folder, "run"))]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
