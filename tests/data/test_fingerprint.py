import numpy as np
import pytest
from stored_examples import ArrayExamples

from jaxadv.core.types import HostBatch
from jaxadv.data import Dataset
from jaxadv.data.fingerprint import fingerprint


def make_dataset(num_train=90, images=None, labels=None):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (140, 4, 4, 1), np.uint8) if images is None else images
    labels = generator.integers(0, 3, 140).astype(np.int32) if labels is None else labels
    split = [slice(num_train), slice(num_train, 100), slice(100, 140)]
    batches = [HostBatch(images[part], labels[part]) for part in split]
    return Dataset("scans", ("a", "b", "c"), *batches)


def test_it_does_not_depend_on_the_validation_fraction_nor_on_streaming():
    dataset = make_dataset()
    expected = fingerprint(dataset)
    assert len(expected) == 64
    assert fingerprint(make_dataset(num_train=50)) == expected
    stored = {name: ArrayExamples(getattr(dataset, name)) for name in ("train", "validation")}
    assert fingerprint(dataset._replace(**stored)) == expected


@pytest.mark.parametrize("changed", [0, 95, 139])  # of the train, validation and test split
def test_it_depends_on_every_label_and_on_the_images(changed):
    dataset = make_dataset()
    images = np.concatenate([split.images for split in dataset[2:5]])
    labels = np.concatenate([split.labels for split in dataset[2:5]])
    images[changed, 0, 0, 0] ^= 1
    assert fingerprint(make_dataset(images=images)) != fingerprint(dataset)
    labels[changed] = (labels[changed] + 1) % 3
    assert fingerprint(make_dataset(labels=labels)) != fingerprint(dataset)


def test_of_many_images_some_are_read():
    class Counted(ArrayExamples):
        def take(self, rows):
            read.append(rows)
            return super().take(rows)

    read: list[np.ndarray] = []
    images, labels = np.zeros((5000, 1, 1, 1), np.uint8), np.arange(5000, dtype=np.int32)
    large = Counted(HostBatch(images, labels))
    few = HostBatch(images[:2], labels[:2])
    fingerprint(Dataset("scans", ("a",), large, few, few))
    rows = np.concatenate(read)
    assert rows[0] == 0
    assert len(np.unique(rows)) == len(rows) >= 1022
    assert np.diff(rows).max() <= 5
