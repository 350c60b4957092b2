import numpy as np
import pytest

from jaxadv.ledger import DiskLedger
from jaxadv.types import UserError


def test_records_come_back_after_a_restart(tmp_path):
    record = {"a": np.arange(3), "b": np.float32(2)}
    DiskLedger(tmp_path / "l", ["task"])["../x/0"] = record
    ledger = DiskLedger(tmp_path / "l", ["task"])
    assert list(ledger) == ["../x/0"]
    np.testing.assert_array_equal(ledger["../x/0"]["a"], record["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["l"]  # no name leads out of the folder
    del ledger["../x/0"]
    assert len(ledger) == 0
    ledger.close()
    assert not (tmp_path / "l").exists()


def test_another_task_begins_anew_and_says_so(tmp_path):
    DiskLedger(tmp_path / "l", "one")["x"] = {"a": np.arange(3)}
    with pytest.warns(UserWarning, match="of another task"):
        assert "x" not in DiskLedger(tmp_path / "l", "another")


def test_a_damaged_record_was_never_written(tmp_path):
    ledger = DiskLedger(tmp_path / "l", "one")
    ledger["x"] = {"a": np.arange(1000)}
    (path,) = (tmp_path / "l").glob("*.npz")
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:300] + b"?" + whole[301:], b""):
        path.write_bytes(damaged)
        assert "x" not in ledger


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="no ledger and not empty"):
        DiskLedger(tmp_path, "one")
    assert (tmp_path / "thesis.txt").exists()


def test_stray_files_are_no_records_and_stay(tmp_path):
    """What a file manager leaves in a folder neither blocks the ledger nor is deleted."""
    folder = tmp_path / "l"
    folder.mkdir()
    strays = (".DS_Store", "Thumbs.db", "desktop.ini", "._x.npz", ".hidden")
    for name in strays[:3]:
        (folder / name).touch()
    DiskLedger(folder, "one")["x"] = {"a": np.arange(3)}
    for name in strays:
        (folder / name).touch()
    (folder / ".Trash").mkdir()
    ledger = DiskLedger(folder, "one")
    assert list(ledger) == ["x"]
    ledger.close()
    assert {path.name for path in folder.iterdir()} == {*strays, ".Trash"}
    assert len(DiskLedger(folder, "another")) == 0


def test_a_ledger_of_another_task_leaves_the_files_of_others(tmp_path):
    DiskLedger(tmp_path, "one")["x"] = {"a": np.arange(3)}
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.warns(UserWarning, match="of another task"):
        assert len(DiskLedger(tmp_path, "another")) == 0
    assert (tmp_path / "thesis.txt").exists()


def test_a_name_may_begin_with_a_dot(tmp_path):
    ledger = DiskLedger(tmp_path / "l", "one")
    ledger[".x"] = {"a": np.arange(3)}
    assert list(ledger) == [".x"]
    assert ".x" in ledger
