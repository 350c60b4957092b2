"""HopSkipJump on models whose nearest decision boundaries are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import SIZE, WEIGHTS, examples, length, radii

from jaxadv.attacks import ATTACKS, BlackBox, hop_skip_jump
from jaxadv.attacks.batching import Examples, Model, search_survivors
from jaxadv.attacks.hop_skip_jump import _estimate_direction
from jaxadv.core.losses import make_objective

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
NORMS = ["l2", "linf"]
BINARY = np.stack([WEIGHTS[:, 0], -WEIGHTS[:, 0]], axis=1)
IMAGES, _ = examples(n=16, low=0.4, high=0.6)
OPTIONS = {"initial_samples": 40, "num_queries": 4000, "early_stop": False}


def binary(key, images):
    return images.reshape(-1, SIZE) @ jnp.asarray(BINARY, jnp.float32)


LABELS = binary(None, IMAGES).argmax(axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_approaches_the_nearest_point_of_a_linear_boundary(norm):
    exact = radii(BINARY, IMAGES, LABELS, norm)
    found = hop_skip_jump(KEY, binary, IMAGES, LABELS, norm=norm, **OPTIONS)
    assert found.success.all()
    distances = np.asarray(found.extras.distance)
    assert (distances >= exact * (1 - 1e-4)).all()
    assert np.median(distances / exact) < {"l2": 1.1, "linf": 1.25}[norm]
    np.testing.assert_allclose(length(found.images - IMAGES, norm), distances, atol=1e-6)
    assert (binary(None, found.images).argmax(axis=1) != LABELS).all()
    assert (found.queries <= 4000).all()
    assert (found.queries > 3000).all()  # the next gradient would exceed the budget


@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_find_nearer_images(norm):
    part = hop_skip_jump(KEY, binary, IMAGES, LABELS, norm=norm, **OPTIONS | {"num_queries": 300})
    whole = hop_skip_jump(KEY, binary, IMAGES, LABELS, norm=norm, **OPTIONS)
    assert (whole.extras.distance <= part.extras.distance).all()
    assert np.median(whole.extras.distance / part.extras.distance) < 0.9
    resumed = hop_skip_jump(KEY, binary, IMAGES, LABELS, norm=norm, resume=part, **OPTIONS)
    np.testing.assert_allclose(resumed.extras.distance, whole.extras.distance, rtol=1e-4)
    np.testing.assert_array_equal(resumed.queries, whole.queries)


@pytest.mark.parametrize("norm", NORMS)
def test_directions_are_those_of_the_gradient(norm):
    """At points of the boundary, of 1,000 samples in 48 dimensions."""
    steps = (flat_margins := binary(None, IMAGES)) @ jnp.array([1.0, -1.0])
    gradient = BINARY[:, 0] - BINARY[:, 1]
    points = IMAGES.reshape(-1, SIZE) - steps[:, None] * gradient / (gradient @ gradient)
    points = jnp.asarray(points, jnp.float32).reshape(IMAGES.shape)
    direction = _estimate_direction(
        KEY,
        lambda keys, images, rows: jax.vmap(partial(binary, None))(images),
        make_objective("margin", LABELS, None),
        points,
        jnp.arange(16),
        jnp.full(16, 1000),
        10,
        jnp.full(16, 0.1),
        norm,
    )
    expected = np.where(np.asarray(LABELS) == 0, -1, 1)[:, None] * gradient
    flat = np.asarray(direction).reshape(16, SIZE)
    cosines = (flat * expected).sum(1)
    cosines /= np.linalg.norm(flat, axis=1) * np.linalg.norm(expected, axis=1)
    assert flat_margins.shape == (16, 2)
    assert cosines.min() > 0.9


def test_examples_end_within_eps():
    eps = float(2 * np.median(radii(BINARY, IMAGES, LABELS, "l2")))
    arguments = {**OPTIONS, "eps": eps, "early_stop": True}
    found = hop_skip_jump(KEY, binary, IMAGES, LABELS, **arguments)
    assert 4 < found.success.sum() < 16
    assert (found.queries[found.success] < 4000).all()
    assert (length(found.images - IMAGES, "l2") <= eps * (1 + 1e-5)).all()
    np.testing.assert_array_equal(found.images[~found.success], IMAGES[~found.success])


def test_an_example_without_a_start_ends_with_its_budget():
    def flat(key, images):
        return jnp.tile(jnp.asarray([1.0, 0.0]), (len(images), 1))

    found = hop_skip_jump(KEY, flat, IMAGES, jnp.zeros(16, int), num_queries=200)
    assert not found.success.any()
    assert np.isinf(found.extras.distance).all()
    np.testing.assert_array_equal(found.queries, 200)


def test_misclassified_images_have_distance_0():
    found = hop_skip_jump(KEY, binary, IMAGES, 1 - LABELS, **OPTIONS)
    np.testing.assert_array_equal(found.extras.distance, 0)
    np.testing.assert_array_equal(found.queries, 1)


def test_begins_at_the_given_starts():
    """No noise reaches class 1 here, but the starts are of this class."""

    def far(key, images):
        return binary(key, images) - jnp.asarray([0.0, 20.0])

    labels = jnp.zeros(16, int)
    best = (BINARY[:, 1] > BINARY[:, 0]).astype(np.float32).reshape(1, 4, 4, 3)
    starts = jnp.asarray(np.repeat(best, 16, axis=0))
    assert (far(None, starts).argmax(axis=1) == 1).all()
    assert not hop_skip_jump(KEY, far, IMAGES, labels, **OPTIONS).success.any()
    first = hop_skip_jump(KEY, far, IMAGES, labels, starts=starts, **OPTIONS | {"num_queries": 2})
    np.testing.assert_array_equal(first.images, starts)
    found = hop_skip_jump(KEY, far, IMAGES, labels, starts=starts, **OPTIONS)
    assert found.success.all()
    moved, apart = (length(images - IMAGES, "l2") for images in (found.images, starts))
    assert (moved < 0.9 * apart).all()


def test_without_eps_the_budget_is_spent_on_nearer_images():
    exact = radii(BINARY, IMAGES, LABELS, "l2")
    found = hop_skip_jump(KEY, binary, IMAGES, LABELS, num_queries=3000, initial_samples=40)
    assert np.median(found.extras.distance / exact) < 1.2


@pytest.mark.parametrize("name", ["hop_skip_jump", "rays"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_padding_sends_no_queries(name, early_stop):
    """The attack runner repeats rows to fill a batch."""
    calls = 0

    def predict(images):
        nonlocal calls
        calls += len(images)
        return np.eye(2)[(np.reshape(images, (-1, SIZE)) @ BINARY).argmax(axis=1)]

    examples = Examples(*map(np.asarray, (IMAGES[:5], LABELS[:5], np.arange(5))))
    box = BlackBox(predict, num_classes=2)
    model = Model(lambda context, ids: box, (), on_host=True)
    arguments = {**ATTACKS[name].defaults, "eps": 1e-4, "num_queries": 60}
    found = search_survivors(
        ATTACKS[name], KEY, model, examples, {**arguments, "early_stop": early_stop},
        batch_size=64,
    )  # fmt: skip
    assert calls == found.queries.sum() > 0


def test_sees_labels_alone():
    calls = 0

    def predict(images):
        nonlocal calls
        calls += len(images)
        return np.eye(2)[(np.reshape(images, (-1, SIZE)) @ BINARY).argmax(axis=1)]

    arguments = {"num_queries": 150, "initial_samples": 20, "early_stop": False}
    found = hop_skip_jump(KEY, BlackBox(predict), IMAGES, LABELS, **arguments)
    assert calls == found.queries.sum()
    assert (found.queries <= 150).all()
    assert np.isfinite(found.extras.distance).all()
