"""RayS, compared with a loop as in the authors' code, and on linear models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SIZE, WEIGHTS, examples, length, radii

from jaxadv.attacks import BlackBox, rays

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, _ = examples(n=16, low=0.4, high=0.6)
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1)
HIDDEN, OUT = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(SIZE, 8), (8, 5)]))


def curved(key, images):
    hidden, out = (jnp.asarray(weights, images.dtype) for weights in (HIDDEN, OUT))
    return jnp.tanh((images.reshape(-1, SIZE) - 0.5) @ hidden) @ out


def reference(image, label, num_queries):
    """Yield the radius, the signs and the queries after each direction of the authors' loop."""
    signs, radius, queries = np.ones(SIZE), np.inf, 1  # one for the clean image
    level = block = 0

    def is_wrong(signs, radius):
        nonlocal queries
        queries += 1
        planes = np.reshape(signs, (3, 4, 4)).transpose(1, 2, 0)  # channels first
        moved = np.clip(image + radius * planes, 0, 1).astype(np.float32)
        return int(curved(None, jnp.asarray(moved)[None]).argmax()) != label

    while queries < num_queries:
        size = math.ceil(SIZE / 2**level)
        start, end = block * size, min(SIZE, (block + 1) * size)
        attempt = signs.copy()
        attempt[start:end] *= -1
        most = min(radius, 1.0)
        if is_wrong(attempt, most):
            low, high = 0.0, most
            while high - low > 1e-3 / math.sqrt(SIZE):
                middle = (low + high) / 2
                if is_wrong(attempt, middle):
                    high = middle
                else:
                    low = middle
            if high < radius:
                signs, radius = attempt, high
        block += 1
        if block == 2**level or end == SIZE:
            level, block = min(level + 1, 6), 0
        yield radius, signs, queries


def test_takes_the_steps_of_the_authors():
    labels = curved(None, IMAGES).argmax(axis=1)
    for i in range(3):
        steps = list(reference(np.asarray(IMAGES[i]), int(labels[i]), 150))
        for radius, signs, queries in steps[:2] + steps[-3:-1]:
            found = rays(
                KEY, curved, IMAGES[i : i + 1], labels[i : i + 1], num_queries=queries,
                early_stop=False,
            )  # fmt: skip
            assert found.queries[0] == queries
            np.testing.assert_allclose(found.extras.radius[0], radius, rtol=1e-5)
            found_signs = np.asarray(found.extras.signs[0]).transpose(2, 0, 1).ravel()
            np.testing.assert_array_equal(found_signs, signs)
        assert np.isfinite(steps[-1][0])


def test_finds_the_nearest_boundary_of_a_linear_model():
    """Every pixel's sign is right in the end, so the distance is the margin over the dual norm."""
    weights = np.stack([WEIGHTS[:, 0], -WEIGHTS[:, 0]], axis=1)

    def logits_fn(key, images):
        return images.reshape(-1, SIZE) @ jnp.asarray(weights, jnp.float32)

    labels = logits_fn(None, IMAGES).argmax(axis=1)
    exact = radii(weights, IMAGES, labels, "linf")
    found = rays(KEY, logits_fn, IMAGES, labels, num_queries=1500, early_stop=False)
    np.testing.assert_allclose(found.extras.distance, exact, atol=3e-4)
    assert (found.extras.distance >= exact * (1 - 1e-4)).all()
    assert found.success.all()
    assert (found.queries == 1500).all()
    np.testing.assert_allclose(
        length(found.images - IMAGES, "linf"), found.extras.distance, atol=1e-6
    )
    assert (logits_fn(None, found.images).argmax(axis=1) != labels).all()


def test_examples_end_within_eps():
    whole = rays(KEY, LOGITS_FN, IMAGES, LABELS, num_queries=300, early_stop=False)
    eps = float(np.median(whole.extras.distance))
    found = rays(KEY, LOGITS_FN, IMAGES, LABELS, eps=eps, num_queries=300)
    np.testing.assert_array_equal(found.success, whole.extras.distance <= np.float32(eps))
    assert (found.queries[found.success] < 300).all()
    assert (found.queries[~found.success] == 300).all()
    np.testing.assert_array_equal(found.images[~found.success], IMAGES[~found.success])
    assert (length(found.images - IMAGES, "linf") <= eps * (1 + 1e-6)).all()


def test_misclassified_images_have_distance_0_and_flat_models_none():
    wrong = (LABELS + 1) % 5
    found = rays(KEY, LOGITS_FN, IMAGES, wrong, num_queries=50, early_stop=False)
    np.testing.assert_array_equal(found.extras.distance, 0)
    np.testing.assert_array_equal(found.queries, 1)
    np.testing.assert_array_equal(found.images, IMAGES)

    def flat(key, images):
        return jnp.tile(jnp.asarray([1.0, 0.0]), (len(images), 1))

    found = rays(KEY, flat, IMAGES, jnp.zeros(16, int), num_queries=200)
    assert not found.success.any()
    assert np.isinf(found.extras.distance).all()
    np.testing.assert_array_equal(found.queries, 200)


def test_sees_labels_alone():
    """One-hot outputs of a function outside of JAX, and a hard budget of its calls."""
    calls = 0

    def predict(images):
        nonlocal calls
        calls += len(images)
        return np.eye(5)[np.asarray(curved(None, jnp.asarray(images))).argmax(axis=1)]

    labels = curved(None, IMAGES).argmax(axis=1)
    arguments = {"num_queries": 60, "early_stop": False}
    found = rays(KEY, BlackBox(predict), IMAGES, labels, **arguments)
    assert calls == 16 * 60
    same = rays(KEY, curved, IMAGES, labels, **arguments)
    np.testing.assert_allclose(found.extras.distance, same.extras.distance, rtol=1e-5)
