"""Decoupled direction and norm attack (DDN): minimal L2 perturbations (Rony et al., 2019)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
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
from jaxadv.attacks.threat import THREATS, random_perturbation
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_NORMS = ("l2",)
_START_RADIUS = 1.0
_RADIUS_CHANGE = 0.05  # gamma of the paper
_STEP_SIZES = (1.0, 0.01)  # first and last


def ddn(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_steps: ArrayLike = 100,
    norm: str = "l2",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """Run the decoupled direction and norm attack (Rony et al., 2019) for the nearest L2 image.

    Each step moves along the normalised gradient of the cross entropy, by 1 in the first step,
    decreasing to about 0.01. It then projects onto a sphere around the clean image, whose radius
    shrinks by 5 % after a misclassified iterate and grows by 5 % after another. The radius starts
    at 1. Images are not quantised, unlike in the paper.

    The model's noise, if any, is sampled once per step and not averaged, so an image may be
    misclassified by chance.

    Traced arguments: `eps` and `num_steps`.

    Args:
      key: key of the model's noise, and of the directions where the gradient is zero.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: L2 distance up to which a misclassified image is a success, one for all images or an
        array of shape (batch,); None is any distance.
      num_steps: steps, 1 or more, each with one gradient. The first is at the clean image.
      norm: "l2".
      targets: target classes, shape (batch,), as which the images are to be classified.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.

    Returns:
      The nearest misclassified image of each example within eps, or the clean image if none was
      found. `extras.distance` is the distance to the nearest misclassified image found, also beyond
      eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> ddn(jax.random.key(0), logits_fn, x, y).success
    Array([ True], dtype=bool)
    """
    check_ddn({"eps": eps, "num_steps": num_steps, "norm": norm})
    model, inputs = prepare(logits_fn, key, images, labels, targets, example_ids)
    eps = as_radius("eps", eps, inputs.images)
    return _ddn(model, inputs, eps, jnp.asarray(num_steps, jnp.int32), norm=norm)


def check_ddn(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `ddn`."""
    check_arguments(arguments, num_classes, norms=_NORMS, optional=("eps",))
    check_at_least_one(num_steps=arguments.get("num_steps", 100))


@partial(jit_kernel, static_argnames="norm")
def _ddn(
    model: TracedModel,
    inputs: Inputs,
    eps: Float[Array, ""] | PerExample,
    num_steps: Int[Array, ""],
    *,
    norm: str,
) -> AttackResult:
    noise_key, direction_key = jax.random.split(inputs.key)
    threat, images = THREATS[norm], inputs.images

    def move(i: Int[Array, ""], iterate: Iterate, estimate: EOTEstimate) -> Iterate:
        step_size = cosine_schedule(*_STEP_SIZES, i, num_steps).astype(images.dtype)
        gradient = estimate.gradient
        is_flat = (gradient == 0).all(axis=(1, 2, 3), keepdims=True)

        def random_direction() -> Images:
            random_key = jax.random.fold_in(direction_key, i)
            one = jnp.ones((), images.dtype)
            return random_perturbation(threat, random_key, inputs.example_ids, images, one)

        elsewhere = lax.cond(is_flat.any(), random_direction, lambda: gradient)
        direction = threat.steepest(images, jnp.where(is_flat, elsewhere, gradient))
        delta = iterate.delta + step_size * direction
        change = jnp.where(iterate.is_wrong, -_RADIUS_CHANGE, _RADIUS_CHANGE)
        radius = (1 + change) * iterate.radius
        length = jnp.maximum(threat.length(delta), jnp.finfo(delta.dtype).tiny)
        delta = radius[:, None, None, None] * delta / length
        return iterate._replace(delta=delta, radius=radius)

    return run_minimal_norm(
        model,
        inputs,
        noise_key,
        eps=eps,
        num_steps=num_steps,
        norm=norm,
        objective=make_objective("cross_entropy", inputs.labels, inputs.targets),
        start_radius=_START_RADIUS,
        move=move,
    )


DDN = AttackSpec(
    attack_fn=ddn,
    run=ddn,
    traced=("eps", "num_steps"),
    uses_gradients=True,
    max_queries=max_gradients,
    norms=_NORMS,
    returns_clean=True,
    measures_distance=True,
    check=check_ddn,
)
