"""The Square attack: its changes, compared with loops as in the reference, and its results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import examples, flat, length

from jaxadv.attacks import random_search, square
from jaxadv.attacks.square import (
    _bump,
    _bump_change,
    _bump_start,
    _covered_share,
    _linf_change,
    _linf_start,
)

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
EPS = jnp.float32(0.1)
RADIUS = EPS[None, None, None]  # of one image
SHAPE = (10, 12, 3)


def rectangles(height, width, order):
    """The sum of growing rectangles as in AutoAttack, one slice after another."""
    bump_sum = np.zeros((height, width))
    row, column = height // 2, width // 2
    for number in range(max(height // 2, width // 2) + 1):
        rows = slice(max(row - number, 0), min(row + number + 1, height))
        columns = slice(max(column - number, 0), min(column + number + 1, width))
        bump_sum[rows, columns] += 1 / (number + 1) ** {2: 2, 1: 4}[order]
    return bump_sum / np.linalg.norm(bump_sum.ravel(), order)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("side", [3, 5, 6, 9])
@pytest.mark.parametrize("order", [2, 1])
def test_bumps_are_those_of_the_papers(side, transposed, order):
    halves = [rectangles(side // 2, side, order), -rectangles(side - side // 2, side, order)]
    expected = np.concatenate(halves) / 2 ** (1 / order)
    down, across = jnp.arange(10)[:, None, None] - 1, jnp.arange(12)[None, :, None] - 3
    bump = np.array(_bump(down, across, jnp.int32(side), jnp.array(transposed), order))[..., 0]
    inside = bump[1 : 1 + side, 3 : 3 + side].copy()
    np.testing.assert_allclose(inside, expected.T if transposed else expected, atol=1e-6)
    bump[1 : 1 + side, 3 : 3 + side] = 0
    assert not bump.any()


def test_the_linf_start_is_vertical_stripes():
    start = np.asarray(_linf_start(KEY, RADIUS, shape=SHAPE))
    np.testing.assert_allclose(np.abs(start), 0.1)
    assert (start == start[0]).all()
    assert 5 < (start[0] > 0).sum() < 31


@pytest.mark.parametrize(("share", "side"), [(0.8, 10), (0.3, 6), (0.01, 1), (0.0, 1)])
def test_an_linf_change_is_one_square_of_equal_sign(share, side):
    """The side is the square root of the share of 120 pixels, at most the height of 10."""
    corners = set()
    for key in jax.random.split(KEY, 20):
        delta = np.asarray(_linf_change(key, RADIUS, jnp.zeros(SHAPE), share=jnp.float32(share)))
        rows, columns = (np.flatnonzero(delta.any(axis=axes)) for axes in ((1, 2), (0, 2)))
        assert len(rows) == len(columns) == side
        window = delta[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_allclose(np.abs(window), 0.1)
        assert (window == window[0, 0]).all()
        corners.add((rows[0], columns[0]))
    assert len(corners) > 2


@pytest.mark.parametrize(("share", "rows"), [(0.8, 32), (0.3, 12), (0.01, 1)])
def test_in_a_column_a_square_is_an_interval_of_its_area(share, rows):
    delta = jnp.zeros((40, 1, 2))
    changed = np.asarray(_linf_change(KEY, RADIUS, delta, share=jnp.float32(share)))
    places = np.flatnonzero(changed.any(axis=(1, 2)))
    np.testing.assert_array_equal(places, places[0] + np.arange(rows))


@pytest.mark.parametrize(
    ("square", "halvings"),
    [(1, 0), (10, 0), (11, 1), (50, 1), (51, 2), (500, 3), (501, 4), (8000, 8), (8001, 9)],
)
def test_squares_become_smaller(square, halvings):
    covered = _covered_share(jnp.float32(0.8), jnp.int32(square))
    assert covered == pytest.approx(0.8 / 2**halvings)


def test_the_l2_start_is_a_grid_of_bumps_on_the_sphere():
    start = np.asarray(_bump_start(KEY, RADIUS, shape=SHAPE, order=2))
    assert np.linalg.norm(start) == pytest.approx(0.1, rel=1e-5)
    tiles = start[:, 1:11].reshape(5, 2, 5, 2, 3)  # 5 x 5 tiles of side 2 in the middle
    norms = np.sqrt((tiles**2).sum(axis=(1, 3)))
    np.testing.assert_allclose(norms, norms[0, 0, 0], rtol=1e-5)
    assert not start[:, [0, 11]].any()


def test_an_l2_change_moves_the_norm_of_one_square_into_another():
    delta = _bump_start(KEY, RADIUS, shape=SHAPE, order=2)
    for key in jax.random.split(KEY, 10):
        changed = np.asarray(_bump_change(key, RADIUS, delta, share=jnp.float32(0.05), order=2))
        assert np.linalg.norm(changed) == pytest.approx(0.1, rel=1e-5)
        different = ~np.isclose(changed, delta, atol=1e-6).all(axis=2)
        assert 9 <= different.sum() <= 18 + 4  # two squares of side 3
        kept = np.asarray(delta)[~different]
        np.testing.assert_allclose(changed[~different], kept, atol=1e-6)


def test_the_l1_start_is_a_grid_of_bumps_of_length_1():
    start = np.asarray(_bump_start(KEY, RADIUS, shape=SHAPE, order=1))
    lengths = np.abs(start[:, 1:11].reshape(5, 2, 5, 2, 3)).sum(axis=(1, 3))
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_an_l1_change_moves_the_length_of_one_square_into_another():
    """Per channel the new square has `channels` times the length of both; the rest is kept."""
    delta = EPS / 75 * _bump_start(KEY, RADIUS, shape=SHAPE, order=1)
    for key in jax.random.split(KEY, 10):
        changed = np.asarray(
            _bump_change(key, RADIUS, delta, share=jnp.float32(0.05), order=1), np.float64
        )
        different = ~np.isclose(changed, delta, atol=1e-8).all(axis=2)
        rows, columns = (np.flatnonzero(different.any(axis=axis)) for axis in (1, 0))
        assert 3 <= len(rows) <= 6
        assert 3 <= len(columns) <= 6
        removed = np.abs(np.asarray(delta)[different]).sum(axis=0)
        added = np.abs(changed[different]).sum(axis=0)
        np.testing.assert_allclose(added, 3 * removed, rtol=1e-4)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.5), ("l1", 24.0)])
def test_beats_random_search_on_a_network(digits_net, norm, eps):
    images, labels = digits_net.images, digits_net.labels
    found = square(KEY, *digits_net, eps=eps, num_queries=100, norm=norm)
    floor = random_search(KEY, *digits_net, eps=eps, num_queries=100, norm=norm)
    assert found.success.sum() > floor.success.sum() + 3
    assert (found.margins >= floor.margins)[~floor.success].mean() > 0.9
    wrong = digits_net.logits_fn(None, found.images).argmax(axis=1) != labels
    np.testing.assert_array_equal(found.success, wrong)
    assert (length(found.images - images, norm) <= eps * (1 + 1e-5)).all()


def test_margins_never_decrease_with_the_budget(digits_net):
    margins = [
        square(KEY, *digits_net, eps=0.05, num_queries=n).margins for n in (1, 2, 10, 50, 100)
    ]
    assert (np.diff(margins, axis=0) >= 0).all()


def test_linf_perturbations_stay_at_the_corners_of_the_ball():
    """Far from the faces of the box every pixel changes by +-eps."""
    images, _ = examples(n=8, low=0.4, high=0.6)
    found = square(
        KEY, lambda key, x: jnp.stack([x.sum((1, 2, 3)), -(x**2).sum((1, 2, 3))], 1), images,
        jnp.zeros(8, jnp.int32), eps=0.1, num_queries=40,
    )  # fmt: skip
    assert not found.success.any()
    moved = np.abs(flat(found.images - images))
    np.testing.assert_allclose(moved, 0.1, atol=1e-6)
