"""The choice between images in memory and streamed images."""

import jax
import numpy as np
import pytest
from image_folders import write_classes

from jaxadv.core.types import HostBatch
from jaxadv.data import StoredExamples, datasets, in_memory, load


class Device:
    """A device with some memory."""

    def __init__(self, memory: int) -> None:
        self.memory = memory

    def memory_stats(self):
        return {"bytes_limit": self.memory}


def test_half_of_the_memory_of_a_device_is_used(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(1000)])
    assert datasets._fits_in_memory(500)
    assert not datasets._fits_in_memory(501)


def test_cpu_devices_share_the_memory_of_the_machine(monkeypatch):
    sizes = {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 60}
    monkeypatch.setattr(datasets.os, "sysconf", sizes.get)
    assert jax.local_device_count() == 2
    assert datasets._fits_in_memory(1000)  # a third is 2000
    assert not datasets._fits_in_memory(1001)


def test_the_machine_holds_two_copies_while_a_split_is_shuffled(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(10_000)])
    sizes = {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 60}
    monkeypatch.setattr(datasets.os, "sysconf", sizes.get)
    assert datasets._fits_in_memory(1500)
    assert not datasets._fits_in_memory(1501)


def test_a_cache_that_does_not_fit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_classes(tmp_path / "pets", 10)
    source = f"folder:{tmp_path / 'pets'}"
    load(source, validation_fraction=0.1)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(1000)])
    monkeypatch.setattr(datasets, "read_cache", None)
    assert not isinstance(load(source, validation_fraction=0.1).train, HostBatch)


@pytest.mark.parametrize("cached", [False, True])
def test_what_does_not_fit_is_streamed(tmp_path, monkeypatch, capsys, cached):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split in ("train", "test"):
        write_classes(tmp_path / "pets" / split, 10)
    source = f"folder:{tmp_path / 'pets'}"
    if cached:
        load(source, validation_fraction=0.1)
    num_bytes = 20 * 8 * 8 * 3
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(2 * num_bytes)])
    assert isinstance(load(source, validation_fraction=0.1).train, HostBatch)
    assert capsys.readouterr().out == ""

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(2 * num_bytes - 2)])
    dataset = load(source, validation_fraction=0.1)
    for split in dataset[2:5]:
        assert isinstance(split, StoredExamples)
        assert not isinstance(split, HostBatch)
    assert capsys.readouterr().out.startswith("The 20 training images of pets take 0.0 GB, too")
    decoded = load(source, validation_fraction=0.1, streaming=False)
    for first, second in zip(decoded[2:5], dataset[2:5], strict=True):
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.images, in_memory(second).images)


def test_the_digits_can_be_streamed_and_resized():
    decoded = load("digits", validation_fraction=0.1, size=8, channels=1)
    assert decoded.train.images.shape == (1293, 8, 8, 1)
    streamed = load("digits", validation_fraction=0.1, size=8, channels=1, streaming=True)
    assert streamed.train.image_shape == (8, 8, 1)
    for first, second in zip(decoded[2:5], streamed[2:5], strict=True):
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.images, in_memory(second).images)
