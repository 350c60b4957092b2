"""Files are there whole or not at all."""

import pytest

from jaxadv.files import written_whole


def test_a_file_takes_the_place_of_the_old_one_once_it_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_on_the_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(path) as partial:
        partial.with_name("elsewhere").rename(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
