"""Langevin dynamics: samples of a density that is known by the gradient of its energy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key

Points = Float[Array, "batch dimensions"]
EnergyFn = Callable[[Points], Float[Array, "batch"]]


def langevin(
    keys: Key[Array, "batch"],
    energy_fn: EnergyFn,
    points: Points,
    *,
    step_size: ArrayLike,
    num_steps: ArrayLike,
) -> Points:
    """Returns points after steps x - s / 2 grad E(x) + sqrt(s) n of the unadjusted dynamics.

    With small steps their density tends to exp(-E) up to its scale. Discriminator-driven latent
    sampling (Che et al. 2020, algorithm 1) is this in latent space, with E = |z|^2 / 2 - D(G(z)).

    Args:
      keys: one for each point: what it meets does not depend on the others.
      energy_fn: energies of points, each of its own point alone.
      points: where they begin.
      step_size: s; traced.
      num_steps: how many; traced.
    """

    def step(i: Int[Array, ""], points: Points) -> Points:
        gradient = jax.grad(lambda points: energy_fn(points).sum())(points)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, i), points.shape[1:])
        )
        return points - step_size / 2 * gradient + jnp.sqrt(step_size) * noise(keys)

    return lax.fori_loop(0, num_steps, step, points)
