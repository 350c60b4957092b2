"""The notebook runs from top to bottom, as a user runs it."""

import json
import subprocess
from pathlib import Path

import jupytext
import nbclient
import pytest

pytestmark = pytest.mark.slow  # starts processes

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_notebook_matches_its_source():
    source, notebook = (jupytext.read(NOTEBOOKS / f"colab.{kind}") for kind in ("py", "ipynb"))
    assert sources(notebook) == sources(source)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Execute a copy with a small model and few images, in the folder of the notebook."""
    workdir = tmp_path_factory.mktemp("colab") / "run"
    notebook = jupytext.read(NOTEBOOKS / "colab.py")
    (settings,) = [cell for cell in notebook.cells if cell.source.startswith("REPOSITORY = ")]
    values = {"MODEL": "net", "NUM_EPOCHS": 2, "NUM_EXAMPLES": 16}
    values |= {"ATTACK_SUITE": "plain", "WORKDIR": str(workdir)}
    settings.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    settings.source += "\nimport matplotlib.pyplot"  # before the installation, as Colab does
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}
    ).execute()
    return notebook, workdir


def test_notebook_runs(executed):
    notebook, workdir = executed
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    plots = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs)
    assert len(plots) == 3
    assert "epoch   2/2" in text
    assert text.count("Report: ") == 2
    assert {"report.html", "evaluation.json", "checkpoints"} <= {p.name for p in workdir.iterdir()}


def test_notebook_evaluates_the_trained_model(executed):
    _, workdir = executed
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert len(evaluation["attacks"]) == 15
    assert evaluation["n"] == 16
    assert evaluation["provenance"]["command"].startswith("python run.py --config")
    again = json.loads((workdir / "plain" / "evaluation.json").read_text())
    assert again["checkpoint"]["sha256"] == evaluation["checkpoint"]["sha256"]
    assert again["clean"]["accuracy"] == evaluation["clean"]["accuracy"]


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Execute the first lines of the install cell in an empty folder, without the installation."""
    (cell,) = [
        cell.source
        for cell in jupytext.read(NOTEBOOKS / "colab.py").cells
        if "git" in cell.source and "pip install" in cell.source
    ]
    lines, installation, _ = cell.partition("installed = ")
    assert installation
    monkeypatch.chdir(tmp_path)

    def run(repository):
        monkeypatch.chdir(tmp_path)
        exec(lines, {"REPOSITORY": repository})
        return Path.cwd()

    return run


def test_notebook_outside_of_a_checkout_clones_the_project_once(prepare, tmp_path):
    repository = tmp_path / "origin"
    repository.mkdir()
    (repository / "run.py").touch()
    identity = ("-c", "user.name=name", "-c", "user.email=name@example.org")
    for command in (("init", "--quiet"), ("add", "."), (*identity, "commit", "-qm", "all")):
        subprocess.run(["git", *command], cwd=repository, check=True)
    for _ in range(2):  # again after a restart of the runtime
        assert prepare(str(repository)) == tmp_path / "jaxadv"
        assert (tmp_path / "jaxadv" / "run.py").exists()


def test_notebook_outside_of_a_checkout_asks_for_the_repository(prepare):
    with pytest.raises(AssertionError, match="set REPOSITORY in the first cell"):
        prepare("")
