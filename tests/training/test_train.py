"""Training runs on a few digits: train, stop, resume, evaluate, report."""

import json
import shutil
from importlib import import_module

import chex
import jax
import numpy as np
import pytest
from tiny_config import tiny_config

from jaxadv.attacks.apgd import APGD
from jaxadv.attacks.ensemble import Stage
from jaxadv.attacks.square import SQUARE
from jaxadv.configs import evaluate as evaluate_config
from jaxadv.core.types import UserError
from jaxadv.data import load
from jaxadv.evaluation import checkpoint, evaluate
from jaxadv.models.classifier import make_classifier
from jaxadv.runs import checkpoints, signals
from jaxadv.runs.resume_cache import DiskCache
from jaxadv.runs.workdir import claimed, read
from jaxadv.training import loop, train

pytestmark = pytest.mark.slow  # compiles much


@pytest.fixture(scope="session")
def digits():
    return load("digits", data_dir=None, validation_fraction=0.04)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train.run(tiny_config(), workdir)
    return workdir


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_weights(workdir):
    (path,) = [p for p in (workdir / "checkpoints").iterdir() if p.name == "3"]
    return json.loads((path / "record" / "metadata").read_text())["sha256"]


def test_a_run_leaves_its_files(finished):
    names = {p.name for p in finished.iterdir()}
    assert {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "evaluation.json",
        "examples.npz",
        "report.html",
        "tensorboard",
    } <= names
    assert [line["epoch"] for line in lines(finished)] == [1, 2, 3]
    assert lines(finished)[-1]["train_loss"] < lines(finished)[0]["train_loss"]
    assert any((finished / "tensorboard").iterdir())


def test_the_evaluation_of_a_run(finished):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["dataset"] == "digits, not CIFAR"
    assert evaluation["n"] == 64
    assert evaluation["attacks"].keys() == {"fgsm/0.03", "fgsm/0.1", "pgd/0.03", "pgd/0.1"}
    for result in [evaluation["clean"], *evaluation["attacks"].values()]:
        low, high = result["ci95"]
        assert low <= result["accuracy"] <= high
    with np.load(finished / "examples.npz", allow_pickle=False) as examples:
        survived = examples["survived/pgd/0.1"]
        assert evaluation["attacks"]["pgd/0.1"]["accuracy"] == survived.mean()
        np.testing.assert_array_equal(survived, examples["margin/pgd/0.1"] <= 0)
        moved = np.abs(examples["sample/adversarial/pgd/0.1"] - examples["sample/images"])
        assert 0.05 < moved.max() <= 0.1 + 1e-6


class Killed(BaseException):
    """Simulates kill -9, which the code of a run cannot handle."""


def kill_in_the_middle_of_epoch_2(patch):
    check = loop._check_finite

    def killed(metrics, place, advice):
        if place == "Epoch 2/3, step 5":
            raise Killed
        check(metrics, place, advice)

    patch.setattr(loop, "_check_finite", killed)


def kill_after_the_save_of_epoch_3(patch):
    save = checkpoints.save

    def killed(workdir, epoch, *rest):
        save(workdir, epoch, *rest)
        if epoch == 3:
            raise Killed

    patch.setattr(checkpoints, "save", killed)


@pytest.mark.parametrize("kill", [kill_in_the_middle_of_epoch_2, kill_after_the_save_of_epoch_3])
def test_a_killed_run_ends_in_the_same_bits(finished, digits, tmp_path, monkeypatch, kill):
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            train.train(tiny_config(), digits, tmp_path)
    train.train(tiny_config(), digits, tmp_path)
    assert last_weights(tmp_path) == last_weights(finished)
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]
    for ours, theirs in zip(lines(tmp_path), lines(finished), strict=True):
        for name in ("train_loss", "validation_accuracy_clean", "validation_accuracy_robust"):
            assert ours[name] == theirs[name]


@pytest.mark.parametrize("step", [3, 21])  # in the middle of the first epoch, the last of it
def test_a_stopped_run_resumes_at_the_same_step(
    finished, digits, tmp_path, monkeypatch, capsys, step
):
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(signals, "stop_requested", lambda: next(seen) == step)
        with pytest.raises(signals.Stopped):
            train.train(tiny_config(), digits, tmp_path)
    assert [p.name for p in (tmp_path / "interrupted").iterdir()] == ["0"]
    train.train(tiny_config(), digits, tmp_path)
    assert f"after epoch 0 and {step} steps of the next" in capsys.readouterr().out
    assert last_weights(tmp_path) == last_weights(finished)
    assert not (tmp_path / "interrupted" / "0").exists()
    for ours, theirs in zip(lines(tmp_path), lines(finished), strict=True):
        assert ours["train_loss"] == theirs["train_loss"]


def test_a_corrupt_interrupted_checkpoint_costs_its_steps_and_warns(
    finished, digits, tmp_path, monkeypatch
):
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(signals, "stop_requested", lambda: next(seen) == 3)
        with pytest.raises(signals.Stopped):
            train.train(tiny_config(), digits, tmp_path)
    (tmp_path / "interrupted" / "0" / "record" / "metadata").write_text("{}")
    with pytest.warns(UserWarning, match="metadata does not match.*epoch 1 starts again"):
        train.train(tiny_config(), digits, tmp_path)
    assert last_weights(tmp_path) == last_weights(finished)


def test_a_second_run_in_a_workdir_is_refused(finished):
    with (
        claimed(finished, tiny_config()),
        pytest.raises(UserError, match="another run is using"),
    ):
        train.run(tiny_config(), finished)


def test_a_corrupt_last_checkpoint_costs_one_epoch(finished, digits, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "corrupt")
    shutil.rmtree(workdir / "checkpoints" / "3" / "training")
    with pytest.warns(UserWarning, match="epoch 3 is corrupt"):
        train.train(tiny_config(), digits, workdir)
    assert last_weights(workdir) == last_weights(finished)
    assert (workdir / "damaged_checkpoints").is_dir()


def test_a_finished_run_is_not_repeated(finished, capsys):
    before = (finished / "evaluation.json").stat().st_mtime_ns
    train.run(tiny_config(), finished)
    assert (finished / "evaluation.json").stat().st_mtime_ns == before
    assert "Report:" in capsys.readouterr().out


def test_evaluation_needs_only_the_workdir(finished, tmp_path):
    config = evaluate_config.get_config()
    config.checkpoint = str(finished)
    config.evaluation = tiny_config().evaluation
    checkpoint.run(config, tmp_path / "again")
    ours, theirs = (
        json.loads((path / "evaluation.json").read_text())
        for path in (tmp_path / "again", finished)
    )
    assert ours["checkpoint"]["sha256"] == theirs["checkpoint"]["sha256"]
    for name, result in theirs["attacks"].items():
        assert ours["attacks"][name]["accuracy"] == result["accuracy"]
    assert (tmp_path / "again" / "report.html").exists()


@pytest.fixture
def autoattack_config(finished, monkeypatch):
    """The config of an evaluation with a short AutoAttack whose images are exported."""
    stages = {
        "apgd_ce": Stage(APGD, {"loss": "cross_entropy", "num_steps": 5}),
        "square": Stage(SQUARE, {"num_queries": 20}),
    }
    module = import_module("jaxadv.attacks.autoattack")  # the package exports the function
    monkeypatch.setattr(module, "_version_stages", lambda *_: stages)
    config = evaluate_config.get_config()
    config.checkpoint = str(finished)
    config.evaluation = tiny_config().evaluation
    config.evaluation.attacks = {"aa": {"attack": "autoattack", "eps": (0.1,)}}
    config.evaluation.export = ("aa",)
    return config


def test_a_killed_autoattack_resumes_from_the_disk(
    autoattack_config, tmp_path, monkeypatch, capsys
):
    checkpoint.run(autoattack_config, tmp_path / "whole")
    write = DiskCache.__setitem__

    def killed(cache, name, record):
        write(cache, name, record)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(DiskCache, "__setitem__", killed)
        with pytest.raises(Killed):
            checkpoint.run(autoattack_config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "evaluation.json").exists()
    capsys.readouterr()
    checkpoint.run(autoattack_config, tmp_path / "killed")
    assert "Resuming from" in capsys.readouterr().out
    assert not (tmp_path / "killed" / "resume_cache").exists()
    with (
        np.load(tmp_path / "whole" / "examples.npz") as ours,
        np.load(tmp_path / "killed" / "examples.npz") as theirs,
    ):
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_evaluation_and_validation_run_at_their_matmul_precision(
    finished, digits, tmp_path, monkeypatch
):
    def report_precision(*_, **__):
        raise UserError(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr(evaluate, "run_attack_suite", report_precision)
    monkeypatch.setattr(train, "score_images", report_precision)
    config = evaluate_config.get_config()
    config.checkpoint, config.evaluation.precision = str(finished), "tensorfloat32"
    with pytest.raises(UserError, match="tensorfloat32"):
        checkpoint.run(config, tmp_path / "evaluation")
    config = tiny_config(**{"evaluation.precision": "tensorfloat32"})
    with pytest.raises(UserError, match="tensorfloat32"):
        train.train(config, digits, tmp_path / "run")


def test_exported_images_have_the_evaluated_accuracy(autoattack_config, finished, digits, tmp_path):
    checkpoint.run(autoattack_config, tmp_path)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    entry = evaluation["attacks"]["aa/0.1"]
    assert [stage["name"] for stage in entry["stages"]] == ["apgd_ce", "square"]
    with np.load(tmp_path / "adversarial_aa_0.1.npz", allow_pickle=False) as exported:
        images, rounded, labels = (exported[k] for k in ("images", "images_uint8", "labels"))
    clean = np.asarray(digits.test.images[:64], np.float32) / 255
    model = make_classifier(read(finished).model, 10)
    target = jax.eval_shape(model.init, jax.random.key(0), clean[:1])
    weights = checkpoints.restore(finished, "best", {"weights": target}).items["weights"]
    predict, right = jax.jit(model.apply), {}
    for name, batch in (("float", images), ("uint8", rounded.astype(np.float32) / 255)):
        assert np.abs(batch - clean).max() <= 0.1 + 1e-6
        right[name] = np.asarray(predict(weights, batch).argmax(axis=1)) == labels
    assert entry["accuracy"] == right["float"].mean() < evaluation["clean"]["accuracy"]
    assert entry["uint8"]["accuracy"] == right["uint8"].mean()
    assert entry["uint8"]["lost"] == (right["uint8"] & ~right["float"]).sum()
    record = json.loads((tmp_path / "adversarial_aa_0.1.json").read_text())
    assert record["autoattack_acc"] == f"{100 * entry['accuracy']:.2f}"
    assert record["eps"] == "0.1"


def test_a_missing_checkpoint_is_named(tmp_path):
    config = evaluate_config.get_config()
    with pytest.raises(UserError, match=r"config\.checkpoint is not set"):
        checkpoint.run(config, tmp_path / "out")
    config.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere does not exist: pass the workdir of a run"):
        checkpoint.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, digits):
    config = tiny_config(
        **{
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 1e30,
            "optimizer.warmup_epochs": 1.0,
            "optimizer.schedule": "constant",
        }
    )
    with pytest.raises(UserError, match=r"Epoch 1/3, step \d+: the loss.* is (nan|inf)"):
        train.train(config, digits, tmp_path)


def test_catastrophic_overfitting_is_reported(tmp_path, digits, monkeypatch, capsys):
    """The robust accuracy of a run with one-step attacks falls in its last epochs."""
    accuracies = iter([0.4, 0.5, 0.1])

    def validate(*_):
        return {"validation_accuracy_clean": 0.9, "validation_accuracy_robust": next(accuracies)}

    monkeypatch.setattr(train, "_validate", validate)
    config = tiny_config(**{"attack.num_steps_start": 1, "attack.num_steps_end": 1})
    train.train(config, digits, tmp_path)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Catastrophic" in line]
    assert line.startswith("warning: ")
    assert "fell from 50.0% to 10.0%" in line
    assert checkpoints.restore(tmp_path, "best", {}).epoch == 2


def test_a_batch_larger_than_the_train_split_is_named(tmp_path, digits):
    config = tiny_config(**{"train.batch_size": 4096})
    with pytest.raises(UserError, match="batch_size is 4096: the train split has only 1380"):
        train.train(config, digits, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"train.ema_decay": 0.0}, {"train.ema_decay": 0.9}, {"optimizer.name": "muon"}]
)
def test_a_state_survives_the_items_of_its_checkpoint(changes, digits):
    config = tiny_config(**changes)
    setup = train.make_training_setup(config, 10, steps_per_epoch=1)
    state = train.init_state(setup, (32, 32, 3))
    back = train._from_items(train._to_items(state), state)
    chex.assert_trees_all_equal(jax.device_get(back), jax.device_get(state))
