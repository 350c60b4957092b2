import numpy as np
import pytest

from jaxadv.data.datasets import endless_order, epoch_order


def test_epochs_have_different_orders():
    orders = [epoch_order(0, "shuffle", epoch, 100) for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert sorted(orders[2]) == list(range(100))


@pytest.mark.parametrize("size", [1, 7, 25])
def test_slices_of_the_endless_order_agree_with_the_whole(size):
    whole = endless_order(3, "synthetic", 0, 25, 10)
    assert sorted(whole[:10]) == sorted(whole[10:20]) == list(range(10))
    slices = [endless_order(3, "synthetic", i, min(size, 25 - i), 10) for i in range(0, 25, size)]
    np.testing.assert_array_equal(np.concatenate(slices), whole)
    assert len(endless_order(3, "synthetic", 5, 0, 0)) == 0
