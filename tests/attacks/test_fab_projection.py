"""Projections onto hyperplanes within the box, compared with the solvers of SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import ORDERS
from scipy.optimize import linprog, minimize

from jaxadv.attacks.fab import project_onto_hyperplane

SHAPE = (2, 2, 3)


def problem(n, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.uniform(size=(n, *SHAPE))
    normal = generator.normal(size=(n, *SHAPE))
    normal[0, 0] = 0  # pixels that the function ignores
    room = np.where(normal > 0, 1 - images, images)
    largest = (np.abs(normal) * room).sum(axis=(1, 2, 3))
    return images, normal, generator.uniform(0.05, 0.95, n) * largest


def solve(images, normal, rise, norm):
    arrays = (jnp.asarray(array, jnp.float32) for array in (images, normal, rise))
    return np.asarray(project_onto_hyperplane(*arrays, norm), np.float64)


def linf_distance(x, w, rise):
    """The smallest t with |d| <= t, w d = rise and x + d in the box, as a linear program."""
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


def l1_distance(x, w, rise):
    """The smallest |d| with w d = rise and x + d in the box, as a linear program in d+ and d-."""
    bounds = [*((0, 1 - a) for a in x), *((0, a) for a in x)]
    return linprog(np.ones(2 * len(x)), A_eq=np.r_[w, -w][None], b_eq=[rise], bounds=bounds).fun


DISTANCES = {"linf": linf_distance, "l2": l2_distance, "l1": l1_distance}


@pytest.mark.parametrize(("norm", "distance"), DISTANCES.items())
@pytest.mark.parametrize("sign", [1, -1])
def test_projects_to_the_nearest_point_of_the_hyperplane_in_the_box(norm, distance, sign):
    images, normal, rise = problem(12)
    normal = sign * normal  # mirrored: the same decrease
    changes = solve(images, normal, sign * rise, norm)
    flat = changes.reshape(12, -1)
    np.testing.assert_allclose(
        (flat * normal.reshape(12, -1)).sum(axis=1), sign * rise, rtol=1e-4, atol=1e-5
    )
    assert (images + changes).min() > -1e-6
    assert (images + changes).max() < 1 + 1e-6
    lengths = np.linalg.norm(flat, ORDERS[norm], axis=1)
    expected = [
        distance(x.ravel(), w.ravel(), sign * r)
        for x, w, r in zip(images, normal, rise, strict=True)
    ]
    np.testing.assert_allclose(lengths, expected, rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_unreachable_hyperplanes_move_all_pixels_to_the_faces(norm):
    images, normal, rise = problem(4)
    changes = solve(images, normal, 10 * rise + 100, norm)
    faces = np.where(normal > 0, 1.0, np.where(normal < 0, 0.0, images))
    np.testing.assert_allclose(images + changes, faces, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_zero_increase_or_zero_normal_moves_nothing(norm):
    images, normal, rise = problem(4)
    np.testing.assert_array_equal(solve(images, normal, 0 * rise, norm), 0)
    np.testing.assert_array_equal(solve(images, 0 * normal, rise, norm), 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rows_are_independent(norm):
    images, normal, rise = problem(6)
    together = solve(images, normal, rise, norm)
    one = slice(2, 3)
    np.testing.assert_allclose(
        solve(images[one], normal[one], rise[one], norm), together[one], atol=1e-6
    )
