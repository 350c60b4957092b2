"""Files from elsewhere: none of them runs code, and none leads out of the workdir."""

import json
import os

import numpy as np
import pytest

from configs import curriculum, evaluate
from jaxadv import evaluate as evaluation
from jaxadv.data.synthetic import open_synthetic
from jaxadv.ledger import DiskLedger
from jaxadv.page import read_arrays
from jaxadv.types import UserError


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    """An .npz whose arrays are pickles, and the folder that they make."""
    sprung = tmp_path / "sprung"
    traps = np.array([Trap(sprung)], dtype=object)
    path = tmp_path / "trap.npz"
    np.savez(path, image=traps, label=traps, a=traps)
    yield path
    assert not sprung.exists()


def test_a_pickle_in_synthetic_images_is_refused(trap):
    with pytest.raises(UserError):
        open_synthetic(trap, (32, 32, 3), 10)


def test_a_pickle_in_a_ledger_counts_as_no_record(trap, tmp_path):
    ledger = DiskLedger(tmp_path / "ledger", "task")
    trap.rename(tmp_path / "ledger" / "a.npz")
    with pytest.raises(KeyError):
        ledger["a"]


def test_a_pickle_in_the_examples_of_a_report_is_refused(trap):
    with pytest.raises(UserError):
        read_arrays(trap)


def stored(tmp_path, change):
    """Returns the config of an evaluation of a run whose config.json was changed."""
    config = json.loads(curriculum.get_config("digits").to_json())
    change(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    asked = evaluate.get_config()
    asked.checkpoint = str(tmp_path / "run")
    return asked


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"].update(surprise=1),
        lambda config: config["model"].update(name="__import__('os').system('true')"),
        lambda config: config["model"].update(defence={"name": "rse", "rse": {"x": 1}}),
        lambda config: config.pop("model"),
        lambda config: config["data"].pop("name"),
        lambda config: config["data"].update(name="../../etc"),
        lambda config: config.update(data=[]),
    ],
)
def test_a_config_from_elsewhere_is_refused_in_one_line(tmp_path, change):
    with pytest.raises(UserError) as error:
        evaluation.run(stored(tmp_path, change), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_prepared_where_a_config_from_elsewhere_says(tmp_path, monkeypatch):
    def change(config):
        config["data"] |= {"name": "cifar10", "data_dir": str(tmp_path / "elsewhere")}

    asked = stored(tmp_path, change)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setattr("jaxadv.data.cifar10._is_online", lambda: False)
    with pytest.raises(UserError, match=f"not prepared in {tmp_path / 'own'}"):
        evaluation.run(asked, tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()
