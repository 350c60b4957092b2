"""HopSkipJump: an attack on models that return labels only (Chen et al., 2020)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Int

from jaxadv.attacks.black_box import (
    BlackBox,
    QueryFn,
    TracedBlackBox,
    make_query_fn,
    query_context,
)
from jaxadv.attacks.checks import Arguments, as_starts, check_arguments
from jaxadv.attacks.distance_search import run_distance_search
from jaxadv.attacks.eot import Objective
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Proposal,
    SearchProblem,
    is_zero_budget,
    make_problem,
    resume_or_start,
    select_rows,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.rng import example_keys, normal, uniform
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_NORMS = ("l2", "linf")
_START, _BLEND, _PROJECT, _JUMP = range(4)  # phases
_BLEND_TOLERANCE = 1e-3  # of the share of the start in a blend
_CHUNKS = 10  # of the samples of the first gradient; a chunk is queried at once
_FIRST_RADIUS = 0.1  # of the samples of the first gradient
_LEAST_RADIUS = 2e-5  # per pixel, of the samples of a gradient
_LEAST_STEP = 1e-4  # of a jump, in units of the distance; below, the gradient is estimated again


@dataclass(frozen=True)
class HopSkipJumpOptions:
    """The static arguments of HopSkipJump, see `hop_skip_jump`."""

    initial_samples: int
    norm: str
    early_stop: bool


class _Extras(NamedTuple):
    """The state of a search; every array has one row per example.

    Attributes:
      phase: `_START` looks for a misclassified image. `_BLEND` moves it towards the clean image.
        `_PROJECT` moves it to the decision boundary. `_JUMP` leaves the boundary along a gradient.
      point: the misclassified image that the phase starts from.
      low, high: ends of the bisection, as a share of the way or as a distance.
      reach: distance of the image that was last moved to the boundary.
      round: number of the current jump, from 1.
      direction: of the jump.
      step: length of the jump.
      has_direction: whether the direction of this jump was estimated.
      distance: to the nearest misclassified image found; infinite without one.
    """

    phase: Int[Array, "batch"]
    point: Images
    low: PerExample
    high: PerExample
    reach: PerExample
    round: Int[Array, "batch"]
    direction: Images
    step: PerExample
    has_direction: Bool[Array, "batch"]
    distance: PerExample


def hop_skip_jump(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_queries: ArrayLike,
    initial_samples: int = 100,
    norm: str = "l2",
    early_stop: bool = True,
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    starts: Images | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run HopSkipJump (Chen et al., 2020): walk along the decision boundary, by labels alone.

    The attack starts at uniform noise that is misclassified and moves it to the boundary by
    bisection. It then estimates the direction of the boundary's normal from the labels of random
    neighbours, jumps along it, half as far until the image is misclassified, and returns to the
    boundary by bisection. The number of neighbours grows with the square root of the number of
    jumps, in steps of a tenth of the first. An example for which no misclassified start is found
    ends with its budget.

    Differences from the reference implementation: it halves a jump until it is misclassified; here
    another direction is estimated after a jump of 0.0001 of the distance. The neighbours are at
    least 2e-5 away per pixel, which float32 still resolves. Given starts are blended with the clean
    image first, like noise.

    Args:
      key: key of the start, of the neighbours and of the model's noise.
      logits_fn: `(key, images) -> logits` or a `BlackBox`, see `jaxadv.attacks.nes`. For label-only
        access return one-hot vectors.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: distance up to which a misclassified image is a success, in units of the pixel range,
        one for all images or an array of shape (batch,); None is any distance; traced.
      num_queries: budget of forward passes per example; traced.
      initial_samples: neighbours in the first round; static.
      norm: "l2" or "linf"; static.
      early_stop: end an example with its first image within eps; without eps, and with False, it
        spends the budget, for the smallest distance; static.
      num_noise_samples: noise samples that each success check averages over; traced.
      targets: target classes, shape (batch,); then `starts` should be images of these classes.
      starts: misclassified images, or images of the targets, to begin at; same shape as `images`.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      resume: result of an earlier call with a smaller budget.

    Returns:
      The nearest misclassified image of each example within eps, or the clean image if none was
      found, with success and query counts. `extras.distance` is the distance to the nearest
      misclassified image found, also beyond eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> hop_skip_jump(jax.random.key(0), logits_fn, x, y, eps=0.5, num_queries=500).success
    Array([ True], dtype=bool)
    """
    check_hop_skip_jump({
        "eps": eps, "num_queries": num_queries, "initial_samples": initial_samples,
        "norm": norm, "early_stop": early_stop, "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids,
        eps=jnp.inf if eps is None else eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    starts = as_starts(starts, problem.images)
    initial = initial_result(problem.images, _initial_extras(problem.images))
    state = resume_or_start(resume, initial, problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    options = HopSkipJumpOptions(initial_samples, norm, early_stop and eps is not None)
    with query_context():
        return _hop_skip_jump(model, problem, state, starts, options=options)


def check_hop_skip_jump(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `hop_skip_jump`."""
    check_arguments(arguments, num_classes, norms=_NORMS, optional=("eps",))


def _initial_extras(images: Images) -> _Extras:
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    numbers = zeros.astype(jnp.int32)
    return _Extras(
        phase=numbers + _START,
        point=images,
        low=zeros,
        high=zeros,
        reach=zeros,
        round=numbers,
        direction=jnp.zeros_like(images),
        step=zeros,
        has_direction=zeros > 0,
        distance=zeros + jnp.inf,
    )


@partial(jit_kernel, static_argnames="options")
def _hop_skip_jump(
    model: TracedModel | TracedBlackBox,
    problem: SearchProblem,
    state: AttackResult,
    starts: Images | None,
    *,
    options: HopSkipJumpOptions,
) -> AttackResult:
    images, norm = problem.images, options.norm
    threat, size = THREATS[norm], math.prod(images.shape[1:])
    query_fn = make_query_fn(model)
    margin = make_objective("margin", problem.labels, problem.targets)
    start_key, gradient_key, check_key = jax.random.split(problem.key, 3)
    chunk_size = max(options.initial_samples // _CHUNKS, 1)
    # theta of the paper, with gamma = 1
    tolerance = 1 / (size * (math.sqrt(size) if norm == "l2" else size))

    def length(moved: Images) -> PerExample:
        return threat.length(moved - images)[:, 0, 0, 0]

    def num_samples(extras: _Extras) -> Int[Array, "batch"]:
        grown = options.initial_samples * jnp.sqrt(extras.round.astype(jnp.float32))
        count = chunk_size * (grown / chunk_size).astype(jnp.int32)
        needs_direction = (extras.phase == _JUMP) & ~extras.has_direction
        return jnp.where(needs_direction, count, 0)

    def between(extras: _Extras, share: PerExample) -> Images:
        """Return the image of a bisection: a blend, or the point clipped to a smaller ball."""
        delta, share = extras.point - images, share[:, None, None, None]
        clipped = share * delta if norm == "l2" else jnp.clip(delta, -share, share)
        is_blend = (extras.phase == _BLEND)[:, None, None, None]
        return images + jnp.where(is_blend, share * delta, clipped)

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        extras = state.extras
        samples = jnp.where(active, num_samples(extras), 0)
        rows = samples > 0

        def estimate() -> Images:
            radius = extras.reach * tolerance * (math.sqrt(size) if norm == "l2" else size)
            radius = jnp.maximum(radius, _LEAST_RADIUS * math.sqrt(size))
            radius = jnp.where(extras.round == 1, _FIRST_RADIUS, radius)
            direction = _estimate_direction(
                jax.random.fold_in(gradient_key, step),
                query_fn,
                margin,
                extras.point,
                problem.example_ids,
                samples,
                chunk_size,
                radius,
                norm,
            )
            return jnp.where(rows[:, None, None, None], direction, extras.direction)

        direction = lax.cond(rows.any(), estimate, lambda: extras.direction)
        extras = extras._replace(direction=direction, has_direction=extras.has_direction | rows)
        keys = example_keys(jax.random.fold_in(start_key, step), problem.example_ids)
        noise = (1 + jax.vmap(partial(uniform, shape=images.shape[1:]))(keys)) / 2
        start = noise if starts is None else jnp.where(step == 1, starts, noise)
        jump = extras.point + extras.step[:, None, None, None] * threat.steepest(images, direction)
        moved = between(extras, (extras.low + extras.high) / 2)
        is_jump, is_start = (
            (extras.phase == phase)[:, None, None, None] for phase in (_JUMP, _START)
        )
        candidates = jnp.where(is_start, start, jnp.where(is_jump, jump, moved))
        return Proposal(jnp.clip(candidates, 0, 1), extras, jnp.zeros_like(state.nonfinite))

    def advance(extras: _Extras, candidates: Images, is_wrong: Bool[Array, "batch"]) -> _Extras:
        """Return the state after the success check of a candidate."""
        middle = (extras.low + extras.high) / 2
        low = jnp.where(is_wrong, extras.low, middle)
        high = jnp.where(is_wrong, middle, extras.high)
        threshold = tolerance if norm == "l2" else tolerance * jnp.minimum(extras.reach, 1)
        threshold = jnp.where(extras.phase == _BLEND, _BLEND_TOLERANCE, threshold)
        halved = extras._replace(low=low, high=high)
        # At the resolution of floats the middle is one of the ends.
        is_narrow = (high - low <= threshold) | (middle == extras.low) | (middle == extras.high)
        end = jnp.clip(between(extras, high), 0, 1)
        begun = extras._replace(
            phase=jnp.full_like(extras.phase, _BLEND),
            point=candidates,
            low=jnp.zeros_like(low),
            high=jnp.ones_like(high),
        )
        shorter = extras._replace(step=extras.step / 2)
        is_stuck = extras.step < _LEAST_STEP * length(extras.point)
        shorter = select_rows(is_stuck, jump_from(extras, extras.point), shorter)
        is_bisection = (extras.phase == _BLEND) | (extras.phase == _PROJECT)
        after_bisection = select_rows(
            is_narrow,
            select_rows(extras.phase == _BLEND, project(extras, end), jump_from(extras, end)),
            halved,
        )
        after_jump = select_rows(is_wrong, project(extras, candidates), shorter)
        new = select_rows(extras.phase == _JUMP, after_jump, select_rows(is_wrong, begun, extras))
        return select_rows(is_bisection, after_bisection, new)

    def project(extras: _Extras, point: Images) -> _Extras:
        """Return the start of the bisection that moves a misclassified image to the boundary."""
        reach = length(point)
        return extras._replace(
            phase=jnp.full_like(extras.phase, _PROJECT),
            point=point,
            low=jnp.zeros_like(reach),
            high=jnp.ones_like(reach) if norm == "l2" else reach,
            reach=reach,
        )

    def jump_from(extras: _Extras, point: Images) -> _Extras:
        """Return the start of the next jump, from a point at the boundary."""
        number = extras.round + 1
        return extras._replace(
            phase=jnp.full_like(extras.phase, _JUMP),
            point=point,
            round=number,
            step=length(point) / jnp.sqrt(number.astype(point.dtype)),
            has_direction=jnp.zeros_like(extras.has_direction),
        )

    return run_distance_search(
        check_key,
        query_fn,
        margin,
        problem,
        state,
        propose=propose,
        cost=lambda state: num_samples(state.extras),
        advance=advance,
        initial_extras=_initial_extras(images),
        norm=norm,
        early_stop=options.early_stop,
    )


class _Sums(NamedTuple):
    """Sums over the samples of a direction: of signs, of offsets, and of their products."""

    signs: PerExample
    offsets: Images
    products: Images


def _estimate_direction(
    key: PRNGKey,
    query_fn: QueryFn,
    margin: Objective,
    points: Images,
    example_ids: Int[Array, "batch"],
    num_samples: Int[Array, "batch"],
    chunk_size: int,
    radius: PerExample,
    norm: str,
) -> Images:
    """Estimate the normal of the decision boundary at some points from labels (equation 16).

    The mean sign of the samples is subtracted as a control variate, unless all signs are equal. The
    numbers of samples are multiples of the chunk size.
    """
    direction_key, noise_key = jax.random.split(key)
    keys = example_keys(direction_key, example_ids)
    sample = partial(normal if norm == "l2" else uniform, shape=points.shape[1:])
    radii = radius[:, None, None, None]

    def neighbours(number: Int[Array, ""]) -> Images:
        offsets = jax.vmap(lambda key: sample(jax.random.fold_in(key, number)))(keys)
        offsets /= jnp.maximum(THREATS["l2"].length(offsets), jnp.finfo(offsets.dtype).tiny)
        return jnp.clip(points + radii * offsets, 0, 1)

    def add(i: Int[Array, ""], sums: _Sums) -> _Sums:
        rows = i * chunk_size < num_samples
        numbers = i * chunk_size + jnp.arange(chunk_size, dtype=jnp.int32)
        moved = jax.vmap(neighbours)(numbers)
        logits = query_fn(example_keys(noise_key, numbers), moved, rows)
        signs = jnp.where(jax.vmap(margin)(logits) > 0, 1.0, -1.0).astype(points.dtype)
        offsets = (moved - points) / jnp.maximum(radii, jnp.finfo(radii.dtype).tiny)
        more = _Sums(
            sums.signs + signs.sum(axis=0),
            sums.offsets + offsets.sum(axis=0),
            sums.products + (signs[..., None, None, None] * offsets).sum(axis=0),
        )
        return select_rows(rows, more, sums)

    zeros = jnp.zeros_like(points)
    start = _Sums(jnp.zeros_like(radius), zeros, zeros)
    sums = lax.fori_loop(0, num_samples.max(initial=0) // chunk_size, add, start)
    count = jnp.maximum(num_samples, 1).astype(radius.dtype)
    mean_sign = sums.signs / count
    baseline = jnp.where(jnp.abs(mean_sign) == 1, 0, mean_sign)[:, None, None, None]
    return (sums.products - baseline * sums.offsets) / count[:, None, None, None]


HOP_SKIP_JUMP = AttackSpec(
    attack_fn=hop_skip_jump,
    run=hop_skip_jump,
    traced=("eps", "num_queries", "num_noise_samples"),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    norms=_NORMS,
    resumable=True,
    returns_clean=True,
    measures_distance=True,
    check=check_hop_skip_jump,
)
