"""DeepFool: steps to the nearest linearised decision boundary (Moosavi-Dezfooli et al., 2016)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.checks import Arguments, Inputs, as_radius, check_arguments, prepare
from jaxadv.attacks.fab import linearise_nearest, project_onto_hyperplane
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, Distances, initial_result
from jaxadv.attacks.search import select_rows
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_QUERIES_PER_STEP = 2  # one of them with the gradients of all other classes


def deepfool(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_steps: ArrayLike = 50,
    overshoot: ArrayLike = 0.02,
    norm: str = "l2",
) -> AttackResult:
    """Run DeepFool (Moosavi-Dezfooli et al., 2016) for a near misclassified image.

    Each step moves to the nearest boundary of the model that is linearised at the iterate, and
    beyond it by a share `overshoot` of the step. It ends with the first misclassified iterate.
    Unlike in the paper, a step is the shortest within the box [0, 1]. `fmn` and `fab` find nearer
    images, with more gradients.

    Traced arguments: `eps`, `num_steps` and `overshoot`. `norm` is static. The model's noise, if
    any, is sampled for every query and not averaged, so an image may be misclassified by chance.

    Args:
      key: key of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: distance up to which a misclassified image is a success, one for all images or an
        array of shape (batch,); None is any distance.
      num_steps: most steps; each takes two forward passes, one of them with the gradients of all
        other classes.
      overshoot: share of a step beyond the boundary, 0 or more.
      norm: "linf", "l2" or "l1".

    Returns:
      The first misclassified iterate of each example if it is within eps, otherwise the clean
      image. `extras.distance` is its distance, also beyond eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> deepfool(jax.random.key(0), logits_fn, x, y).success
    Array([ True], dtype=bool)
    """
    check_deepfool({"eps": eps, "num_steps": num_steps, "overshoot": overshoot, "norm": norm})
    model, inputs = prepare(logits_fn, key, images, labels)
    dtype = inputs.images.dtype
    return _deepfool(
        model,
        inputs,
        as_radius("eps", eps, inputs.images),
        jnp.asarray(num_steps, jnp.int32),
        jnp.asarray(overshoot, dtype),
        norm=norm,
    )


def check_deepfool(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `deepfool`."""
    check_arguments(arguments, num_classes, optional=("eps",))


class _Walk(NamedTuple):
    iterate: Images
    is_wrong: Bool[Array, "batch"]
    result: AttackResult


@partial(jit_kernel, static_argnames="norm")
def _deepfool(
    model: TracedModel,
    inputs: Inputs,
    eps: Float[Array, ""] | PerExample,
    num_steps: Int[Array, ""],
    overshoot: Float[Array, ""],
    *,
    norm: str,
) -> AttackResult:
    images, labels, threat = inputs.images, inputs.labels, THREATS[norm]
    margin = make_objective("margin", labels, None)
    clean_key, gradient_key, check_key = jax.random.split(inputs.key, 3)

    def record(walk: _Walk, key: PRNGKey) -> _Walk:
        """Check the iterate, and keep it if it is the first misclassified one."""
        margins = margin(model(key, walk.iterate)).astype(images.dtype)
        distance = threat.length(walk.iterate - images)[:, 0, 0, 0]
        is_new = (margins > 0) & ~walk.is_wrong
        result = walk.result
        found = result._replace(extras=Distances(distance))
        within = found._replace(images=walk.iterate, margins=margins, success=margins > 0)
        result = select_rows(is_new, select_rows(distance <= eps, within, found), result)
        return walk._replace(is_wrong=walk.is_wrong | is_new, result=result)

    def step(state: tuple[Int[Array, ""], _Walk]) -> tuple[Int[Array, ""], _Walk]:
        i, walk = state
        logits_fn = partial(model, jax.random.fold_in(gradient_key, i))
        boundary = linearise_nearest(labels, norm, logits_fn, walk.iterate)
        delta = project_onto_hyperplane(walk.iterate, boundary.normal, -boundary.values, norm)
        moved = jnp.clip(walk.iterate + (1 + overshoot) * delta, 0, 1)
        result = walk.result
        counted = result._replace(
            queries=result.queries + _QUERIES_PER_STEP,
            gradients=result.gradients + boundary.num_gradients,
            nonfinite=result.nonfinite + boundary.nonfinite,
            steps=result.steps + 1,
        )
        ahead = record(_Walk(moved, walk.is_wrong, counted), jax.random.fold_in(check_key, i))
        return i + 1, select_rows(walk.is_wrong, walk, ahead)

    def must_walk(state: tuple[Int[Array, ""], _Walk]) -> Bool[Array, ""]:
        i, walk = state
        return (i < num_steps) & ~walk.is_wrong.all()

    nowhere = Distances(jnp.full_like(images[:, 0, 0, 0], jnp.inf))
    result = initial_result(images, nowhere)
    start = _Walk(images, result.success, result._replace(queries=result.queries + 1))
    first = jnp.zeros((), jnp.int32), record(start, clean_key)
    _, walk = lax.while_loop(must_walk, step, first)
    return lax.stop_gradient(walk.result)


def _max_queries(arguments: Arguments) -> int:
    return 1 + _QUERIES_PER_STEP * arguments.get("num_steps", 50)


DEEPFOOL = AttackSpec(
    attack_fn=deepfool,
    run=deepfool,
    traced=("eps", "num_steps", "overshoot"),
    uses_gradients=True,
    max_queries=_max_queries,
    takes_example_ids=False,
    returns_clean=True,
    measures_distance=True,
    check=check_deepfool,
)
