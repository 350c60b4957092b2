import datetime
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxadv.runs import workdir
from jaxadv.runs.workdir import provenance, source_version


def fake_git(answers):
    def run(command, **options):
        if answers is None:
            raise FileNotFoundError("git")
        output = answers[command[1]]
        if output and "--show-toplevel" in command:
            output = str(Path(workdir.__file__).parents[2])
        if output is None:
            raise subprocess.CalledProcessError(128, command)
        return subprocess.CompletedProcess(command, 0, stdout=output, stderr="")

    return run


@pytest.mark.parametrize(
    ("answers", "commit", "dirty"),
    [
        ({"rev-parse": "abc1234\n", "status": ""}, "abc1234", False),
        ({"rev-parse": "abc1234\n", "status": " M run.py\n"}, "abc1234", True),
        ({"rev-parse": None, "status": None}, None, False),
        (None, None, False),
    ],
    ids=["clean", "changed", "not a checkout", "no git"],
)
def test_provenance_has_the_commit_and_uncommitted_changes(monkeypatch, answers, commit, dirty):
    monkeypatch.setattr(subprocess, "run", fake_git(answers))
    source_version.cache_clear()
    found = provenance(1.0)
    assert (found["commit"], found["dirty"]) == (commit, dirty)


def test_changes_in_results_are_ignored(monkeypatch, tmp_path):
    for name in ("results/index.md", "run.py", "jaxadv/runs/workdir.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed")
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "jaxadv" / "runs" / "workdir.py"))
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "All"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name, dirty in (("results/index.md", False), ("run.py", True)):
        (tmp_path / name).write_text("changed since")
        source_version.cache_clear()
        assert source_version()["dirty"] is dirty


def test_the_commit_is_that_of_the_first_call(monkeypatch):
    source_version.cache_clear()
    for commit in ("abc1234", "def5678"):
        answers = fake_git({"rev-parse": commit, "status": ""})
        monkeypatch.setattr(subprocess, "run", answers)
        assert provenance(1.0)["commit"] == "abc1234"
    source_version.cache_clear()


def test_provenance_has_what_reproduces_a_result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", "configs/a b.py"])
    found = provenance(12.5)
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == "python run.py --config 'configs/a b.py'"
    assert found["seconds"] == 12.5
    assert found["jax"] == jax.__version__
    assert found["device"].startswith(f"{jax.device_count()} x ")
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found["date"])
    assert abs(age.total_seconds()) < 60


def test_the_commit_of_a_checkout_around_an_installed_package_is_not_its_own(monkeypatch, tmp_path):
    package = tmp_path / ".venv" / "site-packages" / "jaxadv" / "runs"
    package.mkdir(parents=True)
    monkeypatch.setattr(workdir, "__file__", str(package / "workdir.py"))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    source_version.cache_clear()
    assert source_version() == {"commit": None, "dirty": False}
    source_version.cache_clear()
