import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import get_all_url_infos

from jaxadv.core.types import UserError
from jaxadv.data import cifar10


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
    infos = get_all_url_infos()
    sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert infos[cifar10.URL].checksum == sha256


def test_a_wrong_checksum_is_reported_in_one_line(archive):
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    data_dir = archive.parents[2]
    with pytest.raises(
        UserError, match=r"^[^\n]*cifar-10-binary.tar.gz has a wrong checksum[^\n]*$"
    ):
        cifar10.prepare(data_dir)
    assert not list((data_dir / "cifar10").iterdir())


def test_an_interrupted_preparation_leaves_no_prepared_directory(archive, monkeypatch):
    data_dir = archive.parents[2]

    def interrupted_read(path, member):
        if member == "test_batch.bin":
            raise KeyboardInterrupt
        return read(path, member)

    read = cifar10._read
    monkeypatch.setattr(cifar10, "_read", interrupted_read)
    with pytest.raises(KeyboardInterrupt):
        cifar10.prepare(data_dir)
    assert not list((data_dir / "cifar10").iterdir())

    monkeypatch.setattr(cifar10, "_read", read)
    cifar10.prepare(data_dir)
    assert (data_dir / "cifar10" / "3.0.2" / "dataset_info.json").exists()


def test_without_a_connection_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/closed")
    with pytest.raises(UserError, match=r"^[^\n]*--config.data.data_dir=DIR[^\n]*:digits[^\n]*$"):
        cifar10.prepare(tmp_path / "tfds")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_reported_in_one_line(archive):
    data_dir = archive.parents[2] / "file"
    data_dir.write_text("not a directory")
    with pytest.raises(UserError, match=r"^CIFAR-10 could not be prepared in [^\n]*$"):
        cifar10.prepare(data_dir)
