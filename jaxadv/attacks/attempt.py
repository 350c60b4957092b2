"""An attempt of Auto-PGD: where it stands, how it moves, how it chooses its step size."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxadv.attacks.queries import select
from jaxadv.attacks.threat import Threat, perturb
from jaxadv.types import Images, PerExample

_MOMENTUM = 0.25
_RISES = 0.75  # share of a window's steps in which the loss must rise, or the step size is halved


class Attempt(NamedTuple):
    """Where an attempt of a batch stands; every array has one row per example.

    Attributes:
      here: the iterate.
      before: the iterate before.
      gradient, loss: at `here`.
      best, best_gradient, best_loss: the iterate with the largest loss.
      step_size: in units of the pixel range.
      rises: steps of this window in which the loss rose.
      checked_loss: largest loss at the last checkpoint.
      halved: whether the step size was halved there.
    """

    here: Images
    before: Images
    gradient: Images
    loss: PerExample
    best: Images
    best_gradient: Images
    best_loss: PerExample
    step_size: PerExample
    rises: Int[Array, "batch"]
    checked_loss: PerExample
    halved: Bool[Array, "batch"]


def move(
    threat: Threat, images: Images, eps: Float[Array, ""], attempt: Attempt, i: Int[Array, ""]
) -> Images:
    """Returns the i-th step of an attempt (equation 2 of the paper); the first has no momentum."""
    here = attempt.here
    ahead = here + attempt.step_size[:, None, None, None] * threat.steepest(attempt.gradient)
    ahead = perturb(threat, images, ahead - images, eps)
    momentum = jnp.where(i == 1, 0, _MOMENTUM).astype(images.dtype)
    moved = here + (1 - momentum) * (ahead - here) + momentum * (here - attempt.before)
    return perturb(threat, images, moved - images, eps)


def begin_attempt(
    here: Images,
    losses: PerExample,
    gradient: Images,
    eps: Float[Array, ""],
) -> Attempt:
    """Returns the attempt at the start of an attempt."""
    return Attempt(
        here=here,
        before=here,
        gradient=gradient,
        loss=losses,
        best=here,
        best_gradient=gradient,
        best_loss=losses,
        step_size=jnp.zeros_like(losses) + 2 * eps,
        rises=jnp.zeros_like(losses, jnp.int32),
        checked_loss=losses,
        # There is no window before the first: only the rises count at its end.
        halved=jnp.ones_like(losses, bool),
    )


def look_back(
    attempt: Attempt, here: Images, losses: PerExample, gradient: Images, window: Int[Array, ""]
) -> Attempt:
    """Returns the attempt after a step; `window` is the length of the one that it ends, or 0."""
    now, ends = (here, gradient, losses), window > 0
    rises = attempt.rises + (losses > attempt.loss).astype(jnp.int32)
    best = attempt.best, attempt.best_gradient, attempt.best_loss
    best = select(losses > attempt.best_loss, now, best)
    stuck = ~attempt.halved & (attempt.checked_loss >= best[2])
    few = rises.astype(jnp.float32) <= _RISES * window.astype(jnp.float32)
    halve = ends & (few | stuck)
    before = attempt.here
    here, gradient, loss = select(halve, best, now)
    return Attempt(
        here=here,
        before=before,
        gradient=gradient,
        loss=loss,
        best=best[0],
        best_gradient=best[1],
        best_loss=best[2],
        step_size=jnp.where(halve, attempt.step_size / 2, attempt.step_size),
        rises=jnp.where(ends, 0, rises),
        checked_loss=jnp.where(ends, best[2], attempt.checked_loss),
        halved=jnp.where(ends, halve, attempt.halved),
    )


def window_lengths(num_steps: int) -> Int[np.ndarray, "steps"]:
    """Returns for each step of an attempt the length of the window that it ends, or 0.

    >>> np.flatnonzero(window_lengths(100)).tolist()
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    window, least, less = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    lengths, step = np.zeros(num_steps + 1, np.int32), window
    while step <= num_steps:
        lengths[step] = window
        window = max(window - less, least)
        step += window
    return lengths
