"""The command line, as a user meets it: what it says when something is wrong."""

import os
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import run as program
from configs import evaluate

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


def told(*arguments, **environment):
    """Returns the one line of an error; nothing but progress may stand before it."""
    result = run(*arguments, **environment)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr + result.stdout
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no config: give --config"),
        (("--config", "configs/nope.py"), "No such file or directory: 'configs/nope.py'"),
        ((*CURRICULUM, "--config.model.nme=net"), 'Did you mean "name"'),
        ((*CURRICULUM, "--config.train.num_epochs=many"), "--config.train.num_epochs=many"),
        ((*CURRICULUM, "--config.mode=dance"), "config.mode is 'dance'"),
        ((*CURRICULUM, "--confg.seed=1"), "confg.seed"),
        ((*CURRICULUM, "seed=1"), "unknown argument 'seed=1'"),
        (("--config", "configs/evaluate.py:digits"), "no battery 'digits': use one of default"),
    ],
)
def test_what_is_wrong_with_the_flags_is_told_in_one_line(arguments, message):
    assert message in told(*arguments)


def test_an_impossible_value_leaves_no_workdir(tmp_path):
    line = told(*CURRICULUM, "--config.attack.eps_end=-1", "--workdir", tmp_path / "run")
    assert "config.attack.eps_end is -1.0: it must be 0 or more" in line
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_cannot_be_had_is_told_at_once(tmp_path):
    line = told(
        "--config",
        "configs/curriculum.py",
        f"--config.data.data_dir={tmp_path}",
        "--workdir",
        tmp_path / "run",
        https_proxy="http://127.0.0.1:9",
        HTTPS_PROXY="http://127.0.0.1:9",
        no_proxy="",
    )
    assert f"CIFAR-10 is not prepared in {tmp_path}" in line
    assert "--config.data.data_dir=DIR" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("raised", "fail_on_warnings", "code"),
    [(["a sign"], False, 0), ([], True, 0), (["a sign"], True, 3)],
)
def test_warnings_are_a_failure_where_that_is_asked_for(
    monkeypatch, raised, fail_on_warnings, code
):
    config = evaluate.get_config()
    config.evaluation.fail_on_warnings = fail_on_warnings
    values = {"_CONFIG": config, "_WORKDIR": "out", "_DEBUG": False, "_DISTRIBUTED": False}
    for name, value in {**values, "_COORDINATOR": None, "_NUM_PROCESSES": None}.items():
        monkeypatch.setattr(program, name, SimpleNamespace(value=value))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    monkeypatch.setattr("jaxadv.parallel.set_up_cpu", lambda: None)
    monkeypatch.setattr("jaxadv.stopping.heed_signals", lambda end: None)
    monkeypatch.setattr("jaxadv.evaluate.run", lambda *_: raised)
    monkeypatch.setattr("jaxadv.processes.end", lambda _, text: pytest.fail(text))
    with pytest.raises(SystemExit) as exit_of_program:
        program.main([])
    assert exit_of_program.value.code == code


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path):
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
    _, said = process.communicate()
    assert process.returncode == 0
    assert (
        said.splitlines()[-1]
        == f"Stopped (SIGTERM). Go on with: {shlex.join(['python', *command])}"
    )
    assert list((tmp_path / "interrupted").iterdir())
