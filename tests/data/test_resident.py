import jax
import numpy as np
import pytest

from jaxadv.core.types import HostBatch
from jaxadv.data.resident import make_resident


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_are_images_and_labels(dtype):
    images = np.random.default_rng(0).integers(0, 2, (5, 4, 3, 2)).astype(dtype)
    split = HostBatch(images, np.arange(5, dtype=np.int32))
    rows = np.array([3, 0, 3])
    taken_images, taken_labels = jax.jit(lambda split, rows: split.take(rows))(
        make_resident(split), rows
    )
    np.testing.assert_array_equal(taken_images, images[rows])
    np.testing.assert_array_equal(taken_labels, rows)
    assert taken_images.dtype == dtype
