"""Training with the modules of docs/training.md: run, kill, resume, evaluate, restore."""

import json
import re
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_config

import jaxadv
from jaxadv.configs import evaluate as evaluate_config
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import load
from jaxadv.evaluation import checkpoint
from jaxadv.runs.workdir import trained_config
from jaxadv.training import loop, train

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module", autouse=True)
def my_models(tmp_path_factory):
    """The examples of the documentation as a file that Python can import."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    folder = tmp_path_factory.mktemp("package")
    (folder / "my_models.py").write_text("\n".join(blocks))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("my_models", None)


@pytest.fixture(scope="module", autouse=True)
def digits():
    """A few digits, which every run of this file loads."""
    loaded = load("digits", data_dir=None, validation_fraction=0.04)
    few = loaded._replace(
        train=HostBatch(*(array[:192] for array in loaded.train)),
        validation=HostBatch(*(array[:16] for array in loaded.validation)),
        test=HostBatch(*(array[:16] for array in loaded.test)),
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in ("training.train", "evaluation.checkpoint"):
            patch.setattr(f"jaxadv.{module}.load_dataset", lambda data: few)
        yield few


def config_of(name):
    config = tiny_config(**{"model.name": name, "model.dropout": None, "train.ema_decay": 0.9})
    config.train.num_epochs = 2
    config.data.augmentation = "none"
    config.model.options.width = 8
    config.evaluation.batch_size = 16
    config.evaluation.attacks = {"fgsm": {"attack": "fgsm", "eps": (0.03,)}}
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the workdir of an uninterrupted run of a model."""

    @cache
    def run(name):
        workdir = tmp_path_factory.mktemp("runs") / "own"
        train.run(config_of(name), workdir)
        return workdir

    return run


def sha256_of_last_weights(workdir):
    record = workdir / "checkpoints" / "2" / "record" / "metadata"
    return json.loads(record.read_text())["sha256"]


class Killed(BaseException):
    """Simulates kill -9, which the code of a run cannot handle."""


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(finished, digits, tmp_path, monkeypatch):
    config = config_of("my_models:SmallCNN")
    check = loop._check_finite

    def killed(metrics, place, advice):
        if place == "Epoch 2/2, step 1":
            raise Killed
        check(metrics, place, advice)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_check_finite", killed)
        with pytest.raises(Killed):
            train.train(config, digits, tmp_path)
    train.train(config, digits, tmp_path)
    assert sha256_of_last_weights(tmp_path) == sha256_of_last_weights(
        finished("my_models:SmallCNN")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_models:SmallCNN", "my_models:SmallMLP"])
def test_it_is_evaluated_and_restored_like_our_models(finished, digits, tmp_path, name):
    workdir = finished(name)
    trained = json.loads((workdir / "evaluation.json").read_text())
    config = evaluate_config.get_config()
    config.checkpoint = str(workdir)
    config.evaluation.batch_size = 16
    config.evaluation.attacks = {"fgsm": {"attack": "fgsm", "eps": (0.03,)}}
    checkpoint.run(config, tmp_path)
    again = json.loads((tmp_path / "evaluation.json").read_text())
    for key in ("model", "num_parameters", "clean"):
        assert again[key] == trained[key]
    assert again["model"] == name
    assert name in (workdir / "report.html").read_text()

    classifier = jaxadv.load_classifier(workdir)
    images = jnp.asarray(digits.test.images / np.float32(255))
    logits = classifier(jax.random.key(0), images)
    correct = (np.asarray(logits).argmax(axis=1) == digits.test.labels).mean()
    assert correct == trained["clean"]["accuracy"]
    # Running statistics: the logits of an image do not depend on the others.
    alone = classifier(jax.random.key(1), images[3:4])
    np.testing.assert_allclose(alone[0], logits[3], atol=1e-5)
    statistics = jax.tree.leaves(classifier.variables["batch_stats"])
    assert all(np.abs(leaf - leaf.round()).max() > 1e-3 for leaf in statistics), "they moved"


def test_code_inside_of_a_run_is_not_imported(my_models, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "runs" / "stranger"
    run.mkdir(parents=True)
    (run / "payload.py").write_text("raise SystemExit('imported')")
    stored = json.loads(config_of("runs.stranger.payload:Net").to_json())
    (run / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"names the model 'runs\.stranger\.payload:Net'"):
        trained_config(run, "train", None)
