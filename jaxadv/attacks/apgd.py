"""Auto-PGD: PGD with adaptive step sizes (Croce & Hein, 2020, and 2021 for L1)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from jaxadv.attacks.apgd_l1 import NUM_PHASES, l1_run
from jaxadv.attacks.apgd_run import Run, adaptive_run, with_odi
from jaxadv.attacks.checks import (
    Arguments,
    Inputs,
    as_radius,
    check_arguments,
    check_at_least_one,
    check_product,
    prepare,
)
from jaxadv.attacks.eot import Noise, expected_value_and_gradient
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.odi import check_odi, odi_objective
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    earliest_step,
    is_zero_budget,
    rank_target_classes,
    resume_or_start,
    select_rows,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, Radius
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective, make_targeted_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey


class APGDBudget(NamedTuple):
    """The traced arguments of APGD, see `apgd`."""

    eps: Radius
    num_noise_samples: Int[Array, ""]
    num_queries: Int[Array, ""]


@dataclass(frozen=True)
class APGDOptions:
    """The static arguments of APGD, see `apgd`."""

    num_steps: int
    norm: str
    loss: str
    num_targets: int
    num_odi_steps: int
    num_restarts: int
    noise_chunk_size: int
    noise_average: str


class _Extras(NamedTuple):
    targets: Int[Array, "batch targets"]
    state: PyTree


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
    num_odi_steps: int = 0,
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

    In L1 the steps are sparse, without momentum, and projected onto the intersection of the ball
    and the box (Croce & Hein, 2021). A run has three phases, in balls of radius 3 eps, 2 eps and
    eps, with 30, 30 and 40 % of the steps. The next phase starts at the projection of the best
    point. Only iterates of the last phase count.

    The reference implementation (`autopgd_base.py` of fra31/auto-attack) compares the first loss of
    the first window with 0; this one compares it with the loss at the start. With several noise
    samples the reference uses the loss of the last sample; this one uses their mean.

    Traced arguments: the arrays, `eps`, `num_noise_samples` and `num_queries`. All others are
    static.

    Args:
      key: key of the random starts, of the weights of ODI and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels); half precision is
        cast to single precision, and so is the result.
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range.
        An array of shape (batch,) gives each image its own radius. In L-inf an array of four axes
        that broadcasts to the images gives each value its own.
      num_steps: steps per run, after its start; in L1 two more gradients are at the starts of
        phases.
      norm: "linf", "l2" or "l1".
      loss: "cross_entropy", "dlr", "margin", "probability" or "probability_margin".
      num_targets: 0 ascends the loss of the labels. Otherwise there is a run for each of this many
        other classes, in the order of the logits of the clean image. It ascends the targeted form
        of the loss (APGD-T). Any misclassification is a success.
      num_odi_steps: steps of length eps that diversify the start of each run (ODI, Tashiro et al.,
        2020, who take 2), see `jaxadv.attacks.pgd`. They come before the `num_steps` steps. In
        L-inf and L2 only.
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
        "num_odi_steps": num_odi_steps, "num_restarts": num_restarts,
        "noise_chunk_size": noise_chunk_size, "noise_average": noise_average,
    }  # fmt: skip
    traced = {"eps": eps, "num_noise_samples": num_noise_samples, "num_queries": num_queries}
    check_apgd({**traced, **static})
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    check_apgd({**traced, **static}, model.num_classes)
    if num_queries is None:
        num_queries = max_queries({**traced, **static})
    images = inputs.images
    eps = as_radius("eps", eps, images, per_value=norm == "linf")
    no_targets = jnp.zeros_like(inputs.labels, shape=(len(images), num_targets))
    options = APGDOptions(**static)
    run = _make_run(images, inputs.example_ids, eps, options)
    extras = _Extras(no_targets, run.initial)
    result = resume_or_start(resume, initial_result(images, extras), eps, norm)
    if is_zero_budget(num_queries):
        return result
    budget = APGDBudget(
        eps, jnp.asarray(num_noise_samples, jnp.int32), jnp.asarray(num_queries, jnp.int32)
    )
    return _apgd(model, inputs, result, budget, options=options)


def check_apgd(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `apgd`."""
    check_arguments(arguments, num_classes, optional=("num_queries",))
    check_odi(arguments)
    counts = {"num_steps": 100, "num_targets": 0, "num_restarts": 1, "num_noise_samples": 1}
    counts |= {name: value for name, value in arguments.items() if name in counts}
    check_at_least_one(num_steps=counts["num_steps"])
    counts["num_steps"] += _num_starts(arguments)
    check_product(**{**counts, "num_targets": max(counts["num_targets"], 1)})


def max_queries(arguments: Arguments) -> Any:
    """Return the cost of all runs: one query per noise sample at each start and each step.

    It is at most `num_queries`, if that is given.
    """
    num_runs = arguments.get("num_restarts", 1) * max(arguments.get("num_targets", 0), 1)
    run_length = arguments.get("num_steps", 100) + _num_starts(arguments)
    cost = num_runs * run_length * arguments.get("num_noise_samples", 1)
    limit = arguments.get("num_queries")
    return cost if limit is None else min(cost, limit)


def _num_starts(arguments: Arguments) -> int:
    """Return the iterates of a run that are not among its steps; each is a query too."""
    if arguments.get("norm") == "l1":
        return NUM_PHASES
    return 1 + arguments.get("num_odi_steps", 0)


def _make_run(
    images: Images,
    example_ids: Int[Array, "batch"],
    eps: Radius,
    options: APGDOptions,
) -> Run:
    if options.norm == "l1":
        return l1_run(images, example_ids, eps, num_steps=options.num_steps)
    run = adaptive_run(images, example_ids, eps, norm=options.norm, num_steps=options.num_steps)
    if options.num_odi_steps:
        run = with_odi(run, THREATS[options.norm], images, eps, options.num_odi_steps)
    return run


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
    run = _make_run(images, example_ids, eps, options)
    noise = Noise(num_noise_samples, options.noise_chunk_size, options.noise_average)
    margin = make_objective("margin", labels, None)
    start_key, noise_key, rank_key, odi_key = jax.random.split(key, 4)
    last_step = options.num_restarts * max(options.num_targets, 1) * run.length
    result = rank_target_classes(result, rank_key, model, inputs, noise, num_queries)

    def active(result: AttackResult) -> Bool[Array, "batch"]:
        affordable = result.queries + num_noise_samples <= num_queries
        return ~result.success & (result.steps < last_step) & affordable

    def advance(result: AttackResult) -> AttackResult:
        # Rows that are behind catch up first: each takes the steps that it would take alone.
        rows = active(result)
        step = earliest_step(result, rows)
        rows = rows & (result.steps == step)
        number, i = step // run.length, step % run.length
        targets, state = result.extras
        if options.num_targets:
            target = targets[:, number // options.num_restarts]
            objective = make_targeted_objective(options.loss, labels, target)
        else:
            objective = make_objective(options.loss, labels, None)
        if options.num_odi_steps:
            objective = odi_objective(
                jax.random.fold_in(odi_key, number),
                example_ids,
                model.num_classes,
                options.noise_average,
                objective,
                i < options.num_odi_steps,
            )

        def start() -> Images:
            return run.start(jax.random.fold_in(start_key, number))

        iterate = lax.cond(i == 0, start, lambda: run.move(i, state))
        losses, margins, gradient, nonfinite = expected_value_and_gradient(
            jax.random.fold_in(noise_key, step), model, objective, margin, iterate, noise
        )
        margins = jnp.where(i < run.num_outside, -jnp.inf, margins)
        moved = result._replace(
            success=margins > 0,
            queries=result.queries + num_noise_samples,
            gradients=result.gradients + num_noise_samples,
            nonfinite=result.nonfinite + nonfinite,
            steps=result.steps + 1,
            extras=_Extras(targets, run.update(i, state, iterate, losses, gradient)),
        )
        better = moved._replace(images=iterate, margins=margins)
        return select_rows(rows, select_rows(margins > result.margins, better, moved), result)

    result = lax.while_loop(lambda result: active(result).any(), advance, result)
    return lax.stop_gradient(result)


APGD = AttackSpec(
    attack_fn=apgd,
    run=apgd,
    traced=("eps", "num_noise_samples", "num_queries"),
    uses_gradients=True,
    max_queries=max_queries,
    resumable=True,
    check=check_apgd,
)
