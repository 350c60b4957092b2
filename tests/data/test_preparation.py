import gzip
import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import manual_folder, register_archive, write_tar
from PIL import Image
from scipy.io import savemat

from jaxadv.core.types import UserError
from jaxadv.data import load, preparation

CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_reads_the_prepared_directory(data_dir, records, split):
    builder = tfds.builder("cifar10", data_dir=data_dir)
    assert builder.info.full_name == "cifar10/3.0.2"
    assert builder.info.features["label"].names == list("abcdefghij")
    examples = list(builder.as_data_source(split))
    assert len(examples) == len(records[split])
    for example in examples:
        prefix, number = example["id"].decode().split("_")
        assert (prefix, len(number)) == (split, 5)
        label, *planes = records[split][int(number)]
        assert example["label"] == label
        np.testing.assert_array_equal(
            example["image"].transpose(2, 0, 1).ravel(), np.array(planes, np.uint8)
        )


def test_tfds_has_the_checksum_of_the_official_archive():
    infos = tfds.builder_cls("cifar10").url_infos
    sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert infos[CIFAR10].checksum == sha256


def test_a_wrong_checksum_is_reported_in_one_line(archive):
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    data_dir = archive.parents[2]
    with pytest.raises(
        UserError, match=r"^[^\n]*cifar-10-binary.tar.gz has a wrong checksum[^\n]*$"
    ):
        preparation.prepare("cifar10", "", "", data_dir)
    assert not list((data_dir / "cifar10").iterdir())


def test_an_interrupted_preparation_leaves_no_prepared_directory(archive, monkeypatch):
    data_dir = archive.parents[2]

    def interrupted_read(path, folder, member):
        if member == "test_batch.bin":
            raise KeyboardInterrupt
        return read(path, folder, member)

    read = preparation._read_member
    monkeypatch.setattr(preparation, "_read_member", interrupted_read)
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare("cifar10", "", "", data_dir)
    assert not list((data_dir / "cifar10").iterdir())

    monkeypatch.setattr(preparation, "_read_member", read)
    preparation.prepare("cifar10", "", "", data_dir)
    assert (data_dir / "cifar10" / "3.0.2" / "dataset_info.json").exists()


def test_without_a_connection_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_CIFAR", "http://127.0.0.1:9/closed")
    with pytest.raises(UserError, match=r"^[^\n]*--config.data.data_dir=DIR[^\n]*:digits[^\n]*$"):
        preparation.prepare("cifar10", "", "", tmp_path / "tfds")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_reported_in_one_line(archive):
    data_dir = archive.parents[2] / "file"
    data_dir.write_text("not a directory")
    with pytest.raises(UserError, match=r"^cifar10 could not be prepared in [^\n]*$"):
        preparation.prepare("cifar10", "", "", data_dir)


GENERATOR = np.random.default_rng(0)


def load_prepared(tmp_path, name, **options):
    """Prepare a data set from its archives, and check that TFDS knows the result."""
    data_dir = str(tmp_path / "tfds")
    dataset = load(name, data_dir=data_dir, validation_fraction=0.25, **options)
    assert "tensorflow" not in sys.modules
    builder = tfds.builder(name, data_dir=data_dir)
    original = tfds.builder_cls(name.partition("/")[0])
    assert dataset.version == str(builder.version) == str(original.VERSION)
    assert builder.as_data_source("train")[0]["image"].dtype == np.uint8
    return dataset


def assert_content(dataset, train, test):
    """Check the images of both splits, in any order, by label."""
    for splits, expected in ((dataset[2:4], train), (dataset[4:5], test)):
        found = [
            (int(label), image.tobytes())
            for split in splits
            for image, label in zip(split.images, split.labels, strict=True)
        ]
        assert sorted(found) == sorted((int(label), image.tobytes()) for image, label in expected)


def test_cifar100_is_prepared_with_its_fine_labels(tmp_path, monkeypatch):
    records = GENERATOR.integers(0, 256, (2, 8, 3074), np.uint8)
    records[..., 0] %= 20
    records[..., 1] %= 100
    files = {
        "train.bin": records[0].tobytes(),
        "test.bin": records[1].tobytes(),
        "coarse_label_names.txt": "".join(f"coarse{i}\n" for i in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine{i}\n" for i in range(100)).encode(),
    }
    path = manual_folder(tmp_path) / "cifar-100-binary.tar.gz"
    write_tar(path, {f"cifar-100-binary/{name}": files[name] for name in files})
    register_archive(monkeypatch, "cifar100", path)
    dataset = load_prepared(tmp_path, "cifar100")
    assert dataset.name == dataset.source == "cifar100"
    assert dataset.class_names == tuple(f"fine{i}" for i in range(100))
    splits = [
        [(record[2:].reshape(3, 32, 32).transpose(1, 2, 0), record[1]) for record in split]
        for split in records
    ]
    assert_content(dataset, *splits)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_data_sets_in_the_format_of_mnist_are_prepared(tmp_path, monkeypatch, name):
    splits = []
    for prefix, num in (("train", 12), ("t10k", 5)):
        images = GENERATOR.integers(0, 256, (num, 28, 28), np.uint8)
        labels = (np.arange(num) % 10).astype(np.uint8)
        for content, header in ((images, 16), (labels, 8)):
            kind = "images-idx3" if header == 16 else "labels-idx1"
            path = manual_folder(tmp_path) / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(bytes(header) + content.tobytes()))
            register_archive(monkeypatch, name, path)
        splits.append(list(zip(images, labels, strict=True)))
    dataset = load_prepared(tmp_path, name)
    assert dataset.train.images.shape == (9, 28, 28, 1)
    assert dataset.class_names[0] == {"mnist": "0", "fashion_mnist": "T-shirt/top"}.get(name, "o")
    assert len(dataset.class_names) == 10
    assert_content(dataset, *splits)


def test_svhn_is_prepared(tmp_path, monkeypatch):
    splits = []
    for split, num in (("train", 12), ("test", 5)):
        images = GENERATOR.integers(0, 256, (32, 32, 3, num), np.uint8)
        labels = np.arange(num)[:, None] % 10 + 1  # 10 is the digit 0
        path = manual_folder(tmp_path) / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": labels.astype(np.uint8)})
        register_archive(monkeypatch, "svhn_cropped", path)
        splits.append(list(zip(np.moveaxis(images, -1, 0), labels[:, 0] % 10, strict=True)))
    dataset = load_prepared(tmp_path, "svhn_cropped")
    assert dataset.class_names == tuple("0123456789")
    assert_content(dataset, *splits)


def test_imagenette_is_prepared_and_needs_a_size(tmp_path, monkeypatch):
    """Its images have several sizes, and one is grayscale."""
    files = {}
    for split, name in (("train", "n01440764"), ("train", "n02102040"), ("val", "n02102040")):
        for i in range(3):
            colour = Image.fromarray(np.full((20, 30 + i, 3), 100 * (i + 1) % 256, np.uint8))
            buffer = io.BytesIO()
            (colour.convert("L") if i == 2 else colour).save(buffer, "JPEG")
            member = f"imagenette2-160/{split}/{name}/{split}{name}{i}.JPEG"
            files[member] = buffer.getvalue()
    path = manual_folder(tmp_path) / "imagenette2-160.tgz"
    write_tar(path, files)
    register_archive(monkeypatch, "imagenette", path)
    dataset = load_prepared(tmp_path, "imagenette/160px-v2", size=16)
    assert dataset.name == dataset.source == "imagenette/160px-v2"
    assert dataset.class_names[:2] == ("n01440764", "n02102040")
    assert [len(split.labels) for split in dataset[2:5]] == [4, 2, 3]
    assert dataset.train.images.shape == (4, 16, 16, 3)
    assert {*dataset.test.labels} == {1}
    colours = {tuple(image[8, 8]) for image in dataset.test.images}
    assert colours == {(100,) * 3, (200,) * 3, (44,) * 3}
    with pytest.raises(UserError, match=r"images of several sizes: set config\.data\.size"):
        load("imagenette", data_dir=str(tmp_path / "tfds"), validation_fraction=0.25)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "did you mean cifar10.*TFDS has no data set of this name"),
        ("beans", "run `tfds build beans --file_format=array_record --data_dir="),
        ("cifar10:1.0.0", r"cifar10:1\.0\.0 is not prepared in .*: use cifar10:3\.0\.2"),
        ("imagenette/15px", "imagenette has the configs full-size-v2, 320px-v2"),
        ("mnist/x", "mnist has no configs"),
    ],
)
def test_data_sets_that_cannot_be_prepared_are_reported(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        load(name, data_dir=str(tmp_path), validation_fraction=0.1)
    assert "\n" not in str(error.value)
