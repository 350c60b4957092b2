"""Attacks on inputs with other bounds, a mask or another number of axes."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, FUNCTIONS, NORMS, images_of, patch_stages
from linear_model import DUAL_ORDERS, SIZE, WEIGHTS, examples, flat, length, linear

from jaxadv.attacks import (
    ATTACKS,
    BlackBox,
    HostModel,
    apgd,
    autoattack,
    fgsm,
    fmn,
    for_inputs,
    n_fgsm,
    pgd,
    sparse_rs,
    square,
    universal_perturbation,
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
    found = image_places(shape, None if mask is None else np.broadcast_to(mask, shape))
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


def test_resumed_images_are_projected_where_bounds_round_them():
    attack = for_inputs(square, bounds=(1000.0, 1001.0))
    inputs = 1000 + VECTORS

    def shifted(key, vectors):
        return logits_fn(key, vectors - 1000)

    part = attack(KEY, shifted, inputs, LABELS, eps=0.001, num_queries=3)
    more = attack(KEY, shifted, inputs, LABELS, eps=0.001, num_queries=9, resume=part)
    assert (more.queries >= part.queries).all()
    masked = for_inputs(square, mask=MASK)
    part = masked(KEY, logits_fn, VECTORS, LABELS, eps=0.01, num_queries=3)
    more = masked(KEY, logits_fn, VECTORS, LABELS, eps=0.01, num_queries=9, resume=part)
    whole = masked(KEY, logits_fn, VECTORS, LABELS, eps=0.01, num_queries=9)
    np.testing.assert_array_equal(more.images, whole.images)


def test_the_model_sees_the_inputs_exactly_where_nothing_changed():
    """A tree whose threshold is an integer would see 3.9999998 in place of 4."""
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 256, (N, SIZE)), jnp.float32)
    seen = []

    def record(key, vectors):
        jax.debug.callback(lambda vectors: seen.append(np.asarray(vectors)), vectors)
        return logits_fn(key, vectors / 255)

    attack = for_inputs(FUNCTIONS["hop_skip_jump"], bounds=(0.0, 255.0))
    attack(KEY, record, rows, LABELS, num_queries=1, initial_samples=2)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[0], rows)
    gradient = jax.grad(lambda rows: for_inputs(fgsm)(
        KEY, logits_fn, rows, LABELS, eps=0.1
    ).sum())(VECTORS)  # fmt: skip
    assert not gradient.any()
    adversarial = for_inputs(fgsm, bounds=(0.0, 255.0))(KEY, record, rows, LABELS, eps=0.01)
    assert ((adversarial != rows).sum(axis=1) > SIZE - 10).all()


@pytest.mark.parametrize("bounds", [(-0.1, 0.2), (-0.3, 1.0)])
def test_half_precision_and_results_at_the_bounds(bounds):
    low, high = np.float32(bounds[0]), np.float32(bounds[1])
    inputs = jnp.asarray(low + (high - low) * np.round(np.asarray(VECTORS)), jnp.bfloat16)
    adversarial = for_inputs(fgsm, bounds=bounds)(KEY, logits_fn, inputs, LABELS, eps=0.1)
    assert adversarial.dtype == jnp.float32
    is_inside = (adversarial >= low) & (adversarial <= high)
    assert (is_inside | (adversarial == inputs)).all()
    assert (adversarial != inputs).any(axis=1).all()


@pytest.mark.parametrize("name", ["fgsm", "apgd", "square", "nes", "fmn"])
def test_double_precision(name):
    with jax.enable_x64(True):
        inputs = jnp.asarray(np.asarray(VECTORS, np.float64) * 5)

        def double(key, vectors):
            return vectors @ jnp.asarray(WEIGHTS, vectors.dtype) / 5

        attack = for_inputs(FUNCTIONS[name], bounds=(0.0, 5.0), mask=MASK)
        labels = jnp.asarray(np.asarray(LABELS))
        found = images_of(attack(KEY, double, inputs, labels, **CALLS[name]))
        assert found.dtype == jnp.float64
        np.testing.assert_array_equal(found[:, ~MASK], inputs[:, ~MASK])
        assert (found != inputs).any()


def test_radii_under_a_mask_are_those_of_its_values():
    eps = jnp.linspace(0.01, 0.1, SIZE)[None]
    steps = jnp.array([0.0, 1.0, 1.0, 1.0])
    adversarial = for_inputs(pgd, mask=MASK)(
        KEY, logits_fn, VECTORS, LABELS, eps=eps, step_size=steps, num_steps=1, random_start=False
    )
    moved = np.abs(np.asarray(adversarial - VECTORS))
    expected = np.where(MASK, eps, 0) * np.array([0, 1, 1, 1])[:, None]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK])
def test_a_model_outside_of_jax_is_attacked(mask):
    weights = WEIGHTS.astype(np.float32)

    def forward(vectors):
        return np.asarray(vectors) @ weights

    def forward_for_gradient(vectors):
        return forward(vectors), lambda cotangent: np.asarray(cotangent) @ weights.T

    host = HostModel(5, forward, forward_for_gradient)
    attack = for_inputs(apgd, bounds=(0.0, 2.0), mask=mask)
    found = attack(KEY, host, VECTORS, LABELS, eps=0.01, num_steps=4)
    expected = attack(KEY, logits_fn, VECTORS, LABELS, eps=0.01, num_steps=4)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-5)


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
    arguments = {"eps": 0.05, "norm": "l2", "batch_size": 16}
    narrow = for_inputs(autoattack)(KEY, logits_fn, VECTORS, LABELS, **arguments)
    images = autoattack(KEY, logits_fn, IMAGES, LABELS, **arguments)
    assert "narrow_squares" in narrow.flags
    assert "narrow_squares" not in found.flags | images.flags


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
        ({"bounds": (1.0, 0.0)}, VECTORS, "bounds are (1, 0): they must be finite, and each"),
        ({"bounds": (0.0, np.inf)}, VECTORS, "bounds are (0, inf): they must be finite"),
        ({"bounds": (0.0, np.ones(3))}, VECTORS, "bounds has shape (3,), which does not broadcast"),
        ({"mask": np.ones(SIZE)}, VECTORS, "mask must be an array of True and False"),
        ({"mask": np.ones((4, 4), bool)}, IMAGES, "mask has shape (4, 4), which does"),
        ({"mask": np.zeros(SIZE, bool)}, VECTORS, "nothing could change"),
        ({}, 2 * VECTORS, "they must lie in bounds=(0, 1)"),
        ({"bounds": (-1, 2)}, jnp.full((N, SIZE), jnp.nan), "inputs lie in [nan, nan]"),
        ({}, VECTORS[:, 0], "inputs are float32 of shape (4,): they must be floats of shape"),
        ({"eps": jnp.ones(3)}, VECTORS, "eps has shape (3,): it must be a number"),
        ({"eps": jnp.ones((1, 5))}, VECTORS, "or have 2 axes and broadcast to (4, 48)"),
        ({"eps": jnp.ones((1, 48)), "norm": "l2"}, VECTORS, "eps has shape (1, 48): it must be a"),
        ({"logits_fn": None}, VECTORS, "logits_fn is None: pass a function"),
        ({"logits_fn": lambda x: x}, VECTORS, "must take (key, images)"),
        ({}, jnp.ones((N, 2), jnp.int32), "inputs are int32"),
    ],
)  # fmt: skip
def test_invalid_domains_are_errors(options, inputs, message):
    domain = {name: options.pop(name) for name in ("bounds", "mask") if name in options}
    arguments = {"logits_fn": logits_fn, "labels": LABELS, "eps": 0.1, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        for_inputs(fgsm, **domain)(KEY, images=inputs, **arguments)


def test_autoattack_takes_no_mask_and_universal_perturbations_are_none_for_inputs():
    with pytest.raises(ValueError, match="autoattack takes no mask"):
        for_inputs(partial(autoattack, batch_size=16), mask=MASK)
    with pytest.raises(ValueError, match="this has one for all"):
        for_inputs(universal_perturbation)


def test_every_attack_is_in_the_tests_above():
    assert {name for name, _ in PAIRS} | {"autoattack"} == set(ATTACKS) | {"n_fgsm"}
