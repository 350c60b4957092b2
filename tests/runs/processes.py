"""Start the processes of distributed_job.py on this machine, each with some CPU devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


CONFIG = "--config=configs/curriculum.py:digits"


def start(job, workdir, num_processes=2, *, num_devices=2, flags=((CONFIG,), (CONFIG,))):
    """Start the processes of a job; `flags` has flags of run.py for each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'runs'}",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
    }
    command = [sys.executable, "tests/runs/distributed_job.py", job, str(workdir)]
    distributed_flags = [f"--coordinator=localhost:{port}", f"--num_processes={num_processes}"]
    if num_processes == 1:
        distributed_flags = []
    return [
        subprocess.Popen(
            [
                *command,
                *distributed_flags,
                *([f"--process_id={number}"] if distributed_flags else []),
                *flags[number],
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(num_processes)
    ]


def wait_for_exit(processes, timeout=300):
    """Return the exit codes, and the (stdout, stderr) of each process."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], outputs
