"""Fast adaptive boundary attack: the nearest misclassified image (Croce & Hein 2020)."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.arguments import (
    Arguments,
    check_arguments,
    check_at_least_one,
    check_total,
)
from jaxadv.attacks.boundary import nearest_on_plane
from jaxadv.attacks.expectation import Noise, Objective, finite_or_zero
from jaxadv.attacks.inputs import Inputs, prepare
from jaxadv.attacks.queries import (
    Queried,
    begin,
    buys_nothing,
    earliest_step,
    go_on,
    select,
)
from jaxadv.attacks.targets import rank_classes
from jaxadv.attacks.threat import THREATS, random_on_sphere
from jaxadv.attacks.tracing import TracedModel
from jaxadv.losses import make_objective, make_targeted_objective
from jaxadv.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey

_OVERSHOOT = 1.05  # eta: how far beyond the linearised boundary a step goes
_BACK = 0.9  # beta: how much of the way to a misclassified image is kept
_LARGEST_PULL = 0.1  # alpha_max: of the step from the clean image, against that from here
_QUERIES_OF_STEP = 2  # one of them with its gradients
_TINY = 1e-8


class _Memory(NamedTuple):
    targets: Int[Array, "batch targets"]
    here: Images
    distance: PerExample  # of the nearest misclassified image; infinite where there is none


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
    resume: Queried | None = None,
) -> Queried:
    """Returns the nearest misclassified images that walks along the boundary find.

    There is an attempt for each of the `num_targets` likeliest other classes (FAB-T). Each step
    takes the boundary to the target for a plane, moves to a mean of the points of it that are
    nearest to where it is and to the clean image, both inside of the box, and goes a little beyond.
    From a misclassified image it goes back a tenth of the way to the clean one. An image that is
    misclassified as it stands is a success at distance 0, which takes one query. Without targets
    each step takes the boundary that is nearest by its linearisation, which asks for the gradients
    of all classes.

    Static are all arguments but the arrays, `eps` and `num_queries`. The model's noise, if it has
    any, is drawn anew at each query and not averaged.

    Args:
      key: randomness of the restarts and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels); half precision is
        cast to single, and so is the result.
      labels: true classes, shape (batch,).
      eps: distance at which a misclassified image is a success; None is any distance.
      num_steps: steps of each attempt.
      norm: "linf" or "l2".
      num_targets: how many classes are tried, one after another; 0 is the nearest in each step.
      num_restarts: attempts for each target; all but the first begin at a random point, half as
        far away as what was found, or as eps.
      early_stop: an example is done with its first success; False takes all steps, for the
        smallest distance.
      example_ids: distinct numbers of the examples, shape (batch,), by default their positions.
      num_queries: a budget for each example; None is all that the attempts take: 2 passes for each
        step, one of them with its gradient, or without targets with that of every other class.
      resume: result of an earlier call with a smaller budget and else the same arguments: the
        search goes on from there, to the same result as if it had never stopped.

    Returns:
      For each example the nearest misclassified image within eps, the clean one where none was
      found, and the ledger; `memory.distance` is that of the nearest at all.

    Raises:
      ValueError: a shape, a range or a name that is not as above.
    """
    arguments = {
        "eps": eps, "num_steps": num_steps, "norm": norm, "num_targets": num_targets,
        "num_restarts": num_restarts, "early_stop": early_stop, "num_queries": num_queries,
    }  # fmt: skip
    check_fab(arguments)
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    check_fab(arguments, model.num_classes)
    if num_queries is None:
        num_queries = whole_budget(num_steps, num_targets, num_restarts)
    images = inputs.images
    eps = jnp.asarray(jnp.inf if eps is None else eps, images.dtype)
    no_targets = jnp.zeros_like(inputs.labels, shape=(len(images), num_targets))
    nowhere = jnp.full_like(images[:, 0, 0, 0], jnp.inf)
    first = begin(images, _Memory(no_targets, images, nowhere))
    found = go_on(resume, first, eps, norm)
    if buys_nothing(num_queries):
        return found
    return _fab(
        model,
        inputs,
        found,
        eps,
        jnp.asarray(num_queries, jnp.int32),
        num_steps=num_steps,
        norm=norm,
        num_targets=num_targets,
        num_restarts=num_restarts,
        early_stop=early_stop,
    )


def check_fab(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raises a ValueError that names what `fab` cannot be asked."""
    check_arguments(arguments, num_classes, optional=("eps", "num_queries"))
    given = {"num_steps": 100, "num_targets": 9, "num_restarts": 1}
    given |= {name: value for name, value in arguments.items() if name in given}
    check_at_least_one(num_steps=given["num_steps"])
    check_total(
        **{**given, "num_targets": max(given["num_targets"], 1)}, queries_per_step=_QUERIES_OF_STEP
    )


def whole_budget(num_steps: int, num_targets: int, num_restarts: int) -> int:
    """Returns the passes that all attempts take."""
    return _QUERIES_OF_STEP * num_steps * max(num_targets, 1) * num_restarts


_STATIC = ("num_steps", "norm", "num_targets", "num_restarts", "early_stop")


@partial(jax.jit, static_argnames=_STATIC)
def _fab(
    model: TracedModel,
    inputs: Inputs,
    found: Queried,
    eps: Float[Array, ""],
    num_queries: Int[Array, ""],
    *,
    num_steps: int,
    norm: str,
    num_targets: int,
    num_restarts: int,
    early_stop: bool,
) -> Queried:
    key, images, labels, _, example_ids = inputs
    threat = THREATS[norm]
    margin = make_objective("margin", labels, None)
    start_key, noise_key, rank_key = jax.random.split(key, 3)
    last = num_steps * max(num_targets, 1) * num_restarts
    found = _withdraw(found, eps)
    found = rank_classes(found, rank_key, model, inputs, Noise(1, 1, "loss"), num_queries)
    at_once = found.success & (found.steps == 0)
    distance = jnp.where(at_once, 0, found.memory.distance)
    found = found._replace(memory=found.memory._replace(distance=distance))

    def active(found: Queried) -> Bool[Array, "batch"]:
        affordable = found.queries + _QUERIES_OF_STEP <= num_queries
        done = found.success & (early_stop | (found.memory.distance == 0))
        return ~done & (found.steps < last) & affordable

    def advance(found: Queried) -> Queried:
        # Rows that are behind first catch up: each takes its steps as it would alone.
        ready = active(found)
        step = earliest_step(found, ready)
        rows = ready & (found.steps == step)
        number, i = step // num_steps, step % num_steps
        if num_targets:
            target = found.memory.targets[:, number // num_restarts]
            plane_fn = partial(_plane_to, make_targeted_objective("margin", labels, target))
        else:
            plane_fn = partial(_nearest_plane, labels, norm)

        def start() -> Images:
            radius = jnp.minimum(found.memory.distance, eps) / 2
            radius = jnp.where(jnp.isfinite(radius) & (number % num_restarts > 0), radius, 0)
            attempt_key = jax.random.fold_in(start_key, number)
            return random_on_sphere(threat, attempt_key, example_ids, images, radius)

        here = lax.cond(i == 0, start, lambda: found.memory.here)
        plane_key, look_key = jax.random.split(jax.random.fold_in(noise_key, step))
        plane = plane_fn(partial(model, plane_key), here)
        here = _cross(plane, images, here, norm)
        margins = margin(model(look_key, here)).astype(images.dtype)
        distance = threat.length(here - images)[:, 0, 0, 0]
        wrong = margins > 0
        nearer = wrong & (distance < found.memory.distance)
        memory = found.memory._replace(
            here=jnp.where(wrong[:, None, None, None], images + _BACK * (here - images), here),
            distance=jnp.where(nearer, distance, found.memory.distance),
        )
        moved = found._replace(
            queries=found.queries + _QUERIES_OF_STEP,
            gradients=found.gradients + plane.num_gradients,
            nonfinite=found.nonfinite + plane.nonfinite,
            steps=found.steps + 1,
            memory=memory,
        )
        better = moved._replace(images=here, margins=margins, success=wrong)
        return select(rows, select(nearer & (distance <= eps), better, moved), found)

    found = lax.while_loop(lambda found: active(found).any(), advance, found)
    return lax.stop_gradient(found)


def _withdraw(found: Queried, eps: Float[Array, ""]) -> Queried:
    """Returns the state without the distances of successes that a second look did not confirm.

    Else nothing farther away than such a success would count any more.
    """
    distance = found.memory.distance
    distance = jnp.where(~found.success & (distance <= eps), jnp.inf, distance)
    return found._replace(memory=found.memory._replace(distance=distance))


class _Plane(NamedTuple):
    """A boundary as it seems from an image: where a linear function of the change is zero."""

    normal: Images
    values: PerExample  # of that function, here
    num_gradients: int  # that it took to know it
    nonfinite: Int[Array, "batch"]  # of them


def _plane_to(gap: Objective, logits_fn: Callable[[Images], Logits], here: Images) -> _Plane:
    def gaps(here: Images) -> tuple[Float[Array, ""], PerExample]:
        values = gap(logits_fn(here))
        return values.sum(), values

    normal, values = jax.grad(gaps, has_aux=True)(here)
    normal, bad = finite_or_zero(normal)
    values = jnp.where(jnp.isfinite(values), values, 0).astype(here.dtype)
    return _Plane(normal, values, 1, bad.astype(jnp.int32))


def _nearest_plane(
    labels: Labels, norm: str, logits_fn: Callable[[Images], Logits], here: Images
) -> _Plane:
    """Returns, of the boundaries to all other classes, the one that seems the nearest."""
    rows = jnp.arange(len(here), dtype=jnp.int32)

    def gaps(here: Images) -> Float[Array, "batch classes"]:
        logits = logits_fn(here)
        return logits - logits[rows, labels][:, None]

    values, gradients_of = jax.vjp(gaps, here)
    classes = jnp.eye(values.shape[1], dtype=values.dtype)
    each = jnp.broadcast_to(classes[:, None], (len(classes), *values.shape))
    normals, bad = finite_or_zero(jax.vmap(gradients_of)(each)[0])
    values = jnp.where(jnp.isfinite(values), values, 0)
    order = {"linf": 1, "l2": 2}[norm]  # the dual norm: how far a unit step changes the function
    flat = normals.reshape(*normals.shape[:2], math.prod(here.shape[1:]))  # no images: no -1
    # Scaled first, alike for all classes: squares would leave the range of floats.
    largest = jnp.abs(flat).max(axis=(0, 2))[:, None]
    reach = jnp.linalg.norm(flat / jnp.where(largest > 0, largest, 1), order, axis=-1) + _TINY
    is_label = jnp.arange(values.shape[1], dtype=labels.dtype) == labels[:, None]
    nearest = jnp.where(is_label, jnp.inf, jnp.abs(values) / reach.T).argmin(axis=1)
    # The label's own gap is constant.
    num_bad = jnp.where(is_label.T, False, bad).sum(axis=0, dtype=jnp.int32)
    value = values[rows, nearest].astype(here.dtype)
    return _Plane(normals[nearest, rows], value, values.shape[1] - 1, num_bad)


def _cross(plane: _Plane, images: Images, here: Images, norm: str) -> Images:
    """Returns the point beyond the linearised boundary to which a step goes."""
    normal, values = plane.normal, plane.values
    length = THREATS[norm].length
    across = nearest_on_plane(here, normal, -values, norm)
    behind = (normal * (images - here)).sum(axis=(1, 2, 3))
    from_clean = nearest_on_plane(images, normal, -values - behind, norm)
    near, far = (jnp.maximum(length(change), _TINY) for change in (across, from_clean))
    pull = jnp.minimum(near / (near + far), _LARGEST_PULL)
    mean = (1 - pull) * (here + _OVERSHOOT * across) + pull * (images + _OVERSHOOT * from_clean)
    return jnp.clip(mean, 0.0, 1.0)
