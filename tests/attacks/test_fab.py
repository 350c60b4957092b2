"""FAB on linear models, whose nearest decision boundaries are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SIZE, WEIGHTS, examples, length, radii

from jaxadv.attacks.fab import _linearise_target, _step_across, fab
from jaxadv.core.losses import margin

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, _ = examples(n=24, low=0.3, high=0.7)
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1)
HIDDEN = np.random.default_rng(1).normal(size=(SIZE, 8))
OUT = np.random.default_rng(2).normal(size=(8, 5))


def nonlinear(key, images):
    return jnp.tanh(0.5 * images.reshape(-1, SIZE) @ HIDDEN) @ OUT


def attack(images=IMAGES, labels=LABELS, logits_fn=LOGITS_FN, **changes):
    arguments = {"num_steps": 20, "num_targets": 4, **changes}
    return fab(KEY, logits_fn, images, labels, **arguments)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_finds_the_nearest_boundary_of_a_linear_model(norm):
    distances = radii(WEIGHTS, IMAGES, LABELS, norm)
    found = attack(norm=norm, early_stop=False)
    assert found.success.all()
    np.testing.assert_allclose(found.extras.distance, distances, rtol=0.02)
    assert (found.extras.distance > distances).all()
    np.testing.assert_allclose(
        length(found.images - IMAGES, norm), found.extras.distance, rtol=1e-3, atol=1e-7
    )
    wrong = LOGITS_FN(None, found.images).argmax(axis=1) != LABELS
    assert wrong.all()
    assert (found.queries == 2 * 20 * 4).all()
    np.testing.assert_allclose(
        found.margins, margin(LOGITS_FN(None, found.images), LABELS), atol=1e-5
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_examples_end_within_eps(norm):
    distances = radii(WEIGHTS, IMAGES, LABELS, norm)
    eps = float(np.median(distances))
    found = attack(norm=norm, eps=eps)
    is_clear = np.abs(distances / eps - 1) > 0.02
    np.testing.assert_array_equal(found.success[is_clear], distances[is_clear] < eps)
    assert (found.extras.distance[found.success] <= eps).all()
    assert (found.queries[found.success] < 80).all()
    assert (found.queries[~found.success] == 160).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_finds_the_boundary_of_a_nonlinear_model(norm):
    labels = nonlinear(None, IMAGES).argmax(axis=1)
    found = attack(labels=labels, logits_fn=nonlinear, norm=norm, early_stop=False, num_steps=80)
    assert found.success.all()
    rays = np.asarray(found.images - IMAGES)
    for share in (0.5, 0.9):
        # Nearer images on the same ray have the label, so the boundary itself was found.
        has_label = nonlinear(None, IMAGES + share * rays).argmax(axis=1) == labels
        assert has_label.mean() > 0.9
    single = attack(labels=labels, logits_fn=nonlinear, norm=norm, early_stop=False, num_targets=1)
    assert (found.extras.distance <= single.extras.distance * (1 + 1e-4)).all()


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2)])
def test_steps_are_weighted_means_of_two_projections(norm, order):
    """Far from the faces of the box, for iterates near the boundary and the clean image."""
    w, clean = WEIGHTS[:, 1] - WEIGHTS[:, 0], np.full(SIZE, 0.5)
    generator = np.random.default_rng(0)
    points = [clean + generator.normal(size=SIZE) * scale for scale in (1e-3, 0.02, 0.05)]
    clean = clean - 0.01 * np.sign(w)  # on the side of the label

    def projection(x):
        value = x @ w
        return -value * w / (w @ w) if order == 2 else -value * np.sign(w) / np.abs(w).sum()

    def size(delta):
        return max(np.linalg.norm(delta, order), 1e-8)

    alphas = [size(projection(x)) / (size(projection(x)) + size(projection(clean))) for x in points]
    expected = [
        (1 - min(alpha, 0.1)) * (x + 1.05 * projection(x))
        + min(alpha, 0.1) * (clean + 1.05 * projection(clean))
        for x, alpha in zip(points, alphas, strict=True)
    ]
    assert min(alphas) < 0.1 < max(alphas)
    images, iterates = (
        jnp.asarray(np.reshape(flat, (3, 4, 4, 3)), jnp.float32)
        for flat in (np.tile(clean, (3, 1)), points)
    )
    boundary = _linearise_target(
        lambda values: values, lambda x: x.reshape(3, -1) @ w.astype(np.float32), iterates
    )
    found = _step_across(boundary, images, iterates, norm)
    np.testing.assert_allclose(np.reshape(found, (3, -1)), expected, atol=1e-5)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_results_do_not_depend_on_resumption_or_batch():
    arguments = {"eps": 0.02, "num_targets": 2, "num_restarts": 2, "num_steps": 5}
    whole = attack(**arguments)
    assert 0 < whole.success.sum() < 24
    part = attack(**arguments, num_queries=15)
    assert part.queries.max() == 14
    assert_same(attack(**arguments, resume=part), whole)
    one = jnp.array([7])
    alone = attack(IMAGES[one], LABELS[one], **arguments, example_ids=one)
    assert_same(alone, jax.tree.map(lambda array: array[one], whole))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("num_targets", [0, 4])
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_logit_scale_does_not_change_the_result(norm, num_targets, scale):
    """Squares of such gradients are outside the range of float32."""

    def scaled(key, images):
        return scale * LOGITS_FN(key, images)

    options = {"norm": norm, "num_targets": num_targets, "num_steps": 5, "early_stop": False}
    found, expected = attack(logits_fn=scaled, **options), attack(**options)
    assert expected.success.any()
    np.testing.assert_array_equal(found.success, expected.success)
    np.testing.assert_allclose(
        found.extras.distance, expected.extras.distance, rtol=1e-3, atol=1e-5
    )


def test_zero_budget_inside_jit_spends_no_queries():
    wrong = (LABELS + 1) % 5
    found = jax.jit(lambda budget: attack(labels=wrong, num_queries=budget))(0)
    assert not found.queries.any()
    assert not found.success.any()


def test_restarts_begin_at_half_the_radius():
    def iterate(num_queries):
        found = attack(
            eps=0.001, num_restarts=2, num_steps=3, num_targets=1, num_queries=num_queries
        )
        return found.extras.iterate

    assert not np.allclose(iterate(8), iterate(6), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_targets": 5}, "num_targets is 5: it must be at most 4"),
        ({"num_targets": -1}, "num_targets is -1"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"eps": -1.0}, "eps is -1.0"),
    ],
)
def test_invalid_arguments_raise_an_error_with_their_name(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(**changes)
