"""Projections on hyperplanes inside of the box, beside scipy's general solvers."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from jaxadv.attacks.boundary import nearest_on_plane

SHAPE = (2, 2, 3)


def problem(n, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(size=(n, *SHAPE))
    normal = generator.normal(size=(n, *SHAPE))
    normal[0, 0] = 0  # pixels that the function does not see
    room = np.where(normal > 0, 1 - images, images)
    most = (np.abs(normal) * room).sum(axis=(1, 2, 3))
    return images, normal, generator.uniform(0.05, 0.95, n) * most


def solve(images, normal, rise, norm):
    arrays = (jnp.asarray(array, jnp.float32) for array in (images, normal, rise))
    return np.asarray(nearest_on_plane(*arrays, norm), np.float64)


def linf_distance(x, w, rise):
    """The smallest t with |d| <= t, w d = rise and x + d in the box, as a linear programme."""
    d = len(x)
    bounds = [*((-a, 1 - a) for a in x), (0, None)]
    both = np.vstack([np.c_[np.eye(d), -np.ones(d)], np.c_[-np.eye(d), -np.ones(d)]])
    solution = linprog(
        np.eye(d + 1)[-1], both, np.zeros(2 * d), np.r_[w, 0][None], [rise], bounds=bounds
    )
    return solution.x[-1]


def l2_distance(x, w, rise):
    constraint = {"type": "eq", "fun": lambda d: w @ d - rise, "jac": lambda d: w}
    solution = minimize(
        lambda d: d @ d, np.zeros_like(x), jac=lambda d: 2 * d, constraints=constraint,
        bounds=[(-a, 1 - a) for a in x], method="SLSQP", options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    return np.sqrt(solution.fun)


@pytest.mark.parametrize(("norm", "distance"), [("linf", linf_distance), ("l2", l2_distance)])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_the_nearest_point_of_the_plane_in_the_box(norm, distance, sign):
    images, normal, rise = problem(12)
    normal = sign * normal  # which a loss of as much mirrors
    changes = solve(images, normal, sign * rise, norm)
    flat = changes.reshape(12, -1)
    np.testing.assert_allclose(
        (flat * normal.reshape(12, -1)).sum(axis=1), sign * rise, rtol=1e-4, atol=1e-5
    )
    assert (images + changes).min() > -1e-6
    assert (images + changes).max() < 1 + 1e-6
    lengths = np.linalg.norm(flat, np.inf if norm == "linf" else 2, axis=1)
    expected = [
        distance(x.ravel(), w.ravel(), sign * r)
        for x, w, r in zip(images, normal, rise, strict=True)
    ]
    np.testing.assert_allclose(lengths, expected, rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_out_of_reach_it_goes_to_the_walls(norm):
    images, normal, rise = problem(4)
    changes = solve(images, normal, 10 * rise + 100, norm)
    walls = np.where(normal > 0, 1.0, np.where(normal < 0, 0.0, images))
    np.testing.assert_allclose(images + changes, walls, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_the_plane_or_without_a_normal_nothing_moves(norm):
    images, normal, rise = problem(4)
    np.testing.assert_array_equal(solve(images, normal, 0 * rise, norm), 0)
    np.testing.assert_array_equal(solve(images, 0 * normal, rise, norm), 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_row_does_not_depend_on_the_others(norm):
    images, normal, rise = problem(6)
    together = solve(images, normal, rise, norm)
    one = slice(2, 3)
    np.testing.assert_allclose(
        solve(images[one], normal[one], rise[one], norm), together[one], atol=1e-6
    )
