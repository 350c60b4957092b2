import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxadv.attacks.threat import DUALS, NORMS, THREATS, perturb, sparse_direction

SHAPE = (20, 4, 4, 3)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
EPS = {"linf": 0.5, "l2": 3.0, "l1": 6.0}
GREY = jnp.full(SHAPE, 0.5)

all_norms = pytest.mark.parametrize("norm", NORMS)
seeds = pytest.mark.parametrize("seed", range(3))


def flat(batch):
    return np.asarray(batch, np.float64).reshape(len(batch), -1)


def length(deltas, norm):
    return np.linalg.norm(flat(deltas), ORDERS[norm], axis=1)


def normal(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def project(norm, deltas, eps, images=None):
    """Far from the faces of the box, unless images are given: rescaled by a power of two."""
    if images is not None:
        return THREATS[norm].project(images, deltas, jnp.float32(eps))
    return 64 * THREATS[norm].project(GREY, deltas / 64, jnp.float32(eps / 64))


@all_norms
@seeds
def test_projection_is_the_nearest_point_of_the_ball(norm, seed):
    eps = EPS[norm]
    deltas = normal(seed)
    projected = project(norm, deltas, eps)
    assert length(projected, norm).max() <= eps * (1 + 1e-6)
    # In Euclidean distance the nearest point p of a convex set to d is the one with
    # (d - p) . (q - p) <= 0 for every other point q of it.
    others = normal(seed + 10)
    others = eps * flat(others) / length(others, norm)[:, None]
    corners = (
        eps * np.sign(flat(deltas)) * (np.abs(flat(deltas)) == length(deltas, "linf")[:, None])
    )
    for points in (others, corners) if norm == "l1" else (others,):
        products = (flat(deltas) - flat(projected)) * (points - flat(projected))
        assert products.sum(axis=1).max() <= 2e-5


@all_norms
def test_projection_keeps_points_inside_the_ball(norm):
    deltas = normal(0)
    eps = 1.01 * length(deltas, norm).max()
    np.testing.assert_array_equal(project(norm, deltas, eps), deltas)


@seeds
def test_the_l1_projection_is_the_nearest_point_of_the_ball_in_the_box(seed):
    """As SciPy finds it, where the box cuts many pixels off."""
    images, deltas = jax.random.uniform(jax.random.key(seed), SHAPE), 2 * normal(seed + 1)
    eps = 8.0
    projected = flat(project("l1", deltas, eps, images))[:4]
    clipped = np.clip(flat(images + deltas), 0, 1)[:4] - flat(images)[:4]
    assert (np.abs(clipped).sum(axis=1) > eps).all()
    for x, delta, found in zip(flat(images), flat(deltas), projected, strict=False):
        sign, size, room = np.sign(delta), np.abs(delta), np.where(delta > 0, 1 - x, x)
        solution = minimize(
            lambda d, size=size: ((d - size) ** 2).sum(),
            np.zeros_like(x),
            jac=lambda d, size=size: 2 * (d - size),
            bounds=[(0, most) for most in room],
            constraints={"type": "ineq", "fun": lambda d: eps - d.sum(), "jac": lambda d: -(d**0)},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        np.testing.assert_allclose(found, sign * solution.x, atol=1e-4)


@all_norms
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1e6, 1e9])
def test_projections_stay_in_the_ball_at_any_scale(norm, scale):
    deltas = normal(0) * scale
    for eps in (0.0, 1e-6, 1.0, np.inf):
        projected = THREATS[norm].project(GREY, deltas, jnp.float32(eps))
        assert np.isfinite(projected).all()
        assert length(projected, norm).max() <= eps * (1 + 1e-6)


@all_norms
@seeds
def test_steepest_ascent_has_norm_1_and_gains_the_dual_norm(norm, seed):
    gradient = normal(seed)
    direction = THREATS[norm].steepest(GREY, gradient)
    np.testing.assert_allclose(length(direction, norm), 1, rtol=1e-6)
    gain = (flat(gradient) * flat(direction)).sum(axis=1)
    np.testing.assert_allclose(gain, length(gradient, DUALS[norm]), rtol=1e-5)


def test_the_sparse_direction_changes_the_values_with_the_largest_gradients():
    gradient = normal(0)
    direction = flat(sparse_direction(gradient, jnp.full(20, 12.0)))
    np.testing.assert_allclose(length(direction, "l1"), 1, rtol=1e-6)
    changed = direction != 0
    np.testing.assert_array_equal(changed.sum(axis=1), 12)
    np.testing.assert_allclose(np.abs(direction[changed]), 1 / 12, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(direction[changed]), np.sign(flat(gradient)[changed]))
    magnitude = np.abs(flat(gradient))
    kept, left = np.where(changed, magnitude, np.inf), np.where(changed, 0, magnitude)
    assert (kept.min(axis=1) > left.max(axis=1)).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_sparse_direction_includes_ties_at_any_scale(scale):
    gradient = jnp.tile(jnp.asarray([9.0, 3.0, 3.0, 1e-3]), 12).reshape(1, 4, 4, 3) * scale
    for count, changed in ((1, 12), (12, 12), (13, 36), (36, 36), (37, 48)):
        direction = flat(sparse_direction(gradient, jnp.full(1, float(count))))
        assert (direction != 0).sum() == changed
        np.testing.assert_allclose(np.abs(direction[direction != 0]), 1 / changed, rtol=1e-6)


def test_steepest_ascent_in_l1_passes_over_pixels_at_the_faces_of_the_box():
    images = GREY.at[:, 0, 0, 0].set(1.0).at[:, 0, 0, 1].set(0.0)
    gradient = normal(0).at[:, 0, 0, 0].set(9.0).at[:, 0, 0, 1].set(-9.0)
    direction = flat(THREATS["l1"].steepest(images, gradient))
    assert not direction[:, :2].any()
    np.testing.assert_allclose(length(direction, "l1"), 1, rtol=1e-6)
    inward = flat(THREATS["l1"].steepest(images, -gradient))
    assert inward[:, :2].all()


@all_norms
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_steepest_ascent_ignores_the_scale_of_the_gradient(norm, scale):
    # A confident model has gradients so small that their squares underflow to zero.
    steepest = THREATS[norm].steepest
    expected = steepest(GREY, normal(0))
    np.testing.assert_allclose(steepest(GREY, normal(0) * scale), expected, rtol=1e-4)


@all_norms
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_zero_gradients_and_perturbations_stay_zero(norm, dtype):
    zero = jnp.zeros(SHAPE, dtype)
    images = GREY.astype(dtype)
    np.testing.assert_array_equal(THREATS[norm].steepest(images, zero), zero)
    for eps in (0, 1):
        projected = THREATS[norm].project(images, zero, jnp.asarray(eps, dtype))
        np.testing.assert_array_equal(projected, zero)


@all_norms
def test_random_starts_are_uniform_in_the_ball(norm):
    eps, keys = 0.5, jax.random.split(jax.random.key(0), 4000)
    start = jax.jit(lambda key: THREATS[norm].random_start(key, (1, 1, 3), jnp.float32(eps)))
    deltas = jax.vmap(start)(keys)
    assert length(deltas, norm).max() <= eps * (1 + 1e-6)
    # In 3 dimensions the share f ** 3 of the volume is within a fraction f of the radius.
    for fraction in (0.5, 0.8, 0.95):
        share = (length(deltas, norm) <= fraction * eps).mean()
        assert abs(share - fraction**3) < 0.03
    assert np.abs(flat(deltas).mean(axis=0)).max() < 0.03
    # The squared share of a value in the norm, on a sphere, an octahedron and a cube.
    squares = ((flat(deltas) / length(deltas, norm)[:, None]) ** 2).mean()
    assert squares == pytest.approx({"l2": 1 / 3, "l1": 1 / 6, "linf": 5 / 9}[norm], abs=0.01)


@all_norms
@seeds
def test_perturbed_images_are_in_the_ball_and_the_box(norm, seed):
    images = jax.random.uniform(jax.random.key(seed), SHAPE)
    eps = EPS[norm]
    perturbed = perturb(THREATS[norm], images, normal(seed), jnp.float32(eps))
    assert perturbed.min() == 0
    assert perturbed.max() == 1
    assert length(perturbed - images, norm).max() <= eps * (1 + 1e-6)


def test_perturb_projects_onto_the_ball_and_then_clips():
    images = jnp.asarray([0.0, 0.5, 0.95]).reshape(1, 1, 3, 1)
    deltas = jnp.asarray([-1.0, 1.0, 1.0]).reshape(1, 1, 3, 1)
    perturbed = perturb(THREATS["linf"], images, deltas, jnp.float32(0.1))
    np.testing.assert_allclose(perturbed.ravel(), [0, 0.6, 1], atol=1e-7)
