"""Attacks that change a few pixels: PGD-0 and Sparse-RS, on linear models with known optima."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SIZE, WEIGHTS, examples

from jaxadv.attacks import autoattack, fmn, pgd, sparse_rs
from jaxadv.attacks.sparse_rs import _exchange, _random_colours
from jaxadv.attacks.threat import THREATS, perturb

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
BINARY = np.stack([WEIGHTS[:, 0], -WEIGHTS[:, 0]], axis=1)
IMAGES, _ = examples(n=40)


def binary(key, images):
    return images.reshape(-1, SIZE) @ jnp.asarray(BINARY, jnp.float32)


LABELS = binary(None, IMAGES).argmax(axis=1)


def num_changed(images):
    return np.asarray(images != IMAGES).any(axis=3).sum(axis=(1, 2))


def best_margins(num_pixels):
    """The largest margin with some pixels changed, whose channels take their best value."""
    sign = np.where(np.asarray(LABELS) == 0, -1, 1)[:, None]
    weights = sign * (BINARY[:, 0] - BINARY[:, 1])
    flat = np.asarray(IMAGES, np.float64).reshape(len(IMAGES), SIZE)
    target = (weights > 0).astype(float)
    gains = (weights * (target - flat)).reshape(len(IMAGES), 16, 3).sum(axis=2)
    return (weights * flat).sum(axis=1) + np.sort(gains, axis=1)[:, ::-1][:, :num_pixels].sum(
        axis=1
    )


def test_the_projection_is_the_nearest_point_with_so_many_pixels():
    images = jax.random.uniform(jax.random.key(0), (3, 2, 3, 2))
    deltas = jax.random.normal(jax.random.key(1), images.shape)
    for count in (0, 1, 3):
        found = THREATS["l0"].project(images, deltas, jnp.float32(count + 0.5))
        assert (THREATS["l0"].length(found) <= count).all()
        clipped = np.clip(images + deltas, 0, 1) - images
        for i in range(3):
            nearest = min(
                ((deltas[i] - clipped[i] * mask) ** 2).sum()
                for pixels in combinations(range(6), count)
                for mask in [np.isin(np.arange(6), pixels).reshape(2, 3, 1)]
            )
            distance = ((deltas[i] - found[i]) ** 2).sum()
            assert distance == pytest.approx(float(nearest), rel=1e-5)
        perturbed = perturb(THREATS["l0"], images, deltas, jnp.float32(count))
        assert ((perturbed >= 0) & (perturbed <= 1)).all()


def test_random_starts_change_as_many_pixels_as_allowed():
    keys = jax.random.split(KEY, 50)
    starts = jax.vmap(lambda key: THREATS["l0"].random_start(key, (4, 4, 3), jnp.float32(5)))(keys)
    np.testing.assert_array_equal(THREATS["l0"].length(starts).ravel(), 5)
    assert (np.asarray(starts != 0).any(axis=3).mean(axis=0) > 0.1).all()


@pytest.mark.parametrize("num_pixels", [1, 3])
def test_pgd_0_finds_the_optimum_of_a_linear_model(num_pixels):
    """On most images: it keeps the pixels that move farthest, not those that gain most."""
    options = {"eps": num_pixels, "norm": "l0", "loss": "margin", "random_start": False}
    found = pgd(KEY, binary, IMAGES, LABELS, step_size=100.0, num_steps=20, **options)
    assert (num_changed(found) <= num_pixels).all()
    logits = np.asarray(binary(None, found), np.float64)
    rows = np.arange(len(LABELS))
    margins = logits[rows, 1 - LABELS] - logits[rows, LABELS]
    best = best_margins(num_pixels)
    assert (margins <= best + 1e-4).all()
    assert (margins >= best - 1e-4).mean() > 0.8
    assert (best - margins).max() < 0.3


def test_fmn_changes_as_few_pixels_as_suffice():
    margins = np.stack([best_margins(count) for count in range(17)])
    exact = (margins > 1e-3).argmax(axis=0)
    found = fmn(KEY, binary, IMAGES, LABELS, norm="l0", num_steps=300)
    distance = np.asarray(found.extras.distance)
    np.testing.assert_array_equal(distance, num_changed(found.images))
    assert (distance >= exact).all()
    assert (distance == exact).mean() > 0.8
    assert (distance - exact).max() <= 1
    assert exact.max() == 3
    wrong = np.asarray(binary(None, found.images).argmax(axis=1) != LABELS)
    assert wrong.all()


def test_sparse_rs_fools_where_a_few_pixels_suffice():
    possible = best_margins(1) > 0.1
    assert 5 < possible.sum() < 40
    found = sparse_rs(KEY, binary, IMAGES, LABELS, eps=1, num_queries=1000)
    success = np.asarray(found.success)
    assert not success[~(best_margins(1) > -0.1)].any()
    assert success[possible].mean() > 0.9
    changed = np.asarray(found.images != IMAGES)
    assert (num_changed(found.images) <= 1).all()
    assert np.isin(np.asarray(found.images)[changed], [0, 1]).all()
    wrong = np.asarray(binary(None, found.images).argmax(axis=1) != LABELS)
    np.testing.assert_array_equal(success, wrong)
    start = sparse_rs(KEY, binary, IMAGES, LABELS, eps=1, num_queries=2)
    assert start.success.sum() < success.sum() / 2


def test_margins_never_decrease_after_the_start():
    """The start replaces the clean image, whatever its margin."""
    margins = [
        sparse_rs(KEY, LOGITS_FN, IMAGES, LABELS, eps=2, num_queries=n).margins
        for n in (1, 2, 5, 20, 60)
    ]
    changes = np.diff(margins, axis=0)
    assert (changes[0] < 0).any()
    assert (changes[1:] >= 0).all()
    assert (changes[1:] > 0).any()


@pytest.mark.parametrize(("step", "exchanged"), [(2, 5), (51, 5), (52, 2), (8002, 1)])
def test_fewer_pixels_are_exchanged_after_many_proposals(step, exchanged):
    """Of 10 changed pixels on a model that prefers each proposal, with share 1: 10 / divisor."""

    def model(key, images):
        return jnp.stack([jnp.full(len(images), 1.0), jnp.zeros(len(images))], axis=1)

    before, after = (
        sparse_rs(KEY, model, IMAGES[:4], LABELS[:4] * 0, eps=10, num_queries=n, share=1.0)
        for n in (step, step + 1)
    )
    assert (before.steps == step).all()
    proposed = np.asarray(after.extras.proposed) & ~np.asarray(before.extras.pixels)
    np.testing.assert_array_equal(proposed.sum(axis=(1, 2)), exchanged)


def test_a_single_pixel_gets_another_colour():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 6, 2)), jnp.float32)
    for key in jax.random.split(KEY, 20):
        colours = _random_colours(key, image, jnp.array(True))
        assert np.isin(colours, [0, 1]).all()
        assert (np.asarray(colours) != image).any(axis=2).all()
    free = _random_colours(KEY, image, jnp.array(False))
    assert 3 < (free == image).all(axis=2).sum() < 15


def test_all_pixels_may_change():
    """Only a white image fools this model, which has no unchanged pixel to exchange."""

    def model(key, images):
        gap = images.sum((1, 2, 3)) - images[0].size + 0.5
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    images = jnp.full((30, 1, 1, 3), 0.5)
    found = sparse_rs(KEY, model, images, jnp.zeros(30, int), eps=1, num_queries=100)
    assert found.success.all()


def test_pixels_are_exchanged_for_others():
    pixels = jnp.zeros((4, 5), bool).at[0].set(True)
    for key in jax.random.split(KEY, 10):
        old, new = _exchange(key, pixels, num_old=jnp.float32(2), num_new=jnp.float32(3))
        assert old.sum() == 2
        assert new.sum() == 3
        assert not (old & ~pixels).any()
        assert not (new & pixels).any()


def test_a_custom_autoattack_in_l0():
    attacks = {"sparse_rs": {"attack": "sparse_rs", "num_queries": 200}}
    options = {"eps": 3.0, "norm": "l0", "batch_size": 64}
    found = autoattack(KEY, binary, IMAGES, LABELS, version="custom", attacks=attacks, **options)
    alone = sparse_rs(KEY, binary, IMAGES, LABELS, eps=3, num_queries=200)
    assert abs((found.broken_by > 0).sum() - int(alone.success.sum())) <= 6
    assert (num_changed(found.images) <= 3).all()
    with pytest.raises(ValueError, match="norm is 'l0': it must be one of linf, l2, l1"):
        autoattack(KEY, binary, IMAGES, LABELS, **options)
    with pytest.raises(ValueError, match=r"attacks\.fab\.norm is 'l0'"):
        autoattack(
            KEY, binary, IMAGES, LABELS, version="custom", attacks={"fab": {"attack": "fab"}},
            **options,
        )  # fmt: skip
