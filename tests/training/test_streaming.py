"""Training on images that worker processes read while the model trains."""

import json

import numpy as np
import pytest
from stored_examples import ArrayExamples
from tiny_config import tiny_config

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import load
from jaxadv.runs import signals
from jaxadv.training import train

pytestmark = pytest.mark.slow  # compiles, and starts processes

CHANGES = {"train.num_epochs": 2, "train.batch_size": 32, "attack.fraction": 0.0}


@pytest.fixture(scope="module")
def small():
    digits = load("digits", data_dir=None, validation_fraction=0.04)
    train_split = HostBatch(digits.train.images[:150, ::2, ::2], digits.train.labels[:150])
    others = HostBatch(digits.test.images[:32, ::2, ::2], digits.test.labels[:32])
    return digits._replace(train=train_split, validation=others, test=others)


@pytest.fixture(autouse=True)
def no_validation(monkeypatch):
    """Save the compilation of the validation's attack."""
    accuracies = {"validation_accuracy_clean": 0.5, "validation_accuracy_robust": 0.5}
    monkeypatch.setattr(train, "_validate", lambda *_: accuracies)


def streamed(dataset, **changes):
    stored = ArrayExamples(dataset.train, **changes)
    return dataset._replace(
        train=stored,
        validation=ArrayExamples(dataset.validation),
        test=ArrayExamples(dataset.test),
    )


def results(workdir):
    """Return the checksums of the last checkpoint and the lines of the metrics log."""
    record = json.loads((workdir / "checkpoints" / "2" / "record" / "metadata").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return record["sha256"], [line["train_loss"] for line in lines]


def test_an_interrupted_streamed_run_ends_in_the_bits_of_a_resident_one(
    small, tmp_path, monkeypatch, capsys
):
    config = tiny_config(**CHANGES)
    train.train(config, small, tmp_path / "resident")
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(signals, "stop_requested", lambda: next(seen) == 2)
        with pytest.raises(signals.Stopped):
            train.train(config, streamed(small), tmp_path / "streamed")
    train.train(config, streamed(small), tmp_path / "streamed")
    assert "after epoch 0 and 2 steps of the next" in capsys.readouterr().out
    assert results(tmp_path / "streamed") == results(tmp_path / "resident")


def test_an_unreadable_image_ends_a_streamed_run_with_its_name(small, tmp_path):
    order = np.random.default_rng(0).permutation(150)
    dataset = streamed(small, unreadable_row=int(order[0]))
    with pytest.raises(UserError, match=rf"^cannot read image_{order[0]}\.png: delete it$"):
        train.train(tiny_config(**CHANGES), dataset, tmp_path)


def test_principal_components_of_a_streamed_train_split_are_refused(small, tmp_path):
    config = tiny_config(**CHANGES, **{"model.defence.name": "low_rank"})
    config.model.defence.low_rank.rank = 20
    with pytest.raises(UserError, match=r"low_rank needs the whole train split in memory"):
        train.train(config, streamed(small), tmp_path)
