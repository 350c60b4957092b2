"""Langevin dynamics on energies with a known stationary distribution."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.core.rng import example_keys
from jaxadv.gan.sampling import langevin

N = 4000
KEYS = example_keys(jax.random.key(0), jnp.arange(N))


def test_the_variance_on_a_parabola_is_that_of_the_recursion():
    step_size = 0.8  # large, so that the variance differs clearly from 1
    points = langevin(
        KEYS, lambda x: (x**2).sum(axis=1) / 2, jnp.zeros((N, 2)), step_size=step_size, num_steps=60
    )
    np.testing.assert_allclose(points.var(axis=0), 1 / (1 - step_size / 4), rtol=0.06)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.07)


def test_a_double_well_reaches_its_density():
    """The wells have different depths."""

    def energy(x):
        return ((x**2 - 1) ** 2 + 0.5 * x).sum(axis=1)

    start = jax.random.normal(jax.random.key(1), (N, 1))
    points = np.asarray(langevin(KEYS, energy, start, step_size=0.01, num_steps=2000))[:, 0]
    grid = np.linspace(-4, 4, 2001)
    density = np.exp(-((grid**2 - 1) ** 2 + 0.5 * grid))
    density /= density.sum()
    assert (density * (grid < 0)).sum() > 0.65
    np.testing.assert_allclose((points < 0).mean(), (density * (grid < 0)).sum(), atol=0.03)
    for power in (1, 2):
        expected = (density * grid**power).sum()
        np.testing.assert_allclose((points**power).mean(), expected, atol=0.05)


def test_a_point_does_not_depend_on_the_other_points():
    def energy(x):
        return (x**4).sum(axis=1)

    start = jax.random.normal(jax.random.key(1), (6, 2))
    some = np.array([4, 1])
    everything = langevin(KEYS[:6], energy, start, step_size=0.1, num_steps=5)
    alone = langevin(KEYS[some], energy, start[some], step_size=0.1, num_steps=5)
    np.testing.assert_array_equal(alone, everything[some])
