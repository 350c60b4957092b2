"""Fast adaptive boundary attack (FAB): find the nearest adversarial image (Croce & Hein, 2020)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.bisection import bisect
from jaxadv.attacks.checks import (
    Arguments,
    Inputs,
    as_radius,
    check_arguments,
    check_at_least_one,
    check_product,
    prepare,
)
from jaxadv.attacks.eot import Noise, Objective, finite_or_zero
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    earliest_step,
    forget_unconfirmed,
    is_zero_budget,
    rank_target_classes,
    resume_or_start,
    select_rows,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import DUALS, THREATS, random_on_sphere
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective, make_targeted_objective
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey

_ETA = 1.05  # overshoot beyond the linearised decision boundary
_BETA = 0.9  # share of the distance to the clean image that a backward step keeps
_ALPHA_MAX = 0.1  # largest weight of the projection of the clean image
_QUERIES_PER_STEP = 2  # one of them with its gradients
_TINY = 1e-8


class FABBudget(NamedTuple):
    """The traced arguments of FAB, see `fab`; `eps` is infinite for None."""

    eps: Float[Array, ""] | PerExample
    num_queries: Int[Array, ""]


@dataclass(frozen=True)
class FABOptions:
    """The static arguments of FAB, see `fab`."""

    num_steps: int
    norm: str
    num_targets: int
    num_restarts: int
    early_stop: bool


class _Extras(NamedTuple):
    targets: Int[Array, "batch targets"]
    iterate: Images
    distance: PerExample  # to the nearest misclassified image found; infinite without one


def fab(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_steps: int = 100,
    norm: str = "linf",
    num_targets: int = 9,
    num_restarts: int = 1,
    early_stop: bool = True,
    example_ids: Int[Array, "batch"] | None = None,
    num_queries: ArrayLike | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run the fast adaptive boundary attack (Croce & Hein, 2020) for the nearest adversarial image.

    There is a run for each of the `num_targets` most likely other classes (FAB-T). Each step
    linearises the decision boundary to the target. It projects the iterate and the clean image onto
    this hyperplane within the box [0, 1], and moves to a weighted mean of the two points, slightly
    beyond the hyperplane. From a misclassified image it then returns a tenth of the way to the
    clean image. An image that is misclassified without a perturbation is a success at distance 0,
    at the cost of one query. Without targets each step uses the boundary that is nearest by its
    linearisation, which needs the gradients of all classes.

    Traced arguments: the arrays, `eps` and `num_queries`. All others are static. The model's noise,
    if any, is sampled for every query and not averaged.

    Args:
      key: key of the restarts and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels); half precision is
        cast to single precision, and so is the result.
      labels: true classes, shape (batch,).
      eps: distance up to which a misclassified image is a success, in units of the pixel range,
        one for all images or an array of shape (batch,); None is any distance.
      num_steps: steps per run.
      norm: "linf", "l2" or "l1".
      num_targets: number of target classes, tried one after another; 0 uses the nearest boundary
        in each step.
      num_restarts: runs per target. All but the first start at a random point, at half the distance
        of the nearest misclassified image found, or at eps / 2 if that is less.
      early_stop: end an example with its first success; False takes all steps, for the smallest
        distance.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      num_queries: budget of forward passes per example. None is the cost of all runs: 2 forward
        passes per step, one of them with its gradient, or without targets with the gradients of all
        other classes.
      resume: result of an earlier call with a smaller budget and otherwise equal arguments. The
        attack continues from it, to the same result as an uninterrupted call.

    Returns:
      The nearest misclassified image of each example within eps, or the clean image if none was
      found, with success and query counts. `extras.distance` is the distance to the nearest
      misclassified image found, also beyond eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> fab(jax.random.key(0), logits_fn, x, y, num_steps=10, num_targets=1).success
    Array([ True], dtype=bool)
    """
    static: dict[str, Any] = {
        "num_steps": num_steps, "norm": norm, "num_targets": num_targets,
        "num_restarts": num_restarts, "early_stop": early_stop,
    }  # fmt: skip
    traced = {"eps": eps, "num_queries": num_queries}
    check_fab({**traced, **static})
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    check_fab({**traced, **static}, model.num_classes)
    if num_queries is None:
        num_queries = max_queries(static)
    images = inputs.images
    eps = as_radius("eps", eps, images)
    no_targets = jnp.zeros_like(inputs.labels, shape=(len(images), num_targets))
    no_distance = jnp.full_like(images[:, 0, 0, 0], jnp.inf)
    initial = initial_result(images, _Extras(no_targets, images, no_distance))
    result = resume_or_start(resume, initial, eps, norm)
    if is_zero_budget(num_queries):
        return result
    budget = FABBudget(eps, jnp.asarray(num_queries, jnp.int32))
    return _fab(model, inputs, result, budget, options=FABOptions(**static))


def check_fab(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `fab`."""
    check_arguments(arguments, num_classes, optional=("eps", "num_queries"))
    counts = {"num_steps": 100, "num_targets": 9, "num_restarts": 1}
    counts |= {name: value for name, value in arguments.items() if name in counts}
    check_at_least_one(num_steps=counts["num_steps"])
    counts["num_targets"] = max(counts["num_targets"], 1)
    check_product(**counts, queries_per_step=_QUERIES_PER_STEP)


def max_queries(arguments: Arguments) -> int:
    """Return the cost of all runs in forward passes, at most `num_queries` if that is given."""
    num_runs = max(arguments.get("num_targets", 9), 1) * arguments.get("num_restarts", 1)
    cost = _QUERIES_PER_STEP * arguments.get("num_steps", 100) * num_runs
    limit = arguments.get("num_queries")
    return cost if limit is None else min(cost, limit)


@partial(jit_kernel, static_argnames="options")
def _fab(
    model: TracedModel,
    inputs: Inputs,
    result: AttackResult,
    budget: FABBudget,
    *,
    options: FABOptions,
) -> AttackResult:
    key, images, labels, _, example_ids = inputs
    eps, num_queries = budget
    threat = THREATS[options.norm]
    margin = make_objective("margin", labels, None)
    start_key, noise_key, rank_key = jax.random.split(key, 3)
    last_step = options.num_steps * max(options.num_targets, 1) * options.num_restarts
    result = forget_unconfirmed(result, eps)
    result = rank_target_classes(result, rank_key, model, inputs, Noise(1, 1, "loss"), num_queries)
    is_clean = result.success & (result.steps == 0)
    distance = jnp.where(is_clean, 0, result.extras.distance)
    result = result._replace(extras=result.extras._replace(distance=distance))

    def active(result: AttackResult) -> Bool[Array, "batch"]:
        affordable = result.queries + _QUERIES_PER_STEP <= num_queries
        done = result.success & (options.early_stop | (result.extras.distance == 0))
        return ~done & (result.steps < last_step) & affordable

    def advance(result: AttackResult) -> AttackResult:
        # Rows that are behind catch up first: each takes the steps that it would take alone.
        rows = active(result)
        step = earliest_step(result, rows)
        rows = rows & (result.steps == step)
        run, i = step // options.num_steps, step % options.num_steps
        extras = result.extras
        if options.num_targets:
            target = extras.targets[:, run // options.num_restarts]
            linearise = partial(
                _linearise_target, make_targeted_objective("margin", labels, target)
            )
        else:
            linearise = partial(linearise_nearest, labels, options.norm)

        def start() -> Images:
            radius = jnp.minimum(extras.distance, eps) / 2
            is_random = jnp.isfinite(radius) & (run % options.num_restarts > 0)
            radius = jnp.where(is_random, radius, 0)
            run_key = jax.random.fold_in(start_key, run)
            return random_on_sphere(threat, run_key, example_ids, images, radius)

        iterate = lax.cond(i == 0, start, lambda: extras.iterate)
        gradient_key, check_key = jax.random.split(jax.random.fold_in(noise_key, step))
        boundary = linearise(partial(model, gradient_key), iterate)
        iterate = _step_across(boundary, images, iterate, options.norm)
        margins = margin(model(check_key, iterate)).astype(images.dtype)
        distance = threat.length(iterate - images)[:, 0, 0, 0]
        is_wrong = margins > 0
        is_nearer = is_wrong & (distance < extras.distance)
        backward = images + _BETA * (iterate - images)
        moved = result._replace(
            queries=result.queries + _QUERIES_PER_STEP,
            gradients=result.gradients + boundary.num_gradients,
            nonfinite=result.nonfinite + boundary.nonfinite,
            steps=result.steps + 1,
            extras=extras._replace(
                iterate=jnp.where(is_wrong[:, None, None, None], backward, iterate),
                distance=jnp.where(is_nearer, distance, extras.distance),
            ),
        )
        better = moved._replace(images=iterate, margins=margins, success=is_wrong)
        accepted = select_rows(is_nearer & (distance <= eps), better, moved)
        return select_rows(rows, accepted, result)

    result = lax.while_loop(lambda result: active(result).any(), advance, result)
    return lax.stop_gradient(result)


class Boundary(NamedTuple):
    """A decision boundary, linearised at an iterate: the hyperplane where a function is zero.

    Attributes:
      normal: gradient of the linear function of the perturbation.
      values: its values at the iterate.
      num_gradients: gradients per example that were computed.
      nonfinite: gradients among them that were NaN or infinite.
    """

    normal: Images
    values: PerExample
    num_gradients: int
    nonfinite: Int[Array, "batch"]


def _linearise_target(
    margin: Objective, logits_fn: Callable[[Images], Logits], iterate: Images
) -> Boundary:
    """Linearise the boundary to the target class."""

    def total_margin(images: Images) -> tuple[Float[Array, ""], PerExample]:
        values = margin(logits_fn(images))
        return values.sum(), values

    normal, values = jax.grad(total_margin, has_aux=True)(iterate)
    normal, nonfinite = finite_or_zero(normal)
    values = jnp.where(jnp.isfinite(values), values, 0).astype(iterate.dtype)
    return Boundary(normal, values, 1, nonfinite.astype(jnp.int32))


def linearise_nearest(
    labels: Labels, norm: str, logits_fn: Callable[[Images], Logits], iterate: Images
) -> Boundary:
    """Linearise the boundaries to all other classes, and return the nearest."""
    rows = jnp.arange(len(iterate), dtype=jnp.int32)

    def margins(images: Images) -> Float[Array, "batch classes"]:
        logits = logits_fn(images)
        return logits - logits[rows, labels][:, None]

    values, pull_back = jax.vjp(margins, iterate)
    classes = jnp.eye(values.shape[1], dtype=values.dtype)
    # Derived from the values, so that they vary over the same axes of a mesh.
    cotangents = classes[:, None] + jnp.zeros_like(values)
    normals, nonfinite = finite_or_zero(jax.vmap(pull_back)(cotangents)[0])
    values = jnp.where(jnp.isfinite(values), values, 0)
    # Scaled first, with one factor for all classes: squares would leave the range of floats.
    largest = jnp.abs(normals).max(axis=(0, 2, 3, 4))[:, None, None, None]
    scaled = normals / jnp.where(largest > 0, largest, 1)
    dual_norm = jax.vmap(THREATS[DUALS[norm]].length)(scaled)[:, :, 0, 0, 0] + _TINY
    is_label = jnp.arange(values.shape[1], dtype=labels.dtype) == labels[:, None]
    nearest = jnp.where(is_label, jnp.inf, jnp.abs(values) / dual_norm.T).argmin(axis=1)
    # The margin of the label itself is constant and needs no gradient.
    num_nonfinite = jnp.where(is_label.T, False, nonfinite).sum(axis=0, dtype=jnp.int32)
    value = values[rows, nearest].astype(iterate.dtype)
    return Boundary(normals[nearest, rows], value, values.shape[1] - 1, num_nonfinite)


def _step_across(boundary: Boundary, images: Images, iterate: Images, norm: str) -> Images:
    """Return the iterate after a step beyond the linearised boundary (algorithm 1 of the paper)."""
    normal, values = boundary.normal, boundary.values
    length = THREATS[norm].length
    from_iterate = project_onto_hyperplane(iterate, normal, -values, norm)
    offset = (normal * (images - iterate)).sum(axis=(1, 2, 3))
    from_clean = project_onto_hyperplane(images, normal, -values - offset, norm)
    near, far = (jnp.maximum(length(delta), _TINY) for delta in (from_iterate, from_clean))
    alpha = jnp.minimum(near / (near + far), _ALPHA_MAX)
    ahead, ahead_of_clean = iterate + _ETA * from_iterate, images + _ETA * from_clean
    return jnp.clip((1 - alpha) * ahead + alpha * ahead_of_clean, 0.0, 1.0)


def project_onto_hyperplane(
    images: Images, normal: Images, increase: PerExample, norm: str
) -> Images:
    """Return the smallest perturbations within [0, 1] that change a linear function by `increase`.

    Each pixel moves along its weight w_i until it meets the box: by a common amount t in L-inf, by
    t |w_i| in L2. The increase is a concave, piecewise linear function of t. Newton's method from
    the left reaches the solution exactly once no further pixel meets the box. In L1 the pixels with
    the largest weights move to the box, and those with the next weight as far as it takes. If the
    box contains no solution, all pixels move to its faces.

    Args:
      images: points in [0, 1], shape (batch, height, width, channels).
      normal: gradients of the linear functions, of the same shape.
      increase: required change of the functions, shape (batch,); negative for a decrease.
      norm: "linf", "l2" or "l1".
    """
    # Scaled first: squares of tiny or huge weights would leave the range of floats.
    largest = jnp.abs(normal).max(axis=(1, 2, 3), keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    normal, increase = normal / largest, increase / largest[:, 0, 0, 0]
    normal = jnp.where(increase[:, None, None, None] < 0, -normal, normal)
    weight, required = jnp.abs(normal), jnp.abs(increase)
    room = jnp.where(normal > 0, 1 - images, images)
    is_out_of_reach = _per_image(required > _sum(weight * room))
    if norm == "l1":
        move = _largest_weights_first(weight, room, required)
    else:
        move = _along_weights(weight, room, required, norm)
    return jnp.sign(normal) * jnp.where(is_out_of_reach, room, move)


def _largest_weights_first(weight: Images, room: Images, required: PerExample) -> Images:
    """Return moves of the least sum that increase the function, the largest weights first."""
    reach = weight * room

    def is_too_low(least: Array) -> Array:
        reached = jnp.where(weight >= least, reach, 0).sum(axis=(1, 2, 3), keepdims=True)
        return reached > _per_image(required)

    ones = jnp.ones_like(_per_image(required))
    low, high = bisect(is_too_low, 0 * ones, 2 * ones)  # the weights are at most 1
    is_first, is_next = weight >= high, (weight >= low) & (weight < high) & (weight > 0)
    missing = required - _sum(jnp.where(is_first, reach, 0))
    available = _sum(jnp.where(is_next, reach, 0))
    share = jnp.clip(missing / jnp.where(available > 0, available, 1), 0, 1)
    return room * jnp.where(is_first, 1, jnp.where(is_next, _per_image(share), 0))


def _along_weights(weight: Images, room: Images, required: PerExample, norm: str) -> Images:
    """Return moves by a common amount in L-inf, or in proportion to the weights in L2."""
    speed = jnp.ones_like(weight) if norm == "linf" else weight
    speed = jnp.where(weight > 0, speed, 0)

    def newton_step(
        state: tuple[PerExample, Bool[Array, "batch"]],
    ) -> tuple[PerExample, Bool[Array, "batch"]]:
        t, is_growing = state
        move = speed * _per_image(t)
        gain = _sum(weight * jnp.minimum(move, room))
        slope = _sum(weight * jnp.where(move < room, speed, 0))
        step = jnp.where(slope > 0, (required - gain) / jnp.where(slope > 0, slope, 1), 0)
        # A converged row keeps its value, so that it does not depend on the rest of the batch.
        new_t = jnp.where(is_growing, jnp.maximum(t + step, t), t)
        return new_t, new_t > t * (1 + 1e-6)

    start = jnp.zeros_like(required), jnp.ones_like(required, bool)
    t, _ = lax.while_loop(lambda state: state[1].any(), newton_step, start)
    return jnp.minimum(speed * _per_image(t), room)


def _sum(images: Images) -> PerExample:
    return images.sum(axis=(1, 2, 3))


def _per_image(values: Array) -> Array:
    return values[:, None, None, None]


FAB = AttackSpec(
    attack_fn=fab,
    run=fab,
    traced=("eps", "num_queries"),
    uses_gradients=True,
    max_queries=max_queries,
    resumable=True,
    returns_clean=True,
    measures_distance=True,
    check=check_fab,
)
