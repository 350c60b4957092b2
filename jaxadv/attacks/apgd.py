"""Auto-PGD: PGD with momentum and adaptive step sizes (Croce & Hein, 2020)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.checks import (
    Arguments,
    Inputs,
    check_arguments,
    check_at_least_one,
    check_product,
    prepare,
)
from jaxadv.attacks.eot import Noise, expected_value_and_gradient
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    earliest_step,
    is_zero_budget,
    rank_target_classes,
    resume_or_start,
    select_rows,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, Threat, perturb, random_on_sphere
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective, make_targeted_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_MOMENTUM = 0.25  # 1 - alpha of the paper
_MIN_INCREASES = 0.75  # rho: share of a window's steps that must increase the loss


class APGDBudget(NamedTuple):
    """The traced arguments of APGD, see `apgd`."""

    eps: Float[Array, ""]
    num_noise_samples: Int[Array, ""]
    num_queries: Int[Array, ""]


@dataclass(frozen=True)
class APGDOptions:
    """The static arguments of APGD, see `apgd`."""

    num_steps: int
    norm: str
    loss: str
    num_targets: int
    num_restarts: int
    noise_chunk_size: int
    noise_average: str


class APGDState(NamedTuple):
    """The state of a run of APGD; every array has one row per example.

    Attributes:
      iterate: the current images.
      previous: the images one step before.
      gradient, loss: of the iterate.
      best, best_gradient, best_loss: the images with the largest loss.
      step_size: in units of the pixel range.
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


class _Extras(NamedTuple):
    targets: Int[Array, "batch targets"]
    state: APGDState


def apgd(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_steps: int = 100,
    norm: str = "linf",
    loss: str = "cross_entropy",
    num_targets: int = 0,
    num_restarts: int = 1,
    num_noise_samples: ArrayLike = 1,
    noise_chunk_size: int = 1,
    noise_average: str = "loss",
    example_ids: Int[Array, "batch"] | None = None,
    num_queries: ArrayLike | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run Auto-PGD (Croce & Hein, 2020): PGD with momentum and an adaptive step size.

    A run starts at a random point of the sphere of radius eps, with steps of 2 eps. At checkpoints,
    which become ever closer, the step size of an example is halved if one of two conditions holds.
    Either its loss increased in at most 75 % of the steps since the last checkpoint, or its best
    loss did not improve since then although the step size was the same. It then continues from its
    best point. An example ends with its first misclassified iterate. An image that is misclassified
    without a perturbation is a success at once, at the cost of one query per noise sample.

    The reference implementation (`autopgd_base.py` of fra31/auto-attack) compares the first loss of
    the first window with 0; this one compares it with the loss at the start. With several noise
    samples the reference uses the loss of the last sample; this one uses their mean.

    Traced arguments: the arrays, `eps`, `num_noise_samples` and `num_queries`. All others are
    static.

    Args:
      key: key of the random starts and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels); half precision is
        cast to single precision, and so is the result.
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range.
      num_steps: steps per run, after its start.
      norm: "linf" or "l2".
      loss: "cross_entropy", "dlr", "margin" or "probability".
      num_targets: 0 ascends the loss of the labels. Otherwise there is a run for each of this many
        other classes, in the order of the logits of the clean image. It ascends the targeted form
        of the loss (APGD-T). Any misclassification is a success.
      num_restarts: runs per target.
      num_noise_samples: noise samples that each gradient and each success check averages over.
      noise_chunk_size: noise samples evaluated at once; memory grows with it.
      noise_average: "loss" or "softmax", as for `jaxadv.attacks.pgd`.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      num_queries: budget of forward passes per example, where each noise sample counts as one.
        None is the cost of all runs.
      resume: result of an earlier call with a smaller budget and otherwise equal arguments. The
        attack continues from it, to the same result as an uninterrupted call.

    Returns:
      The iterate of each example with the largest margin, or the clean image if no margin was
      computed, with success and query counts. A query is a forward pass with its gradient.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> apgd(jax.random.key(0), logits_fn, x, y, eps=0.1, num_steps=10).success
    Array([ True], dtype=bool)
    """
    static: dict[str, Any] = {
        "num_steps": num_steps, "norm": norm, "loss": loss, "num_targets": num_targets,
        "num_restarts": num_restarts, "noise_chunk_size": noise_chunk_size,
        "noise_average": noise_average,
    }  # fmt: skip
    traced = {"eps": eps, "num_noise_samples": num_noise_samples, "num_queries": num_queries}
    check_apgd({**traced, **static})
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    check_apgd({**traced, **static}, model.num_classes)
    if num_queries is None:
        num_queries = max_queries({**traced, **static})
    images = inputs.images
    eps = jnp.asarray(eps, images.dtype)
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    no_targets = jnp.zeros_like(inputs.labels, shape=(len(images), num_targets))
    extras = _Extras(no_targets, initial_state(images, zeros, images, eps))
    result = resume_or_start(resume, initial_result(images, extras), eps, norm)
    if is_zero_budget(num_queries):
        return result
    budget = APGDBudget(
        eps, jnp.asarray(num_noise_samples, jnp.int32), jnp.asarray(num_queries, jnp.int32)
    )
    return _apgd(model, inputs, result, budget, options=APGDOptions(**static))


def check_apgd(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `apgd`."""
    check_arguments(arguments, num_classes, optional=("num_queries",))
    counts = {"num_steps": 100, "num_targets": 0, "num_restarts": 1, "num_noise_samples": 1}
    counts |= {name: value for name, value in arguments.items() if name in counts}
    check_at_least_one(num_steps=counts["num_steps"])
    counts["num_steps"] += 1  # the start of a run is a query too
    check_product(**{**counts, "num_targets": max(counts["num_targets"], 1)})


def max_queries(arguments: Arguments) -> Any:
    """Return the cost of all runs: one query per noise sample at each start and each step."""
    num_runs = arguments.get("num_restarts", 1) * max(arguments.get("num_targets", 0), 1)
    num_steps = arguments.get("num_steps", 100)
    return num_runs * (num_steps + 1) * arguments.get("num_noise_samples", 1)


@partial(jit_kernel, static_argnames="options")
def _apgd(
    model: TracedModel,
    inputs: Inputs,
    result: AttackResult,
    budget: APGDBudget,
    *,
    options: APGDOptions,
) -> AttackResult:
    key, images, labels, _, example_ids = inputs
    eps, num_noise_samples, num_queries = budget
    threat = THREATS[options.norm]
    noise = Noise(num_noise_samples, options.noise_chunk_size, options.noise_average)
    margin = make_objective("margin", labels, None)
    start_key, noise_key, rank_key = jax.random.split(key, 3)
    windows = checkpoint_windows(options.num_steps)
    run_length = options.num_steps + 1  # with the start
    last_step = options.num_restarts * max(options.num_targets, 1) * run_length
    result = rank_target_classes(result, rank_key, model, inputs, noise, num_queries)

    def active(result: AttackResult) -> Bool[Array, "batch"]:
        affordable = result.queries + num_noise_samples <= num_queries
        return ~result.success & (result.steps < last_step) & affordable

    def advance(result: AttackResult) -> AttackResult:
        # Rows that are behind catch up first: each takes the steps that it would take alone.
        rows = active(result)
        step = earliest_step(result, rows)
        rows = rows & (result.steps == step)
        run, i = step // run_length, step % run_length
        targets, state = result.extras
        if options.num_targets:
            target = targets[:, run // options.num_restarts]
            objective = make_targeted_objective(options.loss, labels, target)
        else:
            objective = make_objective(options.loss, labels, None)

        def start() -> Images:
            run_key = jax.random.fold_in(start_key, run)
            return random_on_sphere(threat, run_key, example_ids, images, eps)

        iterate = lax.cond(i == 0, start, lambda: take_step(threat, images, eps, state, i))
        losses, margins, gradient, nonfinite = expected_value_and_gradient(
            jax.random.fold_in(noise_key, step), model, objective, margin, iterate, noise
        )
        new_state = lax.cond(
            i == 0,
            lambda: initial_state(iterate, losses, gradient, eps),
            lambda: update_state(state, iterate, losses, gradient, jnp.asarray(windows)[i]),
        )
        moved = result._replace(
            success=margins > 0,
            queries=result.queries + num_noise_samples,
            gradients=result.gradients + num_noise_samples,
            nonfinite=result.nonfinite + nonfinite,
            steps=result.steps + 1,
            extras=_Extras(targets, new_state),
        )
        better = moved._replace(images=iterate, margins=margins)
        return select_rows(rows, select_rows(margins > result.margins, better, moved), result)

    result = lax.while_loop(lambda result: active(result).any(), advance, result)
    return lax.stop_gradient(result)


def take_step(
    threat: Threat, images: Images, eps: Float[Array, ""], state: APGDState, i: Int[Array, ""]
) -> Images:
    """Return the iterate after the i-th step of a run (equation 2 of the paper).

    The first step, i = 1, has no momentum.
    """
    iterate = state.iterate
    ahead = iterate + state.step_size[:, None, None, None] * threat.steepest(state.gradient)
    ahead = perturb(threat, images, ahead - images, eps)
    momentum = jnp.where(i == 1, 0, _MOMENTUM).astype(images.dtype)
    moved = iterate + (1 - momentum) * (ahead - iterate) + momentum * (iterate - state.previous)
    return perturb(threat, images, moved - images, eps)


def initial_state(
    iterate: Images, losses: PerExample, gradient: Images, eps: Float[Array, ""]
) -> APGDState:
    """Return the state at the start of a run."""
    return APGDState(
        iterate=iterate,
        previous=iterate,
        gradient=gradient,
        loss=losses,
        best=iterate,
        best_gradient=gradient,
        best_loss=losses,
        step_size=jnp.zeros_like(losses) + 2 * eps,
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


APGD = AttackSpec(
    attack_fn=apgd,
    run=apgd,
    traced=("eps", "num_noise_samples", "num_queries"),
    uses_gradients=True,
    max_queries=max_queries,
    resumable=True,
    check=check_apgd,
)
