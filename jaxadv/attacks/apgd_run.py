"""The iterates of one run of APGD in L-inf and L2 (Croce & Hein, 2020)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from jaxadv.attacks.search import select_rows
from jaxadv.attacks.threat import (
    THREATS,
    Radius,
    Threat,
    as_column,
    ascend,
    largest_radius,
    perturb,
    random_on_sphere,
)
from jaxadv.core.types import Images, PerExample, PRNGKey

_MOMENTUM = 0.25  # 1 - alpha of the paper
_MIN_INCREASES = 0.75  # rho: share of a window's steps that must increase the loss


class Run(NamedTuple):
    """A run of APGD: iterates 0 to length - 1, each of which takes one gradient.

    Attributes:
      length: number of iterates.
      num_outside: first iterates, which lie in a larger ball than that of the attack and cannot be
        successes.
      initial: state before the run, a tree of arrays with one row per example.
      start: `key -> images`; iterate 0.
      move: `(i, state) -> images`; iterate i, from the state after iterate i - 1.
      update: `(i, state, images, losses, gradient) -> state`; the state after iterate i.
    """

    length: int
    num_outside: int
    initial: PyTree
    start: Callable[[PRNGKey], Images]
    move: Callable[[Int[Array, ""], PyTree], Images]
    update: Callable[[Int[Array, ""], PyTree, Images, PerExample, Images], PyTree]


class APGDState(NamedTuple):
    """The state of a run of APGD; every array has one row per example.

    Attributes:
      iterate: the current images.
      previous: the images one step before.
      gradient, loss: of the iterate.
      best, best_gradient, best_loss: the images with the largest loss.
      step_size: in units of the pixel range; of the value with the largest radius.
      num_increases: steps since the last checkpoint that increased the loss.
      checkpoint_loss: largest loss at the last checkpoint.
      was_halved: whether the step size was halved at the last checkpoint.
    """

    iterate: Images
    previous: Images
    gradient: Images
    loss: PerExample
    best: Images
    best_gradient: Images
    best_loss: PerExample
    step_size: PerExample
    num_increases: Int[Array, "batch"]
    checkpoint_loss: PerExample
    was_halved: Bool[Array, "batch"]


def adaptive_run(
    images: Images,
    example_ids: Int[Array, "batch"],
    eps: Radius,
    *,
    norm: str,
    num_steps: int,
) -> Run:
    """Return the run of APGD in L-inf or L2."""
    threat, windows = THREATS[norm], checkpoint_windows(num_steps)

    def update(
        i: Int[Array, ""], state: APGDState, iterate: Images, losses: PerExample, gradient: Images
    ) -> APGDState:
        return lax.cond(
            i == 0,
            lambda: initial_state(iterate, losses, gradient, eps),
            lambda: update_state(state, iterate, losses, gradient, jnp.asarray(windows)[i]),
        )

    return Run(
        length=num_steps + 1,
        num_outside=0,
        initial=initial_state(images, jnp.zeros_like(images[:, 0, 0, 0]), images, eps),
        start=lambda key: random_on_sphere(threat, key, example_ids, images, eps),
        move=lambda i, state: take_step(threat, images, eps, state, i),
        update=update,
    )


def with_odi(run: Run, threat: Threat, images: Images, eps: Radius, num_odi_steps: int) -> Run:
    """Return a run whose start is that of ODI (Tashiro et al., 2020), see `odi_objective`.

    Iterate 0 is the random start. The gradients at iterates 0 to `num_odi_steps` - 1 have to be
    those of ODI's objective; each leads to the next iterate by a step of length eps. The last of
    these iterates is the start of the given run.
    """

    def move(i: Int[Array, ""], state: PyTree) -> Images:
        return lax.cond(
            i <= num_odi_steps,
            lambda: ascend(threat, images, state.iterate, state.gradient, eps, eps),
            lambda: run.move(i - num_odi_steps, state),
        )

    def update(
        i: Int[Array, ""], state: PyTree, iterate: Images, losses: PerExample, gradient: Images
    ) -> PyTree:
        return run.update(jnp.maximum(i - num_odi_steps, 0), state, iterate, losses, gradient)

    return run._replace(length=run.length + num_odi_steps, move=move, update=update)


def take_step(
    threat: Threat, images: Images, eps: Radius, state: APGDState, i: Int[Array, ""]
) -> Images:
    """Return the iterate after the i-th step of a run (equation 2 of the paper).

    The first step, i = 1, has no momentum.
    """
    iterate = state.iterate
    step_size = as_column(state.step_size)
    if eps.ndim == 4:  # each value moves in proportion to its radius
        largest = jnp.maximum(as_column(largest_radius(eps)), jnp.finfo(eps.dtype).tiny)
        step_size = step_size * (eps / largest)
    ahead = ascend(threat, images, iterate, state.gradient, step_size, eps)
    momentum = jnp.where(i == 1, 0, _MOMENTUM).astype(images.dtype)
    moved = iterate + (1 - momentum) * (ahead - iterate) + momentum * (iterate - state.previous)
    return perturb(threat, images, moved - images, eps)


def initial_state(iterate: Images, losses: PerExample, gradient: Images, eps: Radius) -> APGDState:
    """Return the state at the start of a run."""
    return APGDState(
        iterate=iterate,
        previous=iterate,
        gradient=gradient,
        loss=losses,
        best=iterate,
        best_gradient=gradient,
        best_loss=losses,
        step_size=jnp.zeros_like(losses) + 2 * largest_radius(eps),
        num_increases=jnp.zeros_like(losses, jnp.int32),
        checkpoint_loss=losses,
        # True disables the second condition at the first checkpoint, which has none before it.
        was_halved=jnp.ones_like(losses, bool),
    )


def update_state(
    state: APGDState,
    iterate: Images,
    losses: PerExample,
    gradient: Images,
    window: Int[Array, ""],
) -> APGDState:
    """Return the state after a step.

    Args:
      state: the state before the step.
      iterate: the iterate after the step.
      losses: loss of the iterate.
      gradient: gradient of the iterate.
      window: number of steps between the last checkpoint and this one, or 0 if the step is not a
        checkpoint.
    """
    current, is_checkpoint = (iterate, gradient, losses), window > 0
    num_increases = state.num_increases + (losses > state.loss).astype(jnp.int32)
    best = state.best, state.best_gradient, state.best_loss
    best = select_rows(losses > state.best_loss, current, best)
    no_progress = ~state.was_halved & (state.checkpoint_loss >= best[2])
    least = _MIN_INCREASES * window.astype(jnp.float32)
    few_increases = num_increases.astype(jnp.float32) <= least
    halve = is_checkpoint & (few_increases | no_progress)
    previous = state.iterate
    iterate, gradient, loss = select_rows(halve, best, current)
    return APGDState(
        iterate=iterate,
        previous=previous,
        gradient=gradient,
        loss=loss,
        best=best[0],
        best_gradient=best[1],
        best_loss=best[2],
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        num_increases=jnp.where(is_checkpoint, 0, num_increases),
        checkpoint_loss=jnp.where(is_checkpoint, best[2], state.checkpoint_loss),
        was_halved=jnp.where(is_checkpoint, halve, state.was_halved),
    )


def checkpoint_windows(num_steps: int) -> Int[np.ndarray, "steps"]:
    """Return for each step of a run the length of the window that it ends, or 0.

    The first window has 22 % of the steps. Each next one is shorter by 3 %, down to 6 %.

    >>> np.flatnonzero(checkpoint_windows(100)).tolist()
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    window, least, decrease = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    windows, step = np.zeros(num_steps + 1, np.int32), window
    while step <= num_steps:
        windows[step] = window
        window = max(window - decrease, least)
        step += window
    return windows
