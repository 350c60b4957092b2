"""The record of the data set of a run, in its workdir and in its checkpoints."""

import json
import shutil

import numpy as np
import pytest

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import Dataset
from jaxadv.runs import checkpoints
from jaxadv.runs.dataset_record import check_same_dataset, describe_dataset
from jaxadv.runs.workdir import check_dataset, claim_dataset, read, recorded_dataset

ROBUST = {"validation_accuracy_robust": 0.5}
WEIGHTS = {"weights": {"kernel": np.ones(3, np.float32)}}


def make_dataset(name="CIFAR-10", classes=("cat", "dog"), seed=0, version="3.0.2"):
    images = np.random.default_rng(seed).integers(0, 256, (20, 4, 4, 3), np.uint8)
    split = HostBatch(images, np.zeros(20, np.int32))
    return Dataset(name, classes, split, split, split, "cifar10", version)


def finished_run(workdir, dataset):
    record = claim_dataset(workdir, dataset)
    checkpoints.save(workdir, 1, WEIGHTS, ROBUST, record)
    return workdir


def test_the_record_is_in_the_config_file_but_not_in_the_config(tmp_path):
    (tmp_path / "config.json").write_text('{"mode": "train", "seed": 1}')
    record = claim_dataset(tmp_path, make_dataset())
    assert record == {
        "name": "CIFAR-10",
        "source": "cifar10",
        "version": "3.0.2",
        "image_shape": [4, 4, 3],
        "class_names": ["cat", "dog"],
        "fingerprint": record["fingerprint"],
    }
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored == {"mode": "train", "seed": 1, "dataset": record}
    assert read(tmp_path).to_dict() == {"mode": "train", "seed": 1}
    assert recorded_dataset(tmp_path) == record


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            {"name": "MNIST"},
            "'CIFAR-10' (cifar10 3.0.2, 2 classes, images of 4 x 4 x 3), "
            "this is 'MNIST' (cifar10 3.0.2, 2 classes, images of 4 x 4 x 3)",
        ),
        ({"version": "3.1.0", "seed": 1}, "this is 'CIFAR-10' (cifar10 3.1.0, 2 classes"),
        ({"classes": ("cat",)}, "this is 'CIFAR-10' (cifar10 3.0.2, 1 classes"),
        ({"classes": ("cat", "cow")}, "classes differ ('cow' instead of 'dog')"),
        ({"seed": 1}, "this is a data set of that name with other images or labels: use"),
    ],
)
def test_another_data_set_is_refused_by_what_differs(tmp_path, other, text):
    workdir = finished_run(tmp_path, make_dataset())
    claim_dataset(workdir, make_dataset())
    for check in (claim_dataset, check_dataset):
        with pytest.raises(UserError) as error:
            check(workdir, make_dataset(**other))
        message = str(error.value)
        assert message.startswith(f"the run in {workdir} was trained on 'CIFAR-10' (cifar10 3.0.2")
        assert text in message
        assert "\n" not in message


def test_the_same_images_are_accepted_in_another_version_or_at_another_path(tmp_path):
    workdir = finished_run(tmp_path / "tfds", make_dataset())
    claim_dataset(workdir, make_dataset(version="3.1.0"))
    npz = make_dataset("train")._replace(source="npz", version="")
    workdir = finished_run(tmp_path / "npz", npz)
    claim_dataset(workdir, npz._replace(name="copy, of train"))
    with pytest.raises(UserError, match=r"was trained on 'train' \(npz, 2 classes, .* this is"):
        check_dataset(workdir, make_dataset("train, 2", seed=1)._replace(source="npz", version=""))


def test_a_copy_of_the_data_set_can_be_evaluated_but_not_trained_on(tmp_path):
    workdir = finished_run(tmp_path, make_dataset("CIFAR-10, JPEG copy"))
    check_dataset(workdir, make_dataset(seed=1))
    with pytest.raises(UserError, match="this is 'CIFAR-10' "):
        claim_dataset(workdir, make_dataset(seed=1))


def test_a_checkpoint_of_another_data_set_is_refused(tmp_path):
    source = finished_run(tmp_path / "a", make_dataset())
    target = finished_run(tmp_path / "b", make_dataset(seed=1))
    shutil.rmtree(target / "checkpoints")
    shutil.copytree(source / "checkpoints", target / "checkpoints")
    record = check_dataset(target, make_dataset(seed=1))
    path = target / "checkpoints" / "1"
    for restore in (
        lambda: checkpoints.restore(target, "best", WEIGHTS, record),
        lambda: checkpoints.resume(target, WEIGHTS, dataset=record),
    ):
        with pytest.raises(UserError) as error:
            restore()
        assert str(error.value).startswith(f"the checkpoint {path} was trained on 'CIFAR-10'")
        assert "with other images or labels" in str(error.value)
    of_source = describe_dataset(make_dataset())
    assert checkpoints.restore(target, "best", WEIGHTS, of_source).epoch == 1


def test_an_interrupted_state_of_another_data_set_is_refused(tmp_path):
    record = claim_dataset(tmp_path, make_dataset())
    checkpoints.save_interrupted(tmp_path, 0, WEIGHTS, [], record)
    assert checkpoints.resume(tmp_path, WEIGHTS, dataset=record).items
    with pytest.raises(UserError, match=r"interrupted/0 was trained on 'CIFAR-10'"):
        checkpoints.resume(tmp_path, WEIGHTS, dataset={**record, "fingerprint": "0"})


def test_runs_of_earlier_versions_are_accepted(tmp_path):
    (tmp_path / "config.json").write_text('{"mode": "train"}')
    checkpoints.save(tmp_path, 1, WEIGHTS, ROBUST)
    claim_dataset(tmp_path, make_dataset())
    assert recorded_dataset(tmp_path) is None
    earlier = {"name": "CIFAR-10", "image_shape": [4, 4, 3], "class_names": ["cat", "dog"]}
    (tmp_path / "dataset.json").write_text(json.dumps(earlier))
    assert recorded_dataset(tmp_path) == earlier
    record = claim_dataset(tmp_path, make_dataset(seed=1))
    assert checkpoints.resume(tmp_path, WEIGHTS, dataset=record).epoch == 1
    with pytest.raises(UserError, match="this is 'MNIST'"):
        claim_dataset(tmp_path, make_dataset("MNIST"))


def test_a_record_that_is_not_trusted_is_checked(tmp_path):
    (tmp_path / "config.json").write_text('{"mode": "train", "dataset": {"name": 1}}')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        recorded_dataset(tmp_path)


def test_missing_records_are_not_compared():
    check_same_dataset(None, describe_dataset(make_dataset()), "the run")
