import errno
import shutil
import subprocess

import jax
import numpy as np
import pytest

from jaxadv import checkpoint, checkpoint_io
from jaxadv.types import UserError

ROBUST = "validation_accuracy_robust"


def weights(epoch):
    return {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4) * epoch}


def save_run(workdir, scores):
    for epoch, score in enumerate(scores, start=1):
        items = {"weights": weights(epoch), "training": {"step": np.int32(epoch)}}
        checkpoint.save(workdir, epoch, items, {ROBUST: score})


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


def test_best_and_last_are_kept_and_come_back(workdir):
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4", "5"}
    for which, epoch in [("best", 2), ("last", 5)]:
        restored = restore(workdir, which)
        assert restored.epoch == epoch
        np.testing.assert_array_equal(restored.items["weights"]["kernel"], weights(epoch)["kernel"])


def test_the_best_is_remembered_by_a_run_that_goes_on(workdir):
    for epoch in (6, 7):
        checkpoint.save(workdir, epoch, {"weights": weights(epoch)}, {ROBUST: 0.1})
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "6", "7"}
    assert restore(workdir, "best").epoch == 2


def test_device_arrays_are_saved_too(tmp_path):
    items = {"weights": jax.device_put(weights(3))}
    checkpoint.save(tmp_path, 1, items, {ROBUST: 0.0})
    np.testing.assert_array_equal(
        restore(tmp_path, "last").items["weights"]["kernel"], weights(3)["kernel"]
    )


def test_no_checkpoint_is_none(tmp_path):
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


def grow(path, _):
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flip, truncate, remove, grow])
def test_each_of_100_damaged_checkpoints_is_told_and_the_one_before_is_used(template, damage):
    """25 of each kind, in any file and at any place of it."""
    generator = np.random.default_rng(0)
    files = [path for path in files_of(template, 5) if path.stat().st_size]
    for _ in range(25):
        path = files[generator.integers(len(files))]
        whole = path.read_bytes()
        damage(path, generator)
        with pytest.warns(UserWarning, match=r"epoch 5 is damaged .*epoch 4 is used instead"):
            assert restore(template, "last").epoch == 4
        path.write_bytes(whole)
    assert restore(template, "last").epoch == 5


def test_an_empty_folder_is_a_damaged_checkpoint(workdir):
    shutil.rmtree(workdir / "checkpoints" / "5")
    (workdir / "checkpoints" / "5").mkdir()
    with pytest.warns(UserWarning, match=r"epoch 5 is damaged .*epoch 4 is used instead"):
        assert restore(workdir, "last").epoch == 4


def test_a_damaged_best_is_told_although_its_score_can_be_read(workdir):
    record = workdir / "checkpoints" / "2" / "record" / "metadata"
    record.write_text(record.read_text().replace("0.5", "0.1"))
    with pytest.warns(UserWarning, match=r"epoch 2 is damaged .*epoch 5 is used instead"):
        assert restore(workdir, "best").epoch == 5


def test_the_checksums_are_those_of_sha256sum(workdir):
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=workdir / "checkpoints" / "5",
        check=True,
    )


def test_what_cannot_be_written_is_told_and_leaves_the_others(workdir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_io, "_sha256", full)
    with pytest.raises(
        UserError, match=r"6 cannot be written .*No space left.* before it are kept"
    ):
        checkpoint.save(workdir, 6, {"weights": weights(6)}, {ROBUST: 0.1})
    monkeypatch.undo()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4", "5"}
    assert restore(workdir, "last").epoch == 5


def test_all_damaged_is_an_error_in_one_line(workdir):
    for path in (workdir / "checkpoints").iterdir():
        shutil.rmtree(path / "weights")
    with pytest.raises(UserError, match="no checkpoint can be restored") as error:
        restore(workdir, "best")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kernel", [np.zeros((4, 4), np.float32), np.zeros((3, 4), np.float64), None]
)
def test_another_model_is_no_damage(workdir, kernel):
    """Nothing is set aside, and no earlier checkpoint takes the place of the last."""
    targets = {"weights": {"other": np.zeros(2)} if kernel is None else {"kernel": kernel}}
    with pytest.raises(UserError, match=r"5 belongs to another model .*jax_enable_x64") as error:
        checkpoint.resume(workdir, {**targets, "training": {"step": np.int32(0)}})
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not (workdir / "damaged_checkpoints").exists()


STRAYS = (".DS_Store", "Thumbs.db", "._metadata", "metadata~", "notes.txt")


def test_stray_files_are_ignored(workdir):
    """What a file manager or an editor leaves in any folder is no damage, and no checkpoint."""
    checkpoint.save_interrupted(workdir, 5, items := {"weights": weights(9)}, [{"loss": 1.0}])
    folders = [path for path in workdir.rglob("*") if path.is_dir()]
    for folder in folders:
        for name in STRAYS:
            (folder / name).write_text("stray")
    for name in ("7", "6.partial", "8 (copy)", "05", "\N{SUPERSCRIPT TWO}"):
        (workdir / "checkpoints" / name).touch()
    begun = checkpoint.resume(workdir, {"weights": weights(0)})
    assert (begun.epoch, begun.history) == (5, [{"loss": 1.0}])
    np.testing.assert_array_equal(begun.items["weights"]["kernel"], items["weights"]["kernel"])
    assert restore(workdir, "best").epoch == 2
    assert not (workdir / "damaged_checkpoints").exists()
    checkpoint.save(workdir, 6, items, {ROBUST: 0.1})
    folders = {p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir()}
    assert folders == {"2", "5", "6"}


@pytest.mark.parametrize("lines", [slice(0, 0), slice(0, 2)])
def test_checksums_that_are_cut_short_are_damage(workdir, lines):
    sums = workdir / "checkpoints" / "5" / "SHA256SUMS"
    sums.write_text("".join(sums.read_text().splitlines(keepends=True)[lines]))
    with pytest.warns(UserWarning, match="epoch 5 is damaged .*cut short"):
        assert restore(workdir, "last").epoch == 4


def test_a_run_sets_aside_what_it_cannot_use(workdir):
    targets = {"weights": weights(0), "training": {"step": np.int32(0)}}
    (workdir / "checkpoints" / "2" / "SHA256SUMS").unlink()
    (workdir / "checkpoints" / "5" / "SHA256SUMS").unlink()
    (workdir / "checkpoints" / "6.partial").mkdir()
    with pytest.warns(UserWarning, match="is damaged") as told:
        assert checkpoint.resume(workdir, targets).epoch == 4
    assert ["epoch 4 is used instead" in str(told[0].message), len(told)] == [True, 2]
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"4"}
    aside = {p.name.split("_", 1)[1] for p in (workdir / "damaged_checkpoints").iterdir()}
    assert aside == {"epoch_2", "epoch_5"}
