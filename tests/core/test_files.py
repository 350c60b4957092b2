"""Atomic writing of files."""

import pytest

from jaxadv.core.files import atomic_write


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path) as partial:
        partial.with_name("elsewhere").rename(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
