import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxadv.core.types import UserError
from jaxadv.data.datasets import load
from jaxadv.data.digits import open_digits
from jaxadv.data.images import ImageFormat


def load_digits(validation_fraction=0.1):
    return load("digits", data_dir=None, validation_fraction=validation_fraction)


def load_cifar10(data_dir):
    return load("cifar10", data_dir=str(data_dir), validation_fraction=0.25)


def prepared(data_dir):
    return data_dir / "cifar10" / "3.0.2"


def caches(folder):
    return list(folder.glob("jaxadv-cache-*"))


def assert_same(first, second):
    for one, other in zip(first[2:5], second[2:5], strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_digits_have_the_format_of_cifar10():
    dataset = load_digits()
    assert dataset.name == "digits, not CIFAR"
    assert dataset.class_names == tuple("0123456789")
    sizes = [len(dataset.train.labels), len(dataset.validation.labels), len(dataset.test.labels)]
    assert sizes == [1293, 144, 360]
    for images, labels in dataset[2:5]:
        assert images.shape == (len(labels), 32, 32, 3)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert np.all(images == images[..., :1]), "not grayscale"
    assert (dataset.train.images.min(), dataset.train.images.max()) == (0, 255)
    assert (
        33 <= np.bincount(dataset.test.labels).min() <= np.bincount(dataset.test.labels).max() <= 38
    )


def test_the_digits_are_those_of_scikit_learn_with_a_stratified_split():
    from sklearn.datasets import load_digits as original
    from sklearn.model_selection import train_test_split

    found = open_digits(ImageFormat(size=8, channels=1))
    digits = original()
    grayscale = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    expected = train_test_split(
        grayscale, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    splits = found.train, found.tests["test"]
    for split, images, labels in zip(splits, expected[:2], expected[2:], strict=True):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)


def test_the_validation_split_is_the_last_part_of_the_train_split():
    tenth, half = load_digits(0.1), load_digits(0.5)
    for part in ("images", "labels"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(tenth.train, part), getattr(tenth.validation, part)]),
            np.concatenate([getattr(half.train, part), getattr(half.validation, part)]),
        )
        np.testing.assert_array_equal(getattr(tenth.test, part), getattr(half.test, part))


@pytest.mark.parametrize(("fraction", "num"), [(1e-9, 1), (1 - 1e-9, 1436)])
def test_neither_the_train_nor_the_validation_split_is_empty(fraction, num):
    assert len(load_digits(fraction).validation.labels) == num


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(UserError, match=f"validation_fraction={fraction} "):
        load_digits(fraction)


def test_cifar10_has_the_content_of_the_archive(data_dir, records):
    dataset = load_cifar10(data_dir)
    assert "tensorflow" not in sys.modules
    assert dataset.name == "CIFAR-10"
    assert dataset.class_names == tuple("abcdefghij")
    assert [len(split.labels) for split in dataset[2:5]] == [15, 5, 4]
    for split, parts in (("train", dataset[2:4]), ("test", dataset[4:5])):
        loaded = {
            (int(label), image.transpose(2, 0, 1).tobytes())
            for images, labels in parts
            for image, label in zip(images, labels, strict=True)
        }
        assert loaded == {(int(record[0]), record[1:].tobytes()) for record in records[split]}


def test_the_name_of_a_jpeg_copy_says_so(data_dir):
    features = prepared(data_dir) / "features.json"
    content = json.loads(features.read_text())
    content["featuresDict"]["features"]["image"]["image"]["encodingFormat"] = "jpeg"
    features.write_text(json.dumps(content))
    assert load_cifar10(data_dir).name == "CIFAR-10, JPEG copy"


def test_the_default_directory_of_tfds_is_used(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    dataset = load("cifar10", data_dir=None, validation_fraction=0.25)
    assert_same(dataset, load_cifar10(data_dir))


def test_a_second_load_reads_the_cache_without_tfds(data_dir, monkeypatch):
    first = load_cifar10(data_dir)
    assert len(caches(prepared(data_dir))) == 1
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_same(first, load_cifar10(data_dir))


def test_a_changed_directory_is_decoded_again(data_dir):
    load_cifar10(data_dir)
    os.utime(next(prepared(data_dir).glob("*train.array_record*")), ns=(0, 0))
    load_cifar10(data_dir)
    assert len(caches(prepared(data_dir))) == 2


def test_the_cache_of_a_read_only_directory_is_in_the_users_cache_folder(
    data_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    prepared(data_dir).chmod(0o555)
    first = load_cifar10(data_dir)
    assert not caches(prepared(data_dir))
    assert len(caches(tmp_path / "home" / "jaxadv")) == 1
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_same(first, load_cifar10(data_dir))


def test_loading_works_if_the_cache_cannot_be_written(data_dir, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    prepared(data_dir).chmod(0o555)
    assert_same(load_cifar10(data_dir), load_cifar10(data_dir))
    assert "decoded again on every start" in caplog.text


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"?"],
    ids=["flipped", "truncated", "empty", "foreign"],
)
def test_a_damaged_cache_is_rebuilt(data_dir, damage):
    first = load_cifar10(data_dir)
    (cache,) = caches(prepared(data_dir))
    intact = cache.read_bytes()
    cache.write_bytes(damage(intact))
    assert_same(first, load_cifar10(data_dir))
    assert caches(prepared(data_dir)) == [cache]
    assert len(cache.read_bytes()) == len(intact)


def set_format(data_dir, file_format):
    """Change the file format that a prepared directory records."""
    info = prepared(data_dir) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", file_format))


class DataLossError(Exception):
    """Replaces an error of TensorFlow."""

    message = "corrupted record at 0"


@pytest.fixture
def tensorflow(monkeypatch):
    """Replace TensorFlow and the readers of TFDS that use it; the examples are its `splits`."""
    module = types.SimpleNamespace(
        splits={},
        hidden=[],
        config=types.SimpleNamespace(
            set_visible_devices=lambda devices, kind: module.hidden.append((devices, kind))
        ),
        errors=types.SimpleNamespace(OpError=DataLossError),
    )

    def as_dataset(self, split, decoders, read_config):
        assert isinstance(decoders["image"], type(tfds.decode.SkipDecoding()))
        assert read_config == {"interleave_cycle_length": 1}
        return module.splits[split]

    monkeypatch.setitem(sys.modules, "tensorflow", module)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_dataset", as_dataset)
    monkeypatch.setattr(tfds, "ReadConfig", dict)
    monkeypatch.setattr(tfds, "as_numpy", iter)
    return module


def examples_of(data_dir):
    builder = tfds.builder_from_directory(prepared(data_dir))
    decoders = {"image": tfds.decode.SkipDecoding()}
    return {
        split: list(builder.as_data_source(split, decoders=decoders)) for split in ("train", "test")
    }


def test_a_directory_prepared_by_tfds_is_read_with_tensorflow(data_dir, tensorflow):
    expected = load_cifar10(data_dir)
    tensorflow.splits = examples_of(data_dir)
    caches(prepared(data_dir))[0].unlink()
    set_format(data_dir, "tfrecord")
    assert_same(load_cifar10(data_dir), expected)
    assert all(
        hidden == ([], "GPU") for hidden in tensorflow.hidden
    )  # JAX keeps the memory of all GPUs


def test_tensorflow_is_not_needed_once_the_cache_exists(data_dir, tensorflow, monkeypatch):
    tensorflow.splits = examples_of(data_dir)
    set_format(data_dir, "tfrecord")
    first = load_cifar10(data_dir)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert_same(first, load_cifar10(data_dir))


def test_the_default_format_is_tfrecord(data_dir, tensorflow):
    tensorflow.splits = examples_of(data_dir)
    info = prepared(data_dir) / "dataset_info.json"
    info.write_text(info.read_text().replace('"fileFormat": "array_record",', ""))
    assert len(load_cifar10(data_dir).test.labels) == 4


def test_without_tensorflow_the_error_says_what_to_do(data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    set_format(data_dir, "tfrecord")
    message = (
        "format tfrecord, which needs TensorFlow once: `pip install tensorflow`, .*array_record"
    )
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        load_cifar10(data_dir)


def test_other_formats_are_refused(data_dir):
    set_format(data_dir, "riegeli")
    message = r"^[^\n]*file format riegeli: prepare it as array_record[^\n]*$"
    with pytest.raises(UserError, match=message):
        load_cifar10(data_dir)


def corrupt(examples):
    yield examples[0]
    raise DataLossError


@pytest.mark.parametrize(
    ("damage", "message"),
    [(corrupt, "corrupted record at 0"), (lambda examples: examples[:-1], "has 19 of 20 examples")],
)
def test_damaged_or_missing_records_are_reported_in_one_line(data_dir, tensorflow, damage, message):
    tensorflow.splits = examples_of(data_dir)
    tensorflow.splits["train"] = damage(tensorflow.splits["train"])
    set_format(data_dir, "tfrecord")
    with pytest.raises(UserError, match=rf"^cannot read [^\n]*3.0.2 [^\n]*{message}[^\n]*$"):
        load_cifar10(data_dir)


@pytest.mark.parametrize("name", ["*train.array_record*", "features.json", "dataset_info.json"])
def test_a_damaged_directory_is_reported_in_one_line(data_dir, name):
    (file,) = prepared(data_dir).glob(name)
    file.write_bytes(b"{")
    with pytest.raises(UserError, match=r"^cannot read [^\n]*3.0.2 [^\n]*$"):
        load_cifar10(data_dir)


@pytest.mark.parametrize("name", ["*test.array_record*", "features.json", "label.labels.txt"])
def test_a_missing_file_is_reported_in_one_line(data_dir, name):
    (file,) = prepared(data_dir).glob(name)
    file.unlink()
    with pytest.raises(UserError, match=r"^cannot read [^\n]*3.0.2 [^\n]*$"):
        load_cifar10(data_dir)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 0}, "data.size=0 must be at least 1"),
        ({"size": -1}, "data.size=-1 must be at least 1"),
        ({"channels": 2}, "data.channels=2 must be 1 or 3"),
    ],
)
def test_impossible_formats_are_refused(option, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        load("digits", validation_fraction=0.1, **option)


@pytest.mark.cifar10
@pytest.mark.skipif("JAXADV_CIFAR10" not in os.environ, reason="JAXADV_CIFAR10 is not set")
def test_the_real_cifar10(tmp_path):
    prepared(tmp_path).mkdir(parents=True)  # links, so that no cache is written to the original
    for file in prepared(Path(os.environ["JAXADV_CIFAR10"]).absolute()).iterdir():
        if file not in caches(file.parent):
            (prepared(tmp_path) / file.name).symlink_to(file)
    dataset = load("cifar10", data_dir=str(tmp_path), validation_fraction=0.04)
    train_labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert [len(split.labels) for split in dataset[2:5]] == [48000, 2000, 10000]
    np.testing.assert_array_equal(np.bincount(train_labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1000] * 10)
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    assert 0.44 < dataset.train.images.mean() / 255 < 0.5
