import json
import shutil

import jax
import numpy as np
import pytest

from jaxadv import checkpoint
from jaxadv.types import UserError

ROBUST = "validation_accuracy_robust"


def weights(epoch):
    return {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4) * epoch}


def save_run(workdir, scores):
    with checkpoint.open_manager(workdir) as manager:
        for epoch, score in enumerate(scores, start=1):
            items = {"weights": weights(epoch), "training": {"step": np.int32(epoch)}}
            checkpoint.save(manager, epoch, items, {ROBUST: score})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, [0.1, 0.5, 0.2, 0.3, 0.4])
    return workdir


@pytest.fixture
def workdir(template, tmp_path):
    return shutil.copytree(template, tmp_path / "run")


def restore(workdir, which):
    return checkpoint.restore(workdir, which, {"weights": weights(0)})


def large_file(workdir, epoch):
    files = [
        p
        for p in (workdir / "checkpoints" / str(epoch) / "weights" / "d").rglob("*")
        if p.is_file()
    ]
    return max(files, key=lambda p: p.stat().st_size)


def test_best_and_last_are_kept_and_come_back(workdir):
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4", "5"}
    for which, epoch in [("best", 2), ("last", 5)]:
        restored = restore(workdir, which)
        assert restored.epoch == epoch
        np.testing.assert_array_equal(restored.items["weights"]["kernel"], weights(epoch)["kernel"])


def test_the_best_is_remembered_by_a_run_that_goes_on(workdir):
    with checkpoint.open_manager(workdir) as manager:
        for epoch in (6, 7):
            checkpoint.save(manager, epoch, {"weights": weights(epoch)}, {ROBUST: 0.1})
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "6", "7"}
    assert restore(workdir, "best").epoch == 2


def test_device_arrays_are_saved_too(tmp_path):
    items = {"weights": jax.device_put(weights(3))}
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, items, {ROBUST: 0.0})
    np.testing.assert_array_equal(
        restore(tmp_path, "last").items["weights"]["kernel"], weights(3)["kernel"]
    )


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path, "last") is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(workdir, damage):
    path = large_file(workdir, 5)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        # Every byte of the data in turn would do; the middle of the file is in the numbers.
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        shutil.rmtree(workdir / "checkpoints" / "5")
        (workdir / "checkpoints" / "5").mkdir()
    with pytest.warns(UserWarning, match=r"epoch 5 is damaged .*epoch 4 is used instead"):
        restored = restore(workdir, "last")
    assert restored.epoch == 4


def test_numbers_that_do_not_match_their_checksum_are_damage(workdir):
    record = workdir / "checkpoints" / "5" / "record" / "metadata"
    content = json.loads(record.read_text())
    content["sha256"]["weights"] = "0" * 64
    record.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="checksum of weights does not match"):
        assert restore(workdir, "last").epoch == 4


def test_all_damaged_is_an_error_in_one_line(workdir):
    for path in (workdir / "checkpoints").iterdir():
        (path / "_CHECKPOINT_METADATA").unlink()
        shutil.rmtree(path / "weights")
    with pytest.raises(UserError, match="no checkpoint can be restored") as error:
        restore(workdir, "best")
    assert "\n" not in str(error.value)


def test_another_model_is_not_restored(workdir):
    with pytest.raises(UserError, match="no checkpoint can be restored"):
        checkpoint.restore(workdir, "last", {"weights": {"kernel": np.zeros((4, 4), np.float32)}})


def test_repeated_epochs_are_set_aside_not_lost(workdir):
    checkpoint.set_aside_after(workdir, 4)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert [p.name for p in (workdir / "damaged_checkpoints").iterdir()] == ["0_epoch_5"]
