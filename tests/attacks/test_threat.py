import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks.threat import THREATS, perturb

SHAPE = (20, 4, 4, 3)
ORDERS = {"linf": np.inf, "l2": 2}
DUAL_ORDERS = {"linf": 1, "l2": 2}

both_norms = pytest.mark.parametrize("norm", THREATS)
seeds = pytest.mark.parametrize("seed", range(3))


def flat(batch):
    return np.asarray(batch, np.float64).reshape(len(batch), -1)


def length(deltas, norm):
    return np.linalg.norm(flat(deltas), ORDERS[norm], axis=1)


def normal(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE)


@both_norms
@seeds
def test_projection_is_the_nearest_point_of_the_ball(norm, seed):
    eps = {"linf": 0.5, "l2": 3.0}[norm]
    deltas = normal(seed)
    projected = THREATS[norm].project(deltas, jnp.float32(eps))
    assert length(projected, norm).max() <= eps * (1 + 1e-6)
    # In Euclidean distance the nearest point p of a convex set to d is the one with
    # (d - p) . (q - p) <= 0 for every other point q of it.
    others = normal(seed + 10)
    others = eps * flat(others) / length(others, norm)[:, None]
    products = (flat(deltas) - flat(projected)) * (others - flat(projected))
    assert products.sum(axis=1).max() <= 1e-5


@both_norms
def test_projection_keeps_points_inside_the_ball(norm):
    deltas = normal(0)
    eps = jnp.float32(1.01 * length(deltas, norm).max())
    np.testing.assert_array_equal(THREATS[norm].project(deltas, eps), deltas)


@both_norms
@seeds
def test_steepest_ascent_has_norm_1_and_gains_the_dual_norm(norm, seed):
    gradient = normal(seed)
    direction = THREATS[norm].steepest(gradient)
    np.testing.assert_allclose(length(direction, norm), 1, rtol=1e-6)
    gain = (flat(gradient) * flat(direction)).sum(axis=1)
    dual = np.linalg.norm(flat(gradient), DUAL_ORDERS[norm], axis=1)
    np.testing.assert_allclose(gain, dual, rtol=1e-5)


@both_norms
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_steepest_ascent_ignores_the_scale_of_the_gradient(norm, scale):
    # A confident model has gradients so small that their squares underflow to zero.
    steepest = THREATS[norm].steepest
    np.testing.assert_allclose(steepest(normal(0) * scale), steepest(normal(0)), rtol=1e-4)


@both_norms
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_zero_gradients_and_perturbations_stay_zero(norm, dtype):
    zero = jnp.zeros(SHAPE, dtype)
    np.testing.assert_array_equal(THREATS[norm].steepest(zero), zero)
    for eps in (0, 1):
        np.testing.assert_array_equal(THREATS[norm].project(zero, jnp.asarray(eps, dtype)), zero)


@both_norms
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


@both_norms
@seeds
def test_perturbed_images_are_in_the_ball_and_the_box(norm, seed):
    images = jax.random.uniform(jax.random.key(seed), SHAPE)
    eps = {"linf": 0.5, "l2": 3.0}[norm]
    perturbed = perturb(THREATS[norm], images, normal(seed), jnp.float32(eps))
    assert perturbed.min() == 0
    assert perturbed.max() == 1
    assert length(perturbed - images, norm).max() <= eps * (1 + 1e-6)


def test_perturb_projects_onto_the_ball_and_then_clips():
    images = jnp.asarray([0.0, 0.5, 0.95]).reshape(1, 1, 3, 1)
    deltas = jnp.asarray([-1.0, 1.0, 1.0]).reshape(1, 1, 3, 1)
    perturbed = perturb(THREATS["linf"], images, deltas, jnp.float32(0.1))
    np.testing.assert_allclose(perturbed.ravel(), [0, 0.6, 1], atol=1e-7)
