"""The iterates of one run of APGD in L1 (Croce & Hein, 2021)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxadv.attacks.apgd_run import Run
from jaxadv.attacks.search import select_rows
from jaxadv.attacks.threat import THREATS, Radius, perturb, sparse_direction
from jaxadv.core.rng import example_keys, normal
from jaxadv.core.types import Images, PerExample, PRNGKey

_RADII = (3, 2, 1)  # of the phases of a run, in units of eps
NUM_PHASES = len(_RADII)
_CHECK_SHARE = 0.04  # of a phase's steps between two checkpoints
_SPARSITY = 1.5  # values that the best point changes, for each value that a step changes
_LEAST_CHANGE = 0.95  # of the number of changed values: from here on the step size decreases
_DECREASE = 1.5  # of the step size
_LEAST_STEP = 0.1  # in units of the radius


class SparseState(NamedTuple):
    """The state of a run; every array has one row per example.

    Attributes:
      iterate: the current images.
      gradient: of the loss at the iterate.
      best, best_gradient, best_loss: the images with the largest loss in this phase.
      step_size: L1 length of a step.
      num_changed: values that the best images changed at the last checkpoint.
    """

    iterate: Images
    gradient: Images
    best: Images
    best_gradient: Images
    best_loss: PerExample
    step_size: PerExample
    num_changed: PerExample


class Schedule(NamedTuple):
    """What a run does at each of its iterates; static arrays with one value per iterate.

    Attributes:
      is_start: whether the iterate begins a phase.
      radius: of the ball, in units of eps.
      is_checkpoint: whether the step size and the sparsity adapt after the iterate.
    """

    is_start: Bool[np.ndarray, "length"]
    radius: Float[np.ndarray, "length"]
    is_checkpoint: Bool[np.ndarray, "length"]


def schedule(num_steps: int) -> Schedule:
    """Return the schedule of a run: three phases with balls of radius 3 eps, 2 eps and eps.

    Each phase begins with an iterate that is not a step. The first two take 30 % of the steps each,
    rounded up.

    >>> schedule(100).is_start.nonzero()[0].tolist()
    [0, 31, 62]
    """
    first = -(-3 * num_steps // 10)
    second = min(first, num_steps - first)
    phases = [first, second, num_steps - first - second]
    numbers = [np.arange(count + 1) for count in phases]
    checkpoints = [
        (steps > 0) & (steps % max(int(_CHECK_SHARE * count), 1) == 0)
        for steps, count in zip(numbers, phases, strict=True)
    ]
    radii = [np.full(count + 1, radius) for count, radius in zip(phases, _RADII, strict=True)]
    return Schedule(
        is_start=np.concatenate(numbers) == 0,
        radius=np.concatenate(radii).astype(np.float32),
        is_checkpoint=np.concatenate(checkpoints),
    )


def l1_run(images: Images, example_ids: Int[Array, "batch"], eps: Radius, *, num_steps: int) -> Run:
    """Return the run of APGD in L1.

    Steps are sparse: they change the values with the largest gradients, 1.5 times fewer than the
    best point changes. At a checkpoint the step size is reset to the radius, and the run continues
    from its best point, if that point changes 5 % fewer values than at the last checkpoint.
    Otherwise the step size is divided by 1.5, to no less than a tenth of the radius. The first
    phases search in larger balls, and the next begins at the projection of their best point.
    """
    threat, plan = THREATS["l1"], schedule(num_steps)

    def radius_at(i: Int[Array, ""]) -> Radius:
        return eps * jnp.asarray(plan.radius, eps.dtype)[i]

    def start(key: PRNGKey) -> Images:
        noise = jax.vmap(partial(normal, shape=images.shape[1:]))(example_keys(key, example_ids))
        return perturb(threat, images, noise.astype(images.dtype), _RADII[0] * eps)

    def move(i: Int[Array, ""], state: SparseState) -> Images:
        count = jnp.maximum(jnp.ceil(state.num_changed / _SPARSITY), 1)
        step = state.step_size[:, None, None, None] * sparse_direction(state.gradient, count)
        moved = jnp.where(jnp.asarray(plan.is_start)[i], state.best, state.iterate + step)
        return perturb(threat, images, moved - images, radius_at(i))

    def num_changed(iterate: Images) -> PerExample:
        return (iterate != images).sum(axis=(1, 2, 3), dtype=images.dtype)

    def begin(iterate: Images, losses: PerExample, gradient: Images, radius: Radius) -> SparseState:
        step_size = jnp.zeros_like(losses) + radius
        return SparseState(
            iterate, gradient, iterate, gradient, losses, step_size, num_changed(iterate)
        )

    def step(
        i: Int[Array, ""], state: SparseState, iterate: Images, losses: PerExample, gradient: Images
    ) -> SparseState:
        best = state.best, state.best_gradient, state.best_loss
        best = select_rows(losses > state.best_loss, (iterate, gradient, losses), best)
        is_checkpoint, radius = jnp.asarray(plan.is_checkpoint)[i], radius_at(i)
        changed = num_changed(best[0])
        is_sparser = changed < _LEAST_CHANGE * state.num_changed
        shorter = jnp.maximum(state.step_size / _DECREASE, _LEAST_STEP * radius)
        step_size = jnp.where(is_sparser, radius, shorter)
        iterate, gradient = select_rows(is_checkpoint & is_sparser, best[:2], (iterate, gradient))
        return SparseState(
            iterate=iterate,
            gradient=gradient,
            best=best[0],
            best_gradient=best[1],
            best_loss=best[2],
            step_size=jnp.where(is_checkpoint, step_size, state.step_size),
            num_changed=jnp.where(is_checkpoint, changed, state.num_changed),
        )

    def update(
        i: Int[Array, ""], state: SparseState, iterate: Images, losses: PerExample, gradient: Images
    ) -> SparseState:
        return lax.cond(
            jnp.asarray(plan.is_start)[i],
            lambda: begin(iterate, losses, gradient, radius_at(i)),
            lambda: step(i, state, iterate, losses, gradient),
        )

    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    return Run(
        length=len(plan.radius),
        num_outside=int((plan.radius > 1).sum()),
        initial=begin(images, zeros, images, eps),
        start=start,
        move=move,
        update=update,
    )
