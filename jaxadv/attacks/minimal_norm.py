"""The loop of minimal-norm attacks: iterates that move, and the nearest misclassified one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.checks import Inputs
from jaxadv.attacks.eot import EOTEstimate, Noise, Objective, expected_value_and_gradient
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import select_rows
from jaxadv.attacks.threat import THREATS
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, PerExample, PRNGKey


class Iterate(NamedTuple):
    """Where a minimal-norm attack is; every array has one row per example.

    Attributes:
      delta: the current perturbation.
      radius: the radius that it was projected to.
      distance: to the nearest misclassified image found; infinite without one.
      was_found: whether a misclassified image was found.
    """

    delta: Images
    radius: PerExample
    distance: PerExample
    was_found: Bool[Array, "batch"]


class _Extras(NamedTuple):
    distance: PerExample


Move = Callable[[Int[Array, ""], Iterate, EOTEstimate], tuple[Images, PerExample]]
"""`(i, iterate, estimate) -> (delta, radius)` of the next iterate, before the clip to the box.

`estimate` has the objective, its gradient and the margin of the iterate, above 0 if misclassified.
"""


def run_minimal_norm(
    model: TracedModel,
    inputs: Inputs,
    key: PRNGKey,
    *,
    eps: Float[Array, ""],
    num_steps: Int[Array, ""],
    norm: str,
    objective: Objective,
    start_radius: float,
    move: Move,
) -> AttackResult:
    """Run a minimal-norm attack from the clean images.

    Args:
      model: the model.
      inputs: arrays of the attack.
      key: of the model's noise.
      eps: distance up to which a misclassified image is a success.
      num_steps: steps, each of which takes one gradient.
      norm: in which the distance is measured.
      objective: `logits -> values`, which the attack ascends.
      start_radius: radius of the first iterate's projection.
      move: the step of the attack.

    Returns:
      The nearest misclassified images within eps, or the clean images.
    """
    images, threat = inputs.images, THREATS[norm]
    margin = make_objective("margin", inputs.labels, inputs.targets)
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    farthest = threat.length(jnp.maximum(images, 1 - images))[:, 0, 0, 0]  # within the box
    start = Iterate(jnp.zeros_like(images), zeros + start_radius, zeros + jnp.inf, zeros > 0)

    def step(
        i: Int[Array, ""], current: tuple[Iterate, AttackResult]
    ) -> tuple[Iterate, AttackResult]:
        iterate, result = current
        moved = images + iterate.delta
        estimate = expected_value_and_gradient(
            jax.random.fold_in(key, i), model, objective, margin, moved, Noise(1, 1, "loss")
        )
        distance = threat.length(iterate.delta)[:, 0, 0, 0]
        is_wrong = estimate.scores > 0
        is_nearer = is_wrong & (distance < iterate.distance)
        iterate = iterate._replace(
            distance=jnp.where(is_nearer, distance, iterate.distance),
            was_found=iterate.was_found | is_wrong,
        )
        result = result._replace(
            queries=result.queries + 1,
            gradients=result.gradients + 1,
            nonfinite=result.nonfinite + estimate.nonfinite,
            steps=result.steps + 1,
        )
        better = result._replace(images=moved, success=is_wrong, margins=estimate.scores)
        result = select_rows(is_nearer & (distance <= eps), better, result)
        delta, radius = move(i, iterate, estimate)
        delta = jnp.clip(images + delta, 0, 1) - images
        return iterate._replace(delta=delta, radius=jnp.minimum(radius, farthest)), result

    iterate, result = lax.fori_loop(0, num_steps, step, (start, initial_result(images)))
    return lax.stop_gradient(result._replace(extras=_Extras(iterate.distance)))


def cosine(i: Int[Array, ""], num_steps: Int[Array, ""]) -> Float[Array, ""]:
    """Return the cosine schedule from 1 at step 0 towards 0 at `num_steps`."""
    return (1 + jnp.cos(jnp.pi * i / num_steps)) / 2


def radius_or_infinite(eps: ArrayLike | None, dtype: jnp.dtype) -> Float[Array, ""]:
    """Return eps as an array; None is any distance."""
    return jnp.asarray(jnp.inf if eps is None else eps, dtype)
