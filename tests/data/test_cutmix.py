import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.core.rng import example_keys
from jaxadv.data.cutmix import cutmix

NUM, SIDE = 2000, 16


@pytest.fixture(scope="module")
def mixed():
    """Constant images whose value is their number."""
    keys = example_keys(jax.random.key(0), jnp.arange(NUM))
    images = jnp.broadcast_to(jnp.arange(NUM, dtype=jnp.float32)[:, None, None, None],
                              (NUM, SIDE, SIDE, 1))  # fmt: skip
    labels = jnp.arange(NUM, dtype=jnp.int32)
    found = jax.jit(cutmix, static_argnames="probability")(
        keys, images, labels, jnp.eye(NUM), probability=0.5
    )
    return jax.tree.map(np.asarray, found)


def shares(images):
    """Return the share of each image that comes from its partner."""
    return (images != np.arange(NUM)[:, None, None, None]).mean((1, 2, 3))


def test_partners_exchange_a_box(mixed):
    images, _, _ = mixed
    for first, second in zip(range(NUM // 2), range(NUM // 2, NUM), strict=True):
        pair = images[[first, second], ..., 0]
        assert set(np.unique(pair)) <= {first, second}
        changed = pair[0] == second
        np.testing.assert_array_equal(changed, pair[1] == first)
        rows, columns = changed.any(1), changed.any(0)
        np.testing.assert_array_equal(changed, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)  # one piece


def test_targets_are_mixed_by_area(mixed):
    images, labels, targets = mixed
    share = shares(images)
    partner = (np.arange(NUM) + NUM // 2) % NUM
    np.testing.assert_allclose(targets[np.arange(NUM), partner], share, atol=1e-6)
    np.testing.assert_allclose(targets[np.arange(NUM), np.arange(NUM)], 1 - share, atol=1e-6)
    np.testing.assert_array_equal(labels, np.where(share > 0.5, partner, np.arange(NUM)))


def test_the_probability_is_of_a_pair(mixed):
    share = shares(mixed[0])[: NUM // 2]
    assert 0.44 < (share > 0).mean() < 0.53  # half, less boxes without a pixel
    assert share.max() > 0.5
    # The mean of (s - s^2 / 4)^2 over a uniform s^2, for boxes of side s cut off at the border.
    assert share[share > 0].mean() == pytest.approx(0.32, abs=0.03)


def test_a_pair_depends_on_its_own_key_only(mixed):
    ids = np.array([7, 8, NUM // 2 + 7, NUM // 2 + 8])
    keys = example_keys(jax.random.key(0), jnp.asarray(ids))
    images = jnp.broadcast_to(jnp.float32(ids)[:, None, None, None], (4, SIDE, SIDE, 1))
    found, _, _ = cutmix(keys, images, jnp.arange(4), jnp.eye(4), 0.5)
    np.testing.assert_array_equal(found, mixed[0][ids])
