import numpy as np
import pytest

from jaxadv.core.types import UserError
from jaxadv.runs.resume_cache import DiskCache, SharedCache, open_resume_cache


def test_records_are_read_after_a_restart(tmp_path):
    record = {"a": np.arange(3), "b": np.float32(2)}
    DiskCache(tmp_path / "cache", ["task"])["../x/0"] = record
    cache = DiskCache(tmp_path / "cache", ["task"])
    assert list(cache) == ["../x/0"]
    np.testing.assert_array_equal(cache["../x/0"]["a"], record["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # no name leaves the folder
    del cache["../x/0"]
    assert len(cache) == 0
    cache.close()
    assert not (tmp_path / "cache").exists()


def test_records_of_another_task_are_deleted_with_a_warning(tmp_path):
    DiskCache(tmp_path / "cache", "one")["x"] = {"a": np.arange(3)}
    with pytest.warns(UserWarning, match="of another task"):
        assert "x" not in DiskCache(tmp_path / "cache", "another")


def test_a_damaged_record_counts_as_missing(tmp_path):
    cache = DiskCache(tmp_path / "cache", "one")
    cache["x"] = {"a": np.arange(1000)}
    (path,) = (tmp_path / "cache").glob("*.npz")
    intact = path.read_bytes()
    for damaged in (intact[:-100], intact[:300] + b"?" + intact[301:], b""):
        path.write_bytes(damaged)
        assert "x" not in cache


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match="not a resume cache and not empty"):
        DiskCache(tmp_path, "one")
    assert (tmp_path / "thesis.txt").exists()


def test_files_of_file_managers_are_ignored_and_kept(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    strays = (".DS_Store", "Thumbs.db", "desktop.ini", "._x.npz", ".hidden")
    for name in strays[:3]:
        (folder / name).touch()
    DiskCache(folder, "one")["x"] = {"a": np.arange(3)}
    for name in strays:
        (folder / name).touch()
    (folder / ".Trash").mkdir()
    cache = DiskCache(folder, "one")
    assert list(cache) == ["x"]
    cache.close()
    assert {path.name for path in folder.iterdir()} == {*strays, ".Trash"}
    assert len(DiskCache(folder, "another")) == 0


def test_deleting_records_of_another_task_keeps_other_files(tmp_path):
    DiskCache(tmp_path, "one")["x"] = {"a": np.arange(3)}
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.warns(UserWarning, match="of another task"):
        assert len(DiskCache(tmp_path, "another")) == 0
    assert (tmp_path / "thesis.txt").exists()


def test_a_name_can_begin_with_a_dot(tmp_path):
    cache = DiskCache(tmp_path / "cache", "one")
    cache[".x"] = {"a": np.arange(3)}
    assert list(cache) == [".x"]
    assert ".x" in cache


def test_the_first_process_keeps_the_shared_records_on_disk(tmp_path):
    disk = DiskCache(tmp_path, "one")
    disk["old"] = {"a": np.arange(3)}
    caches = [SharedCache(dict(disk), disk), SharedCache(dict(disk), None)]
    for cache in caches:
        cache["new"] = {"a": np.arange(4)}
        assert cache.pop("old", None) is not None
        assert cache.pop("missing", None) is None
        assert list(cache) == ["new"]
    assert list(disk) == ["new"]
    caches[0].close()
    assert not tmp_path.exists()


@pytest.mark.parametrize("suffix", ["", "_last"])
def test_the_cache_of_an_earlier_version_is_found(tmp_path, suffix):
    DiskCache(tmp_path / f"ledger{suffix}", "task")["x"] = {"a": np.arange(3)}
    cache = open_resume_cache(tmp_path, suffix, "task")
    np.testing.assert_array_equal(cache["x"]["a"], np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == [f"resume_cache{suffix}"]
    cache.close()
    assert not list(tmp_path.iterdir())


def test_a_new_cache_takes_precedence_over_one_of_an_earlier_version(tmp_path):
    DiskCache(tmp_path / "ledger", "task")["old"] = {"a": np.arange(3)}
    DiskCache(tmp_path / "resume_cache", "task")["new"] = {"a": np.arange(3)}
    assert list(open_resume_cache(tmp_path, "", "task")) == ["new"]
