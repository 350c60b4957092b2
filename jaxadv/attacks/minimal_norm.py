"""The loop of C&W, DDN and FMN: it moves an iterate and keeps the nearest misclassified one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxadv.attacks.checks import Arguments, Inputs
from jaxadv.attacks.eot import EOTEstimate, Noise, Objective, expected_value_and_gradient
from jaxadv.attacks.result import AttackResult, Distances, initial_result
from jaxadv.attacks.search import select_rows
from jaxadv.attacks.threat import THREATS
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, PerExample, PRNGKey

# The nearest images lie on the decision boundary, where another forward pass may round to the other
# class. They count from this margin on, relative to that of the clean image.
_LEAST_MARGIN = 1e-4


class Iterate(NamedTuple):
    """The state of a minimal-norm attack; every array has one row per example.

    Attributes:
      delta: the current perturbation.
      radius: the radius that it was projected to.
      distance: to the nearest misclassified image found; infinite without one.
      is_wrong: whether the current image is misclassified.
      was_found: whether a misclassified image was found.
      least_margin: beyond which an image counts as misclassified.
      memory: what else the attack keeps from step to step.
    """

    delta: Images
    radius: PerExample
    distance: PerExample
    is_wrong: Bool[Array, "batch"]
    was_found: Bool[Array, "batch"]
    least_margin: PerExample
    memory: PyTree


Move = Callable[[Int[Array, ""], Iterate, EOTEstimate], Iterate]
"""`(i, iterate, estimate) -> iterate`: replaces the perturbation, the radius and the memory.

`estimate` has the objective and its gradient at the iterate. The box is not considered.
"""


def run_minimal_norm(
    model: TracedModel,
    inputs: Inputs,
    key: PRNGKey,
    *,
    eps: Float[Array, ""] | PerExample,
    num_steps: Int[Array, ""],
    norm: str,
    objective: Objective,
    start_radius: float = jnp.inf,
    memory: PyTree = (),
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
      memory: of the first iterate.
      move: the step of the attack.

    Returns:
      The nearest misclassified images within eps, or the clean images.
    """
    images, threat = inputs.images, THREATS[norm]
    margin = make_objective("margin", inputs.labels, inputs.targets)
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    farthest = threat.length(jnp.maximum(images, 1 - images))[:, 0, 0, 0]  # within the box
    start = Iterate(
        delta=jnp.zeros_like(images),
        radius=zeros + start_radius,
        distance=zeros + jnp.inf,
        is_wrong=zeros > 0,
        was_found=zeros > 0,
        least_margin=zeros,
        memory=memory,
    )

    def step(
        i: Int[Array, ""], current: tuple[Iterate, AttackResult]
    ) -> tuple[Iterate, AttackResult]:
        iterate, result = current
        moved = images + iterate.delta
        estimate = expected_value_and_gradient(
            jax.random.fold_in(key, i),
            model,
            objective,
            margin,
            moved,
            Noise(1, 1, "loss"),
        )
        distance = threat.length(iterate.delta)[:, 0, 0, 0]
        margins = estimate.scores.astype(images.dtype)
        is_wrong = margins > iterate.least_margin
        is_nearer = is_wrong & (distance < iterate.distance)
        iterate = iterate._replace(
            distance=jnp.where(is_nearer, distance, iterate.distance),
            is_wrong=is_wrong,
            was_found=iterate.was_found | is_wrong,
            least_margin=jnp.where(i == 0, _LEAST_MARGIN * jnp.abs(margins), iterate.least_margin),
        )
        result = result._replace(
            queries=result.queries + 1,
            gradients=result.gradients + 1,
            nonfinite=result.nonfinite + estimate.nonfinite,
            steps=result.steps + 1,
        )
        better = result._replace(images=moved, success=is_wrong, margins=margins)
        result = select_rows(is_nearer & (distance <= eps), better, result)
        iterate = move(i, iterate, estimate)
        delta = jnp.clip(images + iterate.delta, 0, 1) - images
        radius = jnp.minimum(iterate.radius, farthest)
        return iterate._replace(delta=delta, radius=radius), result

    iterate, result = lax.fori_loop(0, num_steps, step, (start, initial_result(images)))
    return lax.stop_gradient(result._replace(extras=Distances(iterate.distance)))


def cosine_schedule(
    first: float, last: float, i: Int[Array, ""], num_steps: Int[Array, ""]
) -> Float[Array, ""]:
    """Return the value at step i of a cosine schedule that would reach `last` at `num_steps`."""
    share = i.astype(jnp.float32) / num_steps.astype(jnp.float32)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


def max_gradients(arguments: Arguments) -> int:
    """Return the cost of DDN or FMN in gradients."""
    return arguments.get("num_steps", 100)
