"""Attacks on inputs with other bounds, a mask or another number of axes."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, FUNCTIONS, NORMS, images_of, patch_stages
from linear_model import DUAL_ORDERS, SIZE, WEIGHTS, examples, flat, length, linear

from jaxadv.attacks import (
    ATTACKS,
    BlackBox,
    apgd,
    autoattack,
    fgsm,
    fmn,
    for_inputs,
    n_fgsm,
    pgd,
    sparse_rs,
    square,
)
from jaxadv.attacks.for_inputs import image_places

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
N = 4
IMAGES, LABELS = examples(n=N, low=0.2, high=0.8)
VECTORS = IMAGES.reshape(N, SIZE)
MASK = np.random.default_rng(3).random(SIZE) < 0.4
PAIRS = [(name, norm) for name in CALLS for norm in NORMS[name]]
# The bumps of Square in L2 and L1 reach over several columns, which a vector does not have.
WITHOUT_GEOMETRY = [pair for pair in PAIRS if pair not in [("square", "l2"), ("square", "l1")]]


def logits_fn(key, vectors):
    return vectors.reshape(len(vectors), SIZE) @ jnp.asarray(WEIGHTS, vectors.dtype)


def run_for_inputs(name, inputs, norm, model=logits_fn, bounds=(0.0, 1.0), mask=None):
    norms = {} if name == "n_fgsm" else {"norm": norm}
    arguments = {**CALLS[name], **norms, **({"eps": 3} if norm == "l0" else {})}
    attack = for_inputs(FUNCTIONS[name], bounds=bounds, mask=mask)
    return images_of(attack(KEY, model, inputs, LABELS, **arguments))


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_vectors_are_columns_of_pixels_and_bounds_scale_them(name, norm):
    column = run_for_inputs(name, VECTORS[..., None, None], norm).reshape(N, SIZE)
    np.testing.assert_array_equal(run_for_inputs(name, VECTORS, norm), column)

    def of_scaled(key, vectors):
        return logits_fn(key, (vectors + 2) / 8)

    scaled = run_for_inputs(name, 8 * VECTORS - 2, norm, of_scaled, bounds=(-2.0, 6.0))
    # A sign may differ where rounding decides it, as that of a gradient that is almost 0.
    agree = np.isclose(scaled, 8 * column - 2, atol=1e-4)
    assert agree.mean() > 0.95
    assert (scaled >= -2).all()
    assert (scaled <= 6).all()


@pytest.mark.parametrize(("name", "norm"), WITHOUT_GEOMETRY)
def test_under_a_mask_the_other_values_are_constants_of_the_model(name, norm):
    """As for the model of the free values alone, with what the others contribute as its bias."""
    masked = run_for_inputs(name, VECTORS, norm, mask=MASK)
    np.testing.assert_array_equal(masked[:, ~MASK], VECTORS[:, ~MASK])
    constant = jnp.where(MASK, 0, VECTORS)

    def of_free(key, free):
        full = constant.at[:, np.flatnonzero(MASK)].set(free.reshape(N, -1))
        return logits_fn(key, full)

    alone = run_for_inputs(name, VECTORS[:, MASK], norm, of_free)
    np.testing.assert_allclose(masked[:, MASK], alone, atol=1e-6)
    assert (masked != VECTORS).any() or name == "nes_label_only"  # too few queries


@pytest.mark.parametrize("norm", DUAL_ORDERS)
def test_distances_under_a_mask_are_those_of_the_free_weights(norm):
    weights = WEIGHTS[:, :2] / 4
    weights[MASK] *= 4  # so that the free values suffice
    labels = np.asarray(VECTORS @ weights).argmax(axis=1)
    gap = weights[:, 0] - weights[:, 1]
    margins = np.abs(np.asarray(VECTORS, np.float64) @ gap)
    expected = margins / np.linalg.norm(gap[MASK], DUAL_ORDERS[norm])
    found = for_inputs(fmn, bounds=(-5.0, 5.0), mask=MASK)(
        KEY, linear(weights), VECTORS, jnp.asarray(labels, jnp.int32), norm=norm, num_steps=500
    )
    assert found.success.all()
    moved = np.asarray(found.images - VECTORS)
    assert (moved[:, ~MASK] == 0).all()
    np.testing.assert_allclose(10 * found.extras.distance, length(moved, norm), rtol=1e-4)
    np.testing.assert_allclose(length(moved, norm), expected, rtol=0.02)


def test_values_outside_of_the_mask_may_lie_outside_of_the_bounds():
    inputs = VECTORS.at[:, 0].set(37.0)
    mask = np.arange(SIZE) > 0
    adversarial = for_inputs(fgsm, mask=mask)(KEY, logits_fn, inputs, LABELS, eps=0.1)
    np.testing.assert_array_equal(adversarial[:, 0], 37.0)
    np.testing.assert_allclose(np.abs(adversarial - inputs)[:, 1:], 0.1, atol=1e-6)


def test_each_feature_may_have_its_own_bounds_and_radius():
    low, high = np.arange(SIZE) - 10.0, np.arange(SIZE) * 2.0 + 1
    inputs = jnp.asarray(low + (high - low) * np.asarray(VECTORS), jnp.float32)
    eps = jnp.linspace(0, 0.1, SIZE)[None]
    attack = for_inputs(fgsm, bounds=(low, high))
    adversarial = attack(KEY, logits_fn, inputs, LABELS, eps=eps, loss="margin")
    moved = np.abs(np.asarray(adversarial - inputs)) / (high - low)
    np.testing.assert_allclose(moved, np.broadcast_to(eps, moved.shape), atol=1e-5)


def test_in_l0_a_place_counts_once_with_its_channels():
    """In audio of two channels a place is a moment, in a vector a value."""
    audio = VECTORS.reshape(N, SIZE // 2, 2)
    found = for_inputs(sparse_rs)(KEY, logits_fn, audio, LABELS, eps=3, num_queries=9)
    moved = np.asarray(found.images != audio)
    assert moved.any(axis=2).sum(axis=1).max() == 3
    assert moved.sum(axis=(1, 2)).max() > 3
    flat_found = for_inputs(sparse_rs)(KEY, logits_fn, VECTORS, LABELS, eps=3, num_queries=9)
    assert np.asarray(flat_found.images != VECTORS).sum(axis=1).max() == 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_changes_squares_of_a_masked_rectangle(norm):
    """As for the model that pastes a small image into the large one."""
    mask = np.zeros((4, 4, 1), bool)
    mask[1:4, 0:3] = True

    def pasted(key, small):
        return logits_fn(key, IMAGES.at[:, 1:4, 0:3].set(small))

    arguments = {"eps": 0.1, "num_queries": 12, "norm": norm}
    masked = for_inputs(square, mask=mask)(KEY, logits_fn, IMAGES, LABELS, **arguments)
    small = square(KEY, pasted, IMAGES[:, 1:4, 0:3], LABELS, **arguments)
    np.testing.assert_array_equal(masked.images, IMAGES.at[:, 1:4, 0:3].set(small.images))
    np.testing.assert_array_equal(masked.queries, small.queries)


@pytest.mark.parametrize(
    ("shape", "mask", "places"),
    [
        ((3,), None, [[[0]], [[1]], [[2]]]),
        ((2, 3), None, [[[0, 1, 2]], [[3, 4, 5]]]),
        ((2, 1, 2, 2), None, [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
        ((4,), [True, False, False, True], [[[0]], [[3]]]),
        ((2, 2, 1), [[[True], [False]], [[False], [True]]], [[[0]], [[3]]]),  # two pixels
        ((2, 2, 1), [[[True], [False]], [[True], [False]]], [[[0]], [[2]]]),  # a rectangle
        ((2, 3, 1), [[True], [False], [True]], [[[0]], [[2]], [[3]], [[5]]]),
        ((2, 2), [[True, False], [True, True]], [[[0]], [[2]], [[3]]]),  # single channels
    ],
)
def test_values_are_arranged_as_images(shape, mask, places):
    found = image_places(shape, None if mask is None else np.array(mask))
    assert found.tolist() == places


def test_a_search_resumes_and_starts_in_the_units_of_the_inputs():
    attack = for_inputs(apgd, bounds=(-2.0, 6.0))
    inputs, arguments = 8 * VECTORS - 2, {"eps": 0.01, "num_steps": 6}
    part = attack(KEY, logits_fn, inputs, LABELS, **arguments, num_queries=3)
    resumed = attack(KEY, logits_fn, inputs, LABELS, **arguments, resume=part)
    whole = attack(KEY, logits_fn, inputs, LABELS, **arguments)
    np.testing.assert_allclose(whole.images, resumed.images, atol=1e-5)
    np.testing.assert_array_equal(whole.queries, resumed.queries)
    hop_skip_jump = for_inputs(FUNCTIONS["hop_skip_jump"], bounds=(-2.0, 6.0))
    starts = -2 + 8 * VECTORS[::-1]
    found = hop_skip_jump(
        KEY, logits_fn, inputs, LABELS, starts=starts, num_queries=2, initial_samples=2
    )
    assert found.success.any()


def test_a_black_box_gets_the_inputs():
    seen = []

    def predict(vectors):
        seen.append(vectors)
        return np.asarray(jax.nn.softmax(logits_fn(None, jnp.asarray(vectors))))

    attack = for_inputs(square, bounds=(0.0, 2.0))
    found = attack(KEY, BlackBox(predict, 5), 2 * VECTORS, LABELS, eps=0.05, num_queries=3)
    traced = attack(KEY, logits_fn, 2 * VECTORS, LABELS, eps=0.05, num_queries=3)
    assert seen[0].shape[1:] == (SIZE,)
    np.testing.assert_allclose(seen[0], (2 * VECTORS)[: len(seen[0])], atol=1e-6)
    np.testing.assert_array_equal(found.success, traced.success)
    masked = for_inputs(square, mask=MASK)
    with pytest.raises(ValueError, match="BlackBox, which takes no mask"):
        masked(KEY, BlackBox(predict, 5), VECTORS, LABELS, eps=0.1, num_queries=3)


def test_autoattack_attacks_vectors(monkeypatch):
    patch_stages(monkeypatch, {"standard": {
        "apgd": {"attack": "apgd", "num_steps": 5}, "square": {"attack": "square", "num_queries": 5}
    }})  # fmt: skip
    found = for_inputs(autoattack, bounds=(0.0, 2.0))(
        KEY, lambda key, x: logits_fn(key, x / 2), 2 * VECTORS, LABELS, eps=0.02, batch_size=16
    )
    expected = autoattack(KEY, logits_fn, VECTORS[..., None, None], LABELS, eps=0.02, batch_size=16)
    assert found.images.shape == VECTORS.shape
    np.testing.assert_array_equal(found.broken_by, expected.broken_by)
    np.testing.assert_allclose(found.images, 2 * flat(expected.images), atol=1e-5)


def test_the_attack_keeps_its_signature_and_works_inside_of_jit():
    attack = for_inputs(pgd)
    assert inspect.signature(attack) == inspect.signature(pgd)
    assert attack.__name__ == "pgd"
    arguments = {"eps": 0.1, "step_size": 0.05, "num_steps": 3}
    jitted = jax.jit(lambda vectors: for_inputs(pgd, mask=MASK)(
        KEY, logits_fn, vectors, LABELS, **arguments
    ))  # fmt: skip
    outside = for_inputs(pgd, mask=MASK)(KEY, logits_fn, VECTORS, LABELS, **arguments)
    np.testing.assert_allclose(jitted(VECTORS), outside, atol=1e-6)
    assert (
        for_inputs(n_fgsm)(KEY, logits_fn, VECTORS[:0], LABELS[:0], eps=0.1, step_size=0.1).size
        == 0
    )


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"bounds": (1.0, 0.0)}, VECTORS, "each lower bound must be below its upper bound"),
        ({"bounds": (0.0, np.ones(3))}, VECTORS, "bounds has shape (3,), which does not broadcast"),
        ({"mask": np.ones(SIZE)}, VECTORS, "mask must be an array of True and False"),
        ({"mask": np.ones((4, 4), bool)}, IMAGES, "mask has shape (4, 4), which does"),
        ({"mask": np.zeros(SIZE, bool)}, VECTORS, "nothing could change"),
        ({}, 2 * VECTORS, "they must lie in bounds=(0, 1)"),
        ({"bounds": (-1, 2)}, jnp.full((N, SIZE), jnp.nan), "inputs lie in [nan, nan]"),
        ({}, VECTORS[:, 0], "inputs are float32 of shape (4,): they must be floats of shape"),
        ({}, jnp.ones((N, 2), jnp.int32), "inputs are int32"),
    ],
)  # fmt: skip
def test_invalid_domains_are_errors(options, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        for_inputs(fgsm, **options)(KEY, logits_fn, inputs, LABELS, eps=0.1)


def test_autoattack_takes_no_mask():
    with pytest.raises(ValueError, match="autoattack takes no mask"):
        for_inputs(autoattack, mask=MASK)


def test_every_attack_is_in_the_tests_above():
    assert {name for name, _ in PAIRS} | {"autoattack"} == set(ATTACKS) | {"n_fgsm"}
