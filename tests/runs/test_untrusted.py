"""Untrusted files: they cannot run code, nor write outside of the workdir."""

import json
import os

import numpy as np
import pytest

from jaxadv.configs import curriculum, evaluate
from jaxadv.core.files import read_arrays
from jaxadv.core.types import UserError
from jaxadv.data.synthetic import open_synthetic
from jaxadv.evaluation import checkpoint as evaluation
from jaxadv.runs.resume_cache import DiskCache


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    """An .npz whose arrays are pickles that create a folder."""
    created = tmp_path / "created"
    traps = np.array([Trap(created)], dtype=object)
    path = tmp_path / "trap.npz"
    np.savez(path, image=traps, label=traps, a=traps)
    yield path
    assert not created.exists()


def test_a_pickle_in_synthetic_images_is_refused(trap):
    with pytest.raises(UserError):
        open_synthetic(trap, (32, 32, 3), 10)


def test_a_pickle_in_a_resume_cache_counts_as_missing(trap, tmp_path):
    cache = DiskCache(tmp_path / "cache", "task")
    trap.rename(tmp_path / "cache" / "a.npz")
    with pytest.raises(KeyError):
        cache["a"]


def test_a_pickle_in_the_examples_of_a_report_is_refused(trap):
    with pytest.raises(UserError):
        read_arrays(trap)


def evaluation_of(tmp_path, change):
    """Return the config of an evaluation of a run whose config.json is changed."""
    config = json.loads(curriculum.get_config("digits").to_json())
    change(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    evaluation_config = evaluate.get_config()
    evaluation_config.checkpoint = str(tmp_path / "run")
    return evaluation_config


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"].update(surprise=1),
        lambda config: config["model"].update(name="__import__('os').system('true')"),
        lambda config: config["model"].update(defence={"name": "rse", "rse": {"x": 1}}),
        lambda config: config.pop("model"),
        lambda config: config["data"].pop("source"),
        lambda config: config["data"].pop("size"),
        lambda config: config["data"].update(source="../../etc"),
        lambda config: config.update(data=[]),
    ],
)
def test_an_invalid_stored_config_is_refused_in_one_line(tmp_path, change):
    with pytest.raises(UserError) as error:
        evaluation.run(evaluation_of(tmp_path, change), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_no_data_set_is_prepared_in_a_directory_of_a_stored_config(tmp_path, monkeypatch):
    def change(config):
        config["data"] |= {"source": "cifar10", "data_dir": str(tmp_path / "elsewhere")}

    config = evaluation_of(tmp_path, change)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setattr("jaxadv.data.preparation._is_online", lambda url: False)
    with pytest.raises(UserError, match=f"not prepared in {tmp_path / 'own'}"):
        evaluation.run(config, tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()
