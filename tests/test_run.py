"""The command line, as a user meets it: what it says when something is wrong."""

import json
import os
import subprocess
import sys
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
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment},
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


def test_warnings_are_a_failure_where_that_is_asked_for(monkeypatch):
    config = evaluate.get_config()
    monkeypatch.setattr(program, "_CONFIG", SimpleNamespace(value=config))
    monkeypatch.setattr(program, "_WORKDIR", SimpleNamespace(value="out"))
    monkeypatch.setattr(program, "_DEBUG", SimpleNamespace(value=False))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    monkeypatch.setattr("jaxadv.parallel.set_up_cpu", lambda: None)
    for raised, fail_on_warnings, code in (
        (["a sign"], False, None), ([], True, None), (["a sign"], True, 3),
    ):  # fmt: skip
        monkeypatch.setattr("jaxadv.evaluate.run", lambda *_, raised=raised: raised)
        config.evaluation.fail_on_warnings = fail_on_warnings
        if code is None:
            program.main([])
            continue
        with pytest.raises(SystemExit) as exit_of_program:
            program.main([])
        assert exit_of_program.value.code == code


def test_the_whole_job(tmp_path):
    """One epoch of the main job, and a second start that finds nothing left to do."""
    job = (
        *CURRICULUM,
        "--workdir",
        tmp_path / "run",
        "--config.model.name=net",
        "--config.train.num_epochs=1",
        "--config.evaluation.num_examples=16",
        "--config.evaluation.batch_size=16",
    )
    first = run(*job)
    assert first.returncode == 0, first.stderr
    assert "epoch   1/1" in first.stdout
    assert "worst case" in first.stdout
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len(evaluation["attacks"]) == 15
    assert evaluation["provenance"]["command"].startswith("python run.py --config")
    second = run(*job)
    assert second.returncode == 0, second.stderr
    assert "epoch   1/1" not in second.stdout
