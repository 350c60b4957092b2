"""The notebook runs from top to bottom, as a user runs it."""

import json
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
