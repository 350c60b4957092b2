"""`.npz` files as data sets."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxadv.core.types import UserError
from jaxadv.data import in_memory, load
from jaxadv.data.mapped_arrays import map_npy

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4
MNIST = {
    "train_images": IMAGES[:30, ..., 0],
    "train_labels": LABELS[:30].astype(np.uint8),
    "test_images": IMAGES[30:, ..., 0],
    "test_labels": LABELS[30:].astype(np.uint8),
}


def load_npz(tmp_path, arrays, *, save=np.savez, **options):
    save(tmp_path / "scans.npz", **arrays)
    return load(f"npz:{tmp_path / 'scans.npz'}", validation_fraction=0.1, **options)


@pytest.mark.parametrize("keras", [False, True])
def test_arrays_of_both_splits_are_read(tmp_path, keras):
    names = dict(zip(MNIST, ("x_train", "y_train", "x_test", "y_test"), strict=True))
    arrays = {names[name] if keras else name: array for name, array in MNIST.items()}
    dataset = load_npz(tmp_path, arrays)
    assert (dataset.name, dataset.source) == ("scans", "npz")
    assert dataset.class_names == ("0", "1", "2", "3")
    assert [len(split.labels) for split in dataset[2:5]] == [27, 3, 10]
    assert dataset.train.images.shape == (27, 6, 5, 1)
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.test.images[..., 0], MNIST["test_images"])  # in order
    np.testing.assert_array_equal(dataset.test.labels, MNIST["test_labels"])
    images = [*dataset.train.images, *dataset.validation.images]
    labels = [*dataset.train.labels, *dataset.validation.labels]
    found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    expected = zip(MNIST["train_images"], MNIST["train_labels"], strict=True)
    assert found == {image.tobytes(): label for image, label in expected}


def test_one_split_and_class_names(tmp_path):
    arrays = {"image": IMAGES, "label": np.sort(LABELS), "class_names": np.array([*"abcde"])}
    dataset = load_npz(tmp_path, arrays, test_fraction=0.5)
    assert dataset.class_names == (*"abcde",)
    assert [len(split.labels) for split in dataset[2:5]] == [18, 2, 20]
    assert {*dataset.test.labels} == {0, 1, 2, 3}  # although the file is sorted by class


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_streamed_images_are_those_in_memory(tmp_path, save, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arrays = {"image": IMAGES, "label": LABELS}
    decoded = load_npz(tmp_path, arrays, save=save)
    streamed = load_npz(tmp_path, arrays, save=save, streaming=True)
    for first, second in zip(decoded[2:5], streamed[2:5], strict=True):
        copy = pickle.loads(pickle.dumps(second))
        np.testing.assert_array_equal(copy.labels, first.labels)
        assert copy.image_shape == (6, 5, 3)
        np.testing.assert_array_equal(in_memory(copy).images, first.images)
        rows = np.array([2, 0, 2])
        np.testing.assert_array_equal(copy.take(rows), first.images[rows])
        np.testing.assert_array_equal(in_memory(copy, 2).images, first.images[:2])
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["scans.npz"]


def test_images_are_resized_and_converted(tmp_path):
    dataset = load_npz(tmp_path, MNIST, size=4, channels=3)
    assert dataset.train.images.shape[1:] == (4, 4, 3)
    streamed = load_npz(tmp_path, MNIST, size=4, channels=3, streaming=True)
    np.testing.assert_array_equal(in_memory(streamed.test).images, dataset.test.images)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("/nowhere/created",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "has the arrays train_labels, test_images, test_labels: it needs"),
        ({"train_images": IMAGES[:30] / 255}, r"train_images of type float64: convert .*255 \* im"),
        (
            {"train_images": IMAGES[:30].astype(int)},
            "train_images of type int64 and shape .*use",
        ),
        ({"train_images": IMAGES[:30, 0, :, 0]}, r"train_images of type uint8 and shape \(30, 5\)"),
        ({"train_images": IMAGES[:30, ..., :2]}, r"shape \(30, 6, 5, 2\)"),
        ({"train_images": IMAGES[:30, :0, :, 0]}, r"shape \(30, 0, 5\): use uint8 of"),
        ({"train_images": IMAGES[:29, ..., 0]}, "has 29 train_images and 30 train_labels"),
        (
            {"train_labels": LABELS[:30] / 1},
            "train_labels of type float64 and shape .*use",
        ),
        ({"train_labels": np.eye(4, dtype=int)[LABELS[:30]]}, r"shape \(30, 4\): use integers"),
        (
            {"train_labels": LABELS[:30] + 1},
            "labels up to 4, but none is 0: use .* from 0 to 3",
        ),
        (
            {"train_labels": LABELS[:30] - 1},
            "the train split of scans has labels from -1 to 2",
        ),
        ({"train_labels": LABELS[:30] - 2}, "labels from -2 to 1: use 0, 1"),
        ({"test_labels": LABELS[30:] + 1}, "the test split of scans has labels from 1 to 4: use"),
        ({"train_labels": LABELS[:30] * 0}, "scans has 1 classes: use at least two"),
        ({"class_names": np.array([*"abc"])}, "labels from 0 to 3: use labels from 0 to 2"),
        ({"class_names": np.arange(4)}, "class_names that are no strings"),
        ({"train_labels": np.array([Trap()] * 30)}, "type object"),
        ({name: array[:1] for name, array in MNIST.items()}, "has 1 classes"),
        ({"test_images": IMAGES[30:]}, r"train images of shape \(6, 5, 1\) and test images of sh"),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(tmp_path, changes, message):
    arrays = {name: array for name, array in (MNIST | changes).items() if array is not None}
    with pytest.raises(UserError, match=message) as error:
        load_npz(tmp_path, arrays)
    assert "\n" not in str(error.value)


def test_test_labels_of_minus_one_are_not_used(tmp_path, capsys):
    dataset = load_npz(tmp_path, MNIST | {"test_labels": np.full(10, -1)}, test_fraction=0.5)
    assert [len(split.labels) for split in dataset[2:5]] == [13, 2, 15]
    message = "The split test of scans has no labels: a share of the train split is the test split"
    assert capsys.readouterr().out == f"{message}\n"


def test_arrays_in_fortran_order_are_read_into_memory_only(tmp_path):
    arrays = {"image": np.asfortranarray(IMAGES), "label": LABELS}
    images = load_npz(tmp_path, arrays).train.images
    expected = load_npz(tmp_path, {"image": IMAGES, "label": LABELS}).train.images
    np.testing.assert_array_equal(images, expected)
    with pytest.raises(UserError, match=r"^[^\n]*has images in Fortran order, [^\n]*contiguous"):
        load_npz(tmp_path, arrays, streaming=True)


def test_members_without_a_suffix_are_streamed(tmp_path):
    np.savez(tmp_path / "intact.npz", image=IMAGES, label=LABELS)
    with (
        zipfile.ZipFile(tmp_path / "intact.npz") as intact,
        zipfile.ZipFile(tmp_path / "scans.npz", "w") as renamed,
    ):
        for name in intact.namelist():
            renamed.writestr(name.removesuffix(".npy"), intact.read(name))
    splits = [
        load(f"npz:{tmp_path / name}", validation_fraction=0.1, streaming=True)
        for name in ("intact.npz", "scans.npz")
    ]
    first, second = (in_memory(dataset.train).images for dataset in splits)
    np.testing.assert_array_equal(first, second)


def test_a_cache_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    arrays = {"image": IMAGES, "label": LABELS}
    message = r"^cannot unpack [^\n]*scans.npz to [^\n]*jaxadv \(.*\): make that folder writable"
    with pytest.raises(UserError, match=message):
        load_npz(tmp_path, arrays, save=np.savez_compressed, streaming=True)


def test_a_truncated_array_is_reported(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    content = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"truncated, it should have 40 images: replace it$"):
        map_npy(tmp_path / "images.npy")


def test_missing_and_damaged_files_are_reported(tmp_path):
    np.savez(tmp_path / "intact.npz", **MNIST)
    content = (tmp_path / "intact.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-400])
    (tmp_path / "flipped.npz").write_bytes(
        content[:500] + bytes([content[500] ^ 1]) + content[501:]
    )
    (tmp_path / "text.npz").write_text("x")
    np.save(tmp_path / "array.npy", IMAGES)
    for name, message in (
        ("nowhere", "nowhere, which is not a file"),
        ("cut.npz", "is truncated or damaged"),
        ("flipped.npz", "is truncated or damaged .*CRC"),
        ("text.npz", "is truncated or damaged"),
        ("array.npy", "is truncated or damaged"),
    ):
        with pytest.raises(UserError, match=message):
            load(f"npz:{tmp_path / name}", validation_fraction=0.1)
