"""Folders of images as data sets."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_folders import write_classes, write_images
from PIL import Image

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import load


def load_folder(path, **options):
    return load(f"folder:{path}", validation_fraction=0.2, **options)


def contents(*splits: HostBatch) -> list[tuple[int, bytes]]:
    """Return the examples of splits, sorted."""
    pairs = [zip(split.labels, split.images, strict=True) for split in splits]
    return sorted((int(label), image.tobytes()) for pair in pairs for label, image in pair)


def expected(*splits: dict) -> list[tuple[int, bytes]]:
    return sorted(
        (label, image.tobytes())
        for split in splits
        for label, images in enumerate(split.values())
        for image in images
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_folders_of_splits_are_read(tmp_path, test_name):
    train = write_classes(tmp_path / "pets" / "train", 10)
    test = write_classes(tmp_path / "pets" / test_name, 3)
    dataset = load_folder(tmp_path / "pets")
    assert (dataset.name, dataset.source, dataset.version) == ("pets", "folder", "")
    assert dataset.class_names == ("cat", "dog")
    assert [len(split.labels) for split in dataset[2:5]] == [16, 4, 6]
    assert dataset.train.images.shape == (16, 8, 8, 3)
    assert contents(dataset.train, dataset.validation) == expected(train)
    assert contents(dataset.test) == expected(test)


def test_one_folder_is_split_by_a_fixed_permutation(tmp_path):
    pixels = write_classes(tmp_path / "pets", 20, mode="L")
    dataset = load_folder(tmp_path / "pets", test_fraction=0.25)
    assert [len(split.labels) for split in dataset[2:5]] == [24, 6, 10]
    assert contents(*dataset[2:5]) == expected(pixels)
    for split in dataset[2:5]:  # although the files are sorted by class
        assert {*split.labels} == {0, 1}
    again = load_folder(tmp_path / "pets", test_fraction=0.25)
    for first, second in zip(dataset[2:5], again[2:5], strict=True):
        np.testing.assert_array_equal(first.images, second.images)


def test_the_first_test_images_are_of_several_classes(tmp_path):
    for split in ("train", "test"):
        write_classes(tmp_path / split, 20)
    assert {*load_folder(tmp_path).test.labels[:10]} == {0, 1}


def test_files_of_operating_systems_are_ignored(tmp_path):
    pixels = write_classes(tmp_path)
    for name in ("cat/Thumbs.db", "dog/.DS_Store", "dog/desktop.ini", "Thumbs.db"):
        (tmp_path / name).write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    assert contents(*load_folder(tmp_path)[2:5]) == expected(pixels)


def test_a_second_load_reads_the_cache_beside_no_image(tmp_path, monkeypatch):
    write_classes(tmp_path / "pets")
    before = sorted((tmp_path / "pets").rglob("*"))
    first = load_folder(tmp_path / "pets")
    assert sorted((tmp_path / "pets").rglob("*")) == before
    monkeypatch.setattr(Image, "open", None)
    second = load_folder(tmp_path / "pets")
    assert contents(*second[2:5]) == contents(*first[2:5])


def test_another_format_and_a_changed_file_are_decoded_again(tmp_path):
    write_classes(tmp_path / "pets")
    assert load_folder(tmp_path / "pets").train.images.shape[1:] == (8, 8, 3)
    assert load_folder(tmp_path / "pets", size=4).train.images.shape[1:] == (4, 4, 3)
    assert load_folder(tmp_path / "pets", channels=1).train.images.shape[1:] == (8, 8, 1)
    black = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(black).save(tmp_path / "pets" / "dog" / "000.png")
    assert (1, black.tobytes()) in contents(*load_folder(tmp_path / "pets")[2:5])


def png_with_long_text() -> bytes:
    """Return a PNG whose compressed text is longer than PIL reads."""
    text = b"zTXtComment\0\0" + zlib.compress(bytes(1 << 21))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    header = b"IHDR" + struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    return start + struct.pack(">I", zlib.crc32(header)) + chunk


def bad_folder(tmp_path, change):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test")
    change(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "train/cat/notes.txt").write_text("x"), "train/cat/notes.txt is not an im"),
        (lambda d: (d / "train/dog/003.png").write_bytes(b""), "train/dog/003.png is not an image"),
        (lambda d: write_images(d / "train/emu", 1), "train has classes that .*test lacks .emu."),
        (lambda d: write_images(d / "test/emu", 1), "test has classes that .*train lacks .emu."),
        (lambda d: (d / "test/emu").mkdir(), "test/emu has no images"),
        (
            lambda d: write_images(d / "train/dog/puppy", 1),
            "dog/puppy is a folder in the",
        ),
        (lambda d: write_images(d / "train", 1), "train/000.png is a file beside the folders of"),
        (lambda d: write_images(d, 1), "000.png is beside the split train and would not be read"),
        (lambda d: (d / "notes").mkdir(), "notes is beside the split train and .*: move it out"),
        (
            lambda d: (d / "train/cat/z.png").symlink_to(d / "nowhere"),
            r"^cannot read .*train/cat/z\.png \(No such file or directory\): check its",
        ),
        (
            lambda d: (d / "train/cat/000.png").write_bytes(png_with_long_text()),
            r"^cannot read .*train/cat/000\.png as an image \(.*: delete or replace it",
        ),
        (
            lambda d: Image.new("RGB", (8, 8)).save(d / "train/cat/000.png", exif=b"Exif\0\0???"),
            r"^cannot read .*train/cat/000\.png as an image \(not a TIFF file .*: delete or replac",
        ),
        (
            lambda d: write_images(d / "train/dog", 1, mode="L"),
            "dog/000.png is a grayscale ima",
        ),
        (
            lambda d: write_images(d / "train/dog", 1, side=9),
            r"cat/000.png has 8 x 8 .*dog/000",
        ),
        (
            lambda d: write_classes(d / "test", side=9),
            r"train images of shape \(8, 8, 3\) and test images of shape \(9, 9, 3\): set .*size",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_is_reported_in_one_line(tmp_path, change, message, streaming):
    folder = bad_folder(tmp_path, change)
    with pytest.raises(UserError, match=message) as error:
        load_folder(folder, streaming=streaming)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_beside_the_folders_of_classes_is_reported(tmp_path, streaming):
    write_classes(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    write_images(tmp_path, 1)
    message = r"/000\.png is a file beside the folders of the classes: move it into one of them"
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path, streaming=streaming)


def test_names_of_splits_are_found_in_any_case(tmp_path):
    write_classes(tmp_path / "Train", 10)
    test = write_classes(tmp_path / "TEST", 3)
    dataset = load_folder(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert contents(dataset.test) == expected(test)


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, names=("bus", "train"))
    assert load_folder(tmp_path).class_names == ("bus", "train")


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    write_classes(tmp_path)

    def iterdir(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", iterdir)
    message = r"^cannot read [^\n]*/dog \(Permission denied\): check its permissions"
    with pytest.raises(UserError, match=message):
        load_folder(tmp_path)


def test_a_damaged_image_is_named_when_it_is_decoded(tmp_path):
    write_classes(tmp_path)
    path = tmp_path / "dog" / "001.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"^cannot read .*dog/001\.png as an image [^\n]*$"):
        load_folder(tmp_path)


def test_folders_without_classes_are_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "flat", 3)
    write_images(tmp_path / "one" / "cat", 3)
    (tmp_path / "file").write_text("x")
    for name, message in (
        ("nowhere", "nowhere, which is not a folder"),
        ("file", "file, which is not a folder"),
        ("empty", "empty has 0 subfolders: pass a folder with a subfolder"),
        ("flat", "flat has 0 subfolders"),
        ("one", "one has 1 subfolders"),
    ):
        with pytest.raises(UserError, match=re.escape(str(tmp_path)) + f"/{message}"):
            load_folder(tmp_path / name)


def test_images_that_differ_are_converted_as_asked(tmp_path):
    write_images(tmp_path / "cat", 5, mode="L", side=9)
    write_images(tmp_path / "dog", 5, mode="RGB", side=12)
    dataset = load_folder(tmp_path, size=8, channels=3)
    assert dataset.train.images.shape[1:] == (8, 8, 3)
    gray = dataset.train.images[dataset.train.labels == 0]
    assert np.all(gray == gray[..., :1])
