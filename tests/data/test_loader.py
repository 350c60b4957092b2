"""Batches that worker processes read."""

from pathlib import Path

import numpy as np
import pytest
from stored_examples import ArrayExamples

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import loader
from jaxadv.data.datasets import epoch_order
from jaxadv.data.loader import BatchRows, streamed_batches

ROWS = BatchRows(seed=3, num_examples=50, batch_size=8, batches_per_epoch=5, num_epochs=2)


@pytest.fixture
def examples():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 4, 6, 1), np.uint8)
    return ArrayExamples(HostBatch(images, np.arange(50, dtype=np.int32)))


def test_an_epoch_is_its_order_cut_into_batches():
    assert len(ROWS) == 10
    for epoch in range(2):
        rows = np.concatenate([ROWS[5 * epoch + step] for step in range(5)])
        np.testing.assert_array_equal(rows, epoch_order(3, "shuffle", epoch, 50)[:40])


@pytest.mark.slow  # starts processes
def test_batches_come_in_order_from_any_step_with_the_images_of_this_process(examples):
    local = np.array([1, 2, 5])
    with streamed_batches(examples, ROWS, 3, local) as batches:
        read = list(batches)
    assert len(read) == 7
    for step, batch in enumerate(read, start=3):
        np.testing.assert_array_equal(batch.labels, ROWS[step])
        expected = np.zeros((8, 4, 6, 1), np.uint8)
        expected[local] = examples.batch.images[ROWS[step]][local]
        np.testing.assert_array_equal(batch.images, expected)


def test_batches_that_exceed_the_shared_memory_are_refused(examples, monkeypatch):
    monkeypatch.setattr(loader, "_SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with (
        pytest.raises(UserError, match=r"has 0 MB free, but streaming needs 0 MB.*--shm-size"),
        streamed_batches(examples, ROWS, 0, np.arange(8)),
    ):
        pass
