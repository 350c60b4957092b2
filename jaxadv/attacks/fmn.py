"""Fast minimum-norm attack (FMN): minimal perturbations (Pintor et al., 2021)."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.checks import (
    Arguments,
    Inputs,
    as_radius,
    check_arguments,
    check_at_least_one,
    prepare,
)
from jaxadv.attacks.eot import EOTEstimate
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.minimal_norm import (
    Iterate,
    cosine_schedule,
    max_gradients,
    run_minimal_norm,
)
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import DUALS, NORMS, THREATS
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_NORMS = (*NORMS, "l0")
_STEP_SIZES = (1.0, 0.01)  # first and last, in L2
_RADIUS_CHANGES = (0.05, 0.001)  # gamma of the paper, first and last
_LEAST_DISTANCE = 1e-3  # to a boundary that is not crossed yet


def fmn(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_steps: ArrayLike = 100,
    norm: str = "linf",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """Run the fast minimum-norm attack (Pintor et al., 2021) for the nearest adversarial image.

    Each step moves along the gradient of the margin, by an L2 length of 1 in the first step,
    decreasing to about 0.01, and projects onto a ball around the clean image. The radius of the
    ball shrinks after a misclassified iterate, and grows after another, by 5 % at first and 0.1 %
    at the end. Until the first misclassified iterate it is the distance to the linearised decision
    boundary, at least 0.001, enlarged by the same percentage: otherwise iterates could stay on the
    boundary of an almost linear model. In L0 the radius is a number of pixels, and changes by one
    at least; that of the first projection is 2. Starting points of another class, an option of the
    paper, are not supported.

    The model's noise, if any, is sampled once per step and not averaged, so an image may be
    misclassified by chance.

    Traced arguments: `eps` and `num_steps`. `norm` is static.

    Args:
      key: key of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: distance up to which a misclassified image is a success, one for all images or an
        array of shape (batch,); None is any distance.
      num_steps: steps, 1 or more, each with one gradient. The first is at the clean image.
      norm: "linf", "l2", "l1" or "l0"; in L0 the distance is the number of changed pixels.
      targets: target classes, shape (batch,), as which the images are to be classified.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.

    Returns:
      The nearest misclassified image of each example within eps, or the clean image if none was
      found. `extras.distance` is the distance to the nearest misclassified image found, also beyond
      eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> import jax
    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> fmn(jax.random.key(0), logits_fn, x, y).success
    Array([ True], dtype=bool)
    """
    check_fmn({"eps": eps, "num_steps": num_steps, "norm": norm})
    model, inputs = prepare(logits_fn, key, images, labels, targets, example_ids)
    eps = as_radius("eps", eps, inputs.images)
    return _fmn(model, inputs, eps, jnp.asarray(num_steps, jnp.int32), norm=norm)


def check_fmn(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `fmn`."""
    check_arguments(arguments, num_classes, norms=_NORMS, optional=("eps",))
    check_at_least_one(num_steps=arguments.get("num_steps", 100))


@partial(jit_kernel, static_argnames="norm")
def _fmn(
    model: TracedModel,
    inputs: Inputs,
    eps: Float[Array, ""] | PerExample,
    num_steps: Int[Array, ""],
    *,
    norm: str,
) -> AttackResult:
    threat, images = THREATS[norm], inputs.images

    def move(i: Int[Array, ""], iterate: Iterate, estimate: EOTEstimate) -> Iterate:
        change, step_size = (
            cosine_schedule(*values, i, num_steps).astype(images.dtype)
            for values in (_RADIUS_CHANGES, _STEP_SIZES)
        )
        smaller, larger = (1 - change) * iterate.radius, (1 + change) * iterate.radius
        if norm == "l0":
            smaller = jnp.minimum(iterate.radius - 1, jnp.floor(smaller))
            larger = jnp.maximum(iterate.radius + 1, jnp.floor(larger))
        else:
            length = threat.length(iterate.delta)[:, 0, 0, 0]
            beyond = (1 + change) * (length + _distance_to_boundary(estimate, norm))
            larger = jnp.where(iterate.was_found, larger, beyond)
        smaller = jnp.minimum(smaller, iterate.distance)
        radius = jnp.where(iterate.is_wrong, smaller, larger)
        direction = THREATS["l2"].steepest(images, estimate.gradient)
        delta = iterate.delta + step_size * direction
        delta = threat.project(images, delta, radius[:, None, None, None])
        return iterate._replace(delta=delta, radius=radius)

    return run_minimal_norm(
        model,
        inputs,
        inputs.key,
        eps=eps,
        num_steps=num_steps,
        norm=norm,
        objective=make_objective("margin", inputs.labels, inputs.targets),
        start_radius=1.0 if norm == "l0" else jnp.inf,
        move=move,
    )


def _distance_to_boundary(estimate: EOTEstimate, norm: str) -> PerExample:
    """Return the margin over the dual norm of its gradient, at least `_LEAST_DISTANCE`."""
    magnitudes = jnp.abs(estimate.gradient)
    # Scaled first: squares of tiny or huge gradients would leave the range of floats.
    largest = magnitudes.max(axis=(1, 2, 3))
    largest = jnp.where(largest > 0, largest, 1)
    scaled = magnitudes / largest[:, None, None, None]
    dual_norm = THREATS[DUALS[norm]].length(scaled)[:, 0, 0, 0]
    margins = jnp.abs(estimate.values).astype(magnitudes.dtype)
    return jnp.maximum(margins / largest / jnp.maximum(dual_norm, 1), _LEAST_DISTANCE)


FMN = AttackSpec(
    attack_fn=fmn,
    run=fmn,
    traced=("eps", "num_steps"),
    uses_gradients=True,
    max_queries=max_gradients,
    norms=_NORMS,
    returns_clean=True,
    measures_distance=True,
    check=check_fmn,
)
