"""The command line as a program: error messages, exit codes, and interruption."""

import os
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxadv.cli import flags, job
from jaxadv.configs import evaluate

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).parent.parent
CURRICULUM = ("--config", "configs/curriculum.py:digits")


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def error_line(*arguments, **environment):
    """Return the error message, which must be the only line of stderr."""
    result = run(*arguments, **environment)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no config: pass --config"),
        (("--config", "configs/nope.py"), "no config 'configs/nope.py': use one of curriculum"),
        ((*CURRICULUM, "--config.model.nme=net"), 'Did you mean "name"'),
        ((*CURRICULUM, "--config.train.num_epochs=many"), "--config.train.num_epochs=many"),
        ((*CURRICULUM, "--config.mode=dance"), "config.mode is 'dance'"),
        ((*CURRICULUM, "--confg.seed=1"), "confg.seed"),
        ((*CURRICULUM, "seed=1"), "unknown argument 'seed=1'"),
        (("--config", "configs/evaluate.py:digits"), "unknown attack suite 'digits'"),
        (("--config", "configs/study.py", "--distributed"), "omit --distributed"),
        ((*CURRICULUM, "--process_id=1"), "no cluster such as Slurm, Open MPI or a TPU pod"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(arguments, message):
    assert message in error_line(*arguments)


def test_an_invalid_value_creates_no_workdir(tmp_path):
    line = error_line(*CURRICULUM, "--config.attack.eps_end=-1", "--workdir", tmp_path / "run")
    assert "config.attack.eps_end is -1.0: it must be 0 or more" in line
    assert not (tmp_path / "run").exists()


def test_an_unavailable_data_set_is_reported_at_once(tmp_path):
    line = error_line(
        "--config",
        "configs/curriculum.py",
        f"--config.data.data_dir={tmp_path}",
        "--workdir",
        tmp_path / "run",
        https_proxy="http://127.0.0.1:9",
        HTTPS_PROXY="http://127.0.0.1:9",
        no_proxy="",
    )
    assert f"cifar10 is not prepared in {tmp_path}" in line
    assert "--config.data.data_dir=DIR" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("raised", "fail_on_warnings", "code"),
    [(["a warning"], False, 0), ([], True, 0), (["a warning"], True, 3)],
)
def test_warnings_set_the_exit_code_if_the_config_asks_for_it(
    monkeypatch, raised, fail_on_warnings, code
):
    config = evaluate.get_config()
    config.evaluation.fail_on_warnings = fail_on_warnings
    values = {"CONFIG": config, "WORKDIR": "out", "DEBUG": False, "DISTRIBUTED": False,
                  "QUIET": False, "JSON": False}  # fmt: skip
    values |= {"COORDINATOR": None, "NUM_PROCESSES": None, "PROCESS_ID": None}
    for name, value in values.items():
        monkeypatch.setattr(flags, name, SimpleNamespace(value=value))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restored afterwards
    monkeypatch.setattr("jaxadv.core.devices.set_up_cpu", lambda: None)
    monkeypatch.setattr("jaxadv.runs.signals.install_handlers", lambda end: None)
    monkeypatch.setattr("jaxadv.evaluation.checkpoint.run", lambda *_: raised)
    monkeypatch.setattr("jaxadv.runs.distributed.exit_all", lambda _, text: pytest.fail(text))
    with pytest.raises(SystemExit) as exit_of_program:
        job.main([])
    assert exit_of_program.value.code == code


def test_a_stopped_run_prints_the_command_that_resumes_it(tmp_path):
    command = ["run.py", *CURRICULUM, "--workdir", str(tmp_path), "--config.model.name=net"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, stderr = process.communicate()
    assert process.returncode == 0
    assert (
        stderr.splitlines()[-1]
        == f"Stopped (SIGTERM). Resume with: {shlex.join(['python', *command])}"
    )
    assert list((tmp_path / "interrupted").iterdir())


COUNT_ARENAS = """
import ctypes, os, sys, threading
from jaxadv.cli import job
if "limit" in sys.argv:
    job._limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
allocated, counted = threading.Barrier(13), threading.Barrier(13)
def allocate():
    libc.malloc(1000)
    allocated.wait()
    counted.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
allocated.wait()
read, write = os.pipe()
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(write, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(os.read(read, 1 << 20).count(b"<heap nr="))
counted.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_threads_share_two_arenas():
    def count(*arguments):
        command = [sys.executable, "-c", COUNT_ARENAS, *arguments]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return int(found.stdout)

    assert count() > 2
    assert count("limit") == 2
