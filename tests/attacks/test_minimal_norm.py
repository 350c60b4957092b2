"""C&W, DDN, FMN and DeepFool on linear models: the distance is the margin over the dual norm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import WEIGHTS, examples, length, linear, radii

from jaxadv.attacks import cw, ddn, deepfool, fmn

KEY = jax.random.key(0)
# Confident, so that the cross entropy of DDN leads to the nearest class.
LOGITS_FN = linear(20 * WEIGHTS)
IMAGES, _ = examples(n=64, low=0.3, high=0.7)
ROOM = 0.29  # that each pixel has in the box, and a little less
LABELS = LOGITS_FN(None, IMAGES).argmax(1).at[:8].add(1) % 5  # the first are misclassified
NUM_STEPS = 400
ATTACKS = {
    ("ddn", "l2"): ddn,
    ("cw", "l2"): partial(cw, num_searches=9),
    ("fmn", "l2"): fmn,
    ("fmn", "linf"): fmn,
    ("fmn", "l1"): fmn,
}
NUM_SEARCHES = {"cw": 9}
each = pytest.mark.parametrize(("name", "norm"), ATTACKS)


def stays_in_box(exact, norm):
    """Whether the shortest perturbation stays in the box. In L1 it changes a single value."""
    return exact < (ROOM if norm == "l1" else np.inf)


def attack(name, norm, **arguments):
    fn = ATTACKS[name, norm]
    return fn(KEY, LOGITS_FN, IMAGES, LABELS, **{"norm": norm, "num_steps": NUM_STEPS, **arguments})


@each
def test_distances_on_a_linear_model_are_the_margin_over_the_dual_norm(name, norm):
    exact = np.maximum(radii(WEIGHTS, IMAGES, LABELS, norm), 0)
    found = attack(name, norm)
    distances = np.asarray(found.extras.distance)
    assert found.success.all()
    assert (distances >= exact * (1 - 1e-4) - 1e-6).all()
    wrong = exact == 0
    assert wrong.sum() == 8
    np.testing.assert_array_equal(distances[wrong], 0)
    np.testing.assert_array_equal(found.images[wrong], IMAGES[wrong])
    inside = ~wrong & stays_in_box(exact, norm)
    assert inside.sum() > 40
    excess = distances[inside] / exact[inside]
    assert np.median(excess) < (1.02 if name == "cw" else 1.01)
    assert excess.max() < (1.35 if norm == "l1" else 1.25)


@each
def test_images_are_misclassified_at_their_distance(name, norm):
    found = attack(name, norm)
    predictions = LOGITS_FN(None, found.images).argmax(1)
    assert (predictions != LABELS).all()
    moved = length(found.images - IMAGES, norm)
    np.testing.assert_allclose(moved, found.extras.distance, rtol=1e-4, atol=1e-6)
    assert (found.margins > 0).all()
    assert (found.queries == NUM_STEPS * NUM_SEARCHES.get(name, 1)).all()
    np.testing.assert_array_equal(found.gradients, found.queries)


@each
def test_images_beyond_eps_are_no_success(name, norm):
    distances = np.asarray(attack(name, norm).extras.distance)
    eps = float(np.median(distances))
    found = attack(name, norm, eps=eps)
    np.testing.assert_array_equal(found.success, distances <= np.float32(eps))
    np.testing.assert_array_equal(found.extras.distance, distances)
    np.testing.assert_array_equal(found.images[~found.success], IMAGES[~found.success])
    assert (length(found.images - IMAGES, norm) <= eps * (1 + 1e-5)).all()


@each
def test_targets_are_reached(name, norm):
    targets = (LABELS + 1) % 5
    found = attack(name, norm, targets=targets)
    assert found.success.mean() > 0.95
    predictions = LOGITS_FN(None, found.images).argmax(1)
    np.testing.assert_array_equal(predictions[found.success], targets[found.success])


@each
def test_a_flat_model_is_never_fooled_and_gives_no_nan(name, norm):
    def flat(key, images):
        return jnp.zeros((len(images), 5)).at[:, 0].set(1.0) + 0 * images.sum((1, 2, 3))[:, None]

    found = ATTACKS[name, norm](KEY, flat, IMAGES, jnp.zeros(64, int), norm=norm, num_steps=5)
    assert not found.success.any()
    assert np.isinf(found.extras.distance).all()
    np.testing.assert_array_equal(found.images, IMAGES)


def test_ddn_leaves_a_flat_region_in_a_random_direction():
    """The model is flat up to an L2 distance of 1.2 from its images, and wrong beyond."""
    grey = jnp.full((16, *IMAGES.shape[1:]), 0.5)

    def flat_nearby(key, images):
        is_far = ((images - 0.5) ** 2).sum((1, 2, 3)) > 1.2**2
        return jnp.stack([jnp.zeros(len(images)), jnp.where(is_far, 1.0, -1.0)], axis=1)

    found = ddn(KEY, flat_nearby, grey, jnp.zeros(16, int), num_steps=60)
    assert found.success.all()
    assert ((found.extras.distance > 1.2) & (found.extras.distance < 1.35)).all()
    directions = np.asarray(found.images - grey).reshape(16, -1)
    cosines = np.corrcoef(directions)[~np.eye(16, dtype=bool)]
    assert np.abs(cosines).max() < 0.8  # the directions differ between examples


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_crosses_boundaries_of_any_scale(norm, scale):
    def scaled(key, images):
        return LOGITS_FN(key, images) * scale

    found = fmn(KEY, scaled, IMAGES, LABELS, norm=norm)
    exact = np.maximum(radii(WEIGHTS, IMAGES, LABELS, norm), 0)
    assert found.success.all()
    assert np.median(found.extras.distance[8:] / exact[8:]) < 1.05


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_leaves_a_decision_boundary_on_which_an_image_lies(norm):
    def tied(key, images):
        gap = images.mean((1, 2, 3)) - 0.5
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    grey = jnp.full((2, *IMAGES.shape[1:]), 0.5)
    found = fmn(KEY, tied, grey, jnp.zeros(2, int), norm=norm)
    assert found.success.all()
    assert (found.extras.distance < 0.02).all()


def test_ddn_has_no_other_norm():
    with pytest.raises(ValueError, match="norm is 'linf': it must be one of l2"):
        ddn(KEY, LOGITS_FN, IMAGES, LABELS, norm="linf")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_deepfool_crosses_the_boundary_of_a_linear_model_in_one_step(norm):
    found = deepfool(KEY, LOGITS_FN, IMAGES, LABELS, norm=norm, overshoot=0.02)
    exact = np.maximum(radii(WEIGHTS, IMAGES, LABELS, norm), 0)
    inside = stays_in_box(exact, norm)
    assert inside.sum() > 40
    distances = np.asarray(found.extras.distance)
    np.testing.assert_allclose(distances[inside], 1.02 * exact[inside], rtol=1e-3)
    assert found.success.all()
    assert (LOGITS_FN(None, found.images).argmax(1) != LABELS).all()
    np.testing.assert_array_equal(found.steps, exact > 0)
    np.testing.assert_array_equal(found.queries, 1 + 2 * (exact > 0))
    np.testing.assert_array_equal(found.gradients, 4 * (exact > 0))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_deepfool_follows_a_curved_boundary(norm):
    """A margin that rises ever more slowly, so that each linearised boundary is too near."""

    def sphere(key, images):
        squares = ((images - 0.5) ** 2).sum((1, 2, 3))
        return jnp.stack([jnp.zeros_like(squares), jnp.log(squares / 4)], axis=1)

    found = deepfool(KEY, sphere, IMAGES, jnp.zeros(64, int), norm=norm)
    start = length(IMAGES - 0.5, "l2")
    distances = np.asarray(found.extras.distance)
    assert found.success.all()
    assert (found.steps > 1).all()
    if norm == "l2":
        np.testing.assert_allclose(distances, 2 - start, rtol=0.1)
    assert (sphere(None, found.images).argmax(1) == 1).all()


def test_deepfool_ends_when_all_images_are_misclassified():
    calls = []

    def counted(key, images):
        jax.debug.callback(lambda: calls.append(1))
        return LOGITS_FN(key, images)

    found = deepfool(KEY, counted, IMAGES, LABELS, num_steps=50)
    jax.effects_barrier()
    assert found.success.all()
    assert len(calls) <= 2 + 2 * int(found.steps.max())  # tracing may call the model once more


def test_deepfool_beyond_eps_is_no_success():
    distances = np.asarray(deepfool(KEY, LOGITS_FN, IMAGES, LABELS).extras.distance)
    eps = float(np.median(distances))
    found = deepfool(KEY, LOGITS_FN, IMAGES, LABELS, eps=eps)
    np.testing.assert_array_equal(found.success, distances <= np.float32(eps))
    np.testing.assert_array_equal(found.extras.distance, distances)
    np.testing.assert_array_equal(found.images[~found.success], IMAGES[~found.success])


def test_cw_increases_its_constant_until_a_search_succeeds():
    """In one dimension the optimum of a search is known: it moves up to the boundary or not."""

    def logits_fn(key, images):
        gap = 10 * images.mean((1, 2, 3)) - 6
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    grey = jnp.full((2, 4, 4, 3), 0.5)
    # The margin gains 10 / sqrt(48) per unit of length, the boundary is at 0.1 sqrt(48) = 0.693: a
    # search reaches it if constant * 10 / sqrt(48) > 2 * 0.693, that is, constant > 0.96.
    attack = partial(cw, KEY, logits_fn, grey, jnp.zeros(2, int), num_steps=300)
    assert not attack(constant=0.7, num_searches=1).success.any()
    assert attack(constant=1.2, num_searches=1).success.all()
    found = attack(constant=0.7, num_searches=2)
    assert found.success.all()
    np.testing.assert_allclose(found.extras.distance, 0.1 * np.sqrt(48), rtol=0.05)
    assert (found.queries == 600).all()
