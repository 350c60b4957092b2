import errno
import gc
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorstore as ts

from jaxadv.core.types import UserError
from jaxadv.runs import checkpoints

ROBUST = "validation_accuracy_robust"


def weights(epoch):
    return {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4) * epoch}


def save_run(workdir, scores):
    for epoch, score in enumerate(scores, start=1):
        items = {"weights": weights(epoch), "training": {"step": np.int32(epoch)}}
        checkpoints.save(workdir, epoch, items, {ROBUST: score})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, [0.1, 0.5, 0.2, 0.3, 0.4])
    return workdir


@pytest.fixture
def workdir(template, tmp_path):
    return shutil.copytree(template, tmp_path / "run")


def restore(workdir, which):
    return checkpoints.restore(workdir, which, {"weights": weights(0)})


def test_the_best_and_the_last_two_are_kept_and_restored(workdir):
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4", "5"}
    for which, epoch in [("best", 2), ("last", 5)]:
        restored = restore(workdir, which)
        assert restored.epoch == epoch
        np.testing.assert_array_equal(restored.items["weights"]["kernel"], weights(epoch)["kernel"])


def test_a_resumed_run_keeps_the_best(workdir):
    for epoch in (6, 7):
        checkpoints.save(workdir, epoch, {"weights": weights(epoch)}, {ROBUST: 0.1})
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "6", "7"}
    assert restore(workdir, "best").epoch == 2


def test_device_arrays_are_saved(tmp_path):
    items = {"weights": jax.device_put(weights(3))}
    checkpoints.save(tmp_path, 1, items, {ROBUST: 0.0})
    np.testing.assert_array_equal(
        restore(tmp_path, "last").items["weights"]["kernel"], weights(3)["kernel"]
    )


def test_a_save_leaves_no_memory_behind_for_each_array(tmp_path):
    """TensorStore leaks four strings whenever Orbax converts a specification to JSON."""
    items = {"weights": {f"kernel_{i}": np.zeros(1, np.float32) for i in range(100)}}
    num_blocks = []
    for epoch in range(6):
        checkpoints.save(tmp_path, epoch, items, {ROBUST: 0.0})
        gc.collect()
        num_blocks.append(sys.getallocatedblocks())
    assert num_blocks[5] - num_blocks[2] < 3 * 2 * 100  # 3 saves; the leak is 4 blocks an array


def test_a_save_leaves_tensorstore_as_it_was(tmp_path):
    checkpoints.save(tmp_path, 1, {"weights": {"kernel": np.zeros(1)}}, {ROBUST: 0.0})
    assert ts.KvStore.Spec({"driver": "memory"}).to_json() == {"driver": "memory"}


def test_restoring_without_a_checkpoint_returns_none(tmp_path):
    assert restore(tmp_path, "last") is None


def files_of(workdir, epoch):
    return sorted(p for p in (workdir / "checkpoints" / str(epoch)).rglob("*") if p.is_file())


def flip(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.integers(len(content))] ^= 1 << generator.integers(8)
    path.write_bytes(content)


def truncate(path, generator):
    path.write_bytes(path.read_bytes()[: generator.integers(path.stat().st_size)])


def remove(path, _):
    path.unlink()


def append(path, _):
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flip, truncate, remove, append])
def test_each_of_100_corrupt_checkpoints_is_reported_and_the_previous_one_restored(
    template, damage
):
    """25 of each kind of damage, at random places of random files."""
    generator = np.random.default_rng(0)
    files = [path for path in files_of(template, 5) if path.stat().st_size]
    for _ in range(25):
        path = files[generator.integers(len(files))]
        original = path.read_bytes()
        damage(path, generator)
        with pytest.warns(UserWarning, match=r"epoch 5 is corrupt .*epoch 4 is restored instead"):
            assert restore(template, "last").epoch == 4
        path.write_bytes(original)
    assert restore(template, "last").epoch == 5


def test_an_empty_folder_is_a_corrupt_checkpoint(workdir):
    shutil.rmtree(workdir / "checkpoints" / "5")
    (workdir / "checkpoints" / "5").mkdir()
    with pytest.warns(UserWarning, match=r"epoch 5 is corrupt .*epoch 4 is restored instead"):
        assert restore(workdir, "last").epoch == 4


def test_a_corrupt_best_is_reported_although_its_metric_is_readable(workdir):
    record = workdir / "checkpoints" / "2" / "record" / "metadata"
    record.write_text(record.read_text().replace("0.5", "0.1"))
    with pytest.warns(UserWarning, match=r"epoch 2 is corrupt .*epoch 5 is restored instead"):
        assert restore(workdir, "best").epoch == 5


def test_sha256sum_verifies_the_checksums(workdir):
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=workdir / "checkpoints" / "5",
        check=True,
    )


def test_a_failed_save_is_reported_and_keeps_the_other_checkpoints(workdir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "file_sha256", full)
    with pytest.raises(
        UserError, match=r"cannot write checkpoint 6 .*No space left.* earlier checkpoints are kept"
    ):
        checkpoints.save(workdir, 6, {"weights": weights(6)}, {ROBUST: 0.1})
    monkeypatch.undo()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4", "5"}
    assert restore(workdir, "last").epoch == 5


def test_an_error_in_one_line_if_all_checkpoints_are_corrupt(workdir):
    for path in (workdir / "checkpoints").iterdir():
        shutil.rmtree(path / "weights")
    with pytest.raises(UserError, match="no checkpoint can be restored") as error:
        restore(workdir, "best")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kernel", [np.zeros((4, 4), np.float32), np.zeros((3, 4), np.float64), None]
)
def test_a_checkpoint_of_another_model_is_not_corrupt(workdir, kernel):
    """No checkpoint is moved, and no earlier one is restored."""
    targets = {"weights": {"other": np.zeros(2)} if kernel is None else {"kernel": kernel}}
    with pytest.raises(
        UserError, match=r"5 is a checkpoint of another model .*jax_enable_x64"
    ) as error:
        checkpoints.resume(workdir, {**targets, "training": {"step": np.int32(0)}})
    assert "corrupt" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not (workdir / "damaged_checkpoints").exists()


STRAYS = (".DS_Store", "Thumbs.db", "._metadata", "metadata~", "notes.txt")


def test_stray_files_are_ignored(workdir):
    """Files of a file manager or an editor are neither corruption nor checkpoints."""
    checkpoints.save_interrupted(workdir, 5, items := {"weights": weights(9)}, [{"loss": 1.0}])
    folders = [path for path in workdir.rglob("*") if path.is_dir()]
    for folder in folders:
        for name in STRAYS:
            (folder / name).write_text("stray")
    for name in ("7", "6.partial", "8 (copy)", "05", "\N{SUPERSCRIPT TWO}"):
        (workdir / "checkpoints" / name).touch()
    resumed = checkpoints.resume(workdir, {"weights": weights(0)})
    assert (resumed.epoch, resumed.history) == (5, [{"loss": 1.0}])
    np.testing.assert_array_equal(resumed.items["weights"]["kernel"], items["weights"]["kernel"])
    assert restore(workdir, "best").epoch == 2
    assert not (workdir / "damaged_checkpoints").exists()
    checkpoints.save(workdir, 6, items, {ROBUST: 0.1})
    folders = {p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()}
    assert folders == {"2", "5", "6"}


@pytest.mark.parametrize("lines", [slice(0, 0), slice(0, 2)])
def test_truncated_checksums_are_corruption(workdir, lines):
    sums = workdir / "checkpoints" / "5" / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[lines]))
    with pytest.warns(UserWarning, match=r"epoch 5 is corrupt .*truncated"):
        assert restore(workdir, "last").epoch == 4


def test_resuming_moves_corrupt_checkpoints(workdir):
    targets = {"weights": weights(0), "training": {"step": np.int32(0)}}
    (workdir / "checkpoints" / "2" / "SHA256SUMS").unlink()
    (workdir / "checkpoints" / "5" / "SHA256SUMS").unlink()
    (workdir / "checkpoints" / "6.partial").mkdir()
    with pytest.warns(UserWarning, match="is corrupt") as warned:
        assert checkpoints.resume(workdir, targets).epoch == 4
    assert ["epoch 4 is restored instead" in str(warned[0].message), len(warned)] == [True, 2]
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"4"}
    moved = {p.name.split("_", 1)[1] for p in (workdir / "damaged_checkpoints").iterdir()}
    assert moved == {"epoch_2", "epoch_5"}
