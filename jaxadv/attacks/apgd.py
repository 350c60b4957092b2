"""Auto-PGD: projected gradient ascent that chooses its own step sizes (Croce & Hein 2020)."""

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
from jaxadv.attacks.attempt import Attempt, begin_attempt, look_back, move, window_lengths
from jaxadv.attacks.expectation import Noise, expected_value_and_gradient
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
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey


class _Memory(NamedTuple):
    targets: Int[Array, "batch targets"]
    attempt: Attempt


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
    resume: Queried | None = None,
) -> Queried:
    """Returns what projected ascent with momentum finds, its step halved where progress stops.

    An attempt begins at a random point of the sphere with steps of 2 eps. At checkpoints, ever
    closer to each other, the step size of an example is halved if its loss rose in at most 75 % of
    the steps since the last one, or if its best loss has not improved since then with the same
    step size; it then goes on from its best point. An example is done with its first iterate that
    is misclassified. An image that is misclassified without a perturbation is a success at once,
    which takes one query for each noise sample.

    The reference implementation, `autopgd_base.py` of fra31/auto-attack, compares the first loss
    of the first window with 0 and, over several draws of noise, judges by the last draw's loss.
    Here it is the loss at the start, and the mean over the draws.

    Static are all arguments but the arrays, `eps`, `num_noise_samples` and `num_queries`.

    Args:
      key: randomness of the starts and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels); half precision is
        cast to single, and so is the result.
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range.
      num_steps: steps of each attempt, after its start.
      norm: "linf" or "l2".
      loss: "cross_entropy", "dlr", "margin" or "probability".
      num_targets: 0 ascends the labels' loss; else there is an attempt for each of so many other
        classes, in the order of the clean image's logits, that ascends the loss of its targeted
        form. Success is to be misclassified, as whatever class.
      num_restarts: attempts, for each target.
      num_noise_samples: draws of the model's noise averaged in each gradient, and in each look.
      noise_chunk_size: how many of these draws are taken at once; memory grows with it.
      noise_average: "loss" or "softmax", as for `pgd`.
      example_ids: distinct numbers of the examples, shape (batch,), by default their positions.
      num_queries: a budget of passes for each example, draws counted one by one; None is all
        that the attempts take.
      resume: result of an earlier call with a smaller budget and else the same arguments: the
        search goes on from there, to the same result as if it had never stopped.

    Returns:
      For each example its iterate with the largest margin, the clean image where no margin was
      seen, and the ledger; a query is a pass with its gradient.

    Raises:
      ValueError: a shape, a range or a name that is not as above.
    """
    arguments = {
        "eps": eps, "num_steps": num_steps, "norm": norm, "loss": loss, "num_targets": num_targets,
        "num_restarts": num_restarts, "num_noise_samples": num_noise_samples,
        "noise_chunk_size": noise_chunk_size, "noise_average": noise_average,
        "num_queries": num_queries,
    }  # fmt: skip
    check_apgd(arguments)
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    check_apgd(arguments, model.num_classes)
    if num_queries is None:
        num_queries = whole_budget(num_steps, num_targets, num_restarts, num_noise_samples)
    images = inputs.images
    eps = jnp.asarray(eps, images.dtype)
    nothing = jnp.zeros_like(images[:, 0, 0, 0])
    no_targets = jnp.zeros_like(inputs.labels, shape=(len(images), num_targets))
    first = begin(images, _Memory(no_targets, begin_attempt(images, nothing, images, eps)))
    found = go_on(resume, first, eps, norm)
    if buys_nothing(num_queries):
        return found
    return _apgd(
        model,
        inputs,
        found,
        eps,
        jnp.asarray(num_noise_samples, jnp.int32),
        jnp.asarray(num_queries, jnp.int32),
        num_steps=num_steps,
        norm=norm,
        loss=loss,
        num_targets=num_targets,
        num_restarts=num_restarts,
        noise_chunk_size=noise_chunk_size,
        noise_average=noise_average,
    )


def check_apgd(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raises a ValueError that names what `apgd` cannot be asked."""
    check_arguments(arguments, num_classes, optional=("num_queries",))
    given = {"num_steps": 100, "num_targets": 0, "num_restarts": 1, "num_noise_samples": 1}
    given |= {name: value for name, value in arguments.items() if name in given}
    check_at_least_one(num_steps=given["num_steps"])
    given["num_steps"] += 1  # the start of an attempt is a query too
    check_total(**{**given, "num_targets": max(given["num_targets"], 1)})


def whole_budget(
    num_steps: int, num_targets: int, num_restarts: int, num_noise_samples: ArrayLike
) -> ArrayLike:
    """Returns the passes that all attempts take: one at the start of each, one for each step."""
    return num_restarts * max(num_targets, 1) * (num_steps + 1) * num_noise_samples


_STATIC = (
    "num_steps",
    "norm",
    "loss",
    "num_targets",
    "num_restarts",
    "noise_chunk_size",
    "noise_average",
)


@partial(jax.jit, static_argnames=_STATIC)
def _apgd(
    model: TracedModel,
    inputs: Inputs,
    found: Queried,
    eps: Float[Array, ""],
    num_noise_samples: Int[Array, ""],
    num_queries: Int[Array, ""],
    *,
    num_steps: int,
    norm: str,
    loss: str,
    num_targets: int,
    num_restarts: int,
    noise_chunk_size: int,
    noise_average: str,
) -> Queried:
    key, images, labels, _, example_ids = inputs
    threat = THREATS[norm]
    noise = Noise(num_noise_samples, noise_chunk_size, noise_average)
    margin = make_objective("margin", labels, None)
    start_key, noise_key, rank_key = jax.random.split(key, 3)
    windows = window_lengths(num_steps)
    length = num_steps + 1  # of an attempt, its start included
    last = num_restarts * max(num_targets, 1) * length
    found = rank_classes(found, rank_key, model, inputs, noise, num_queries)

    def active(found: Queried) -> Bool[Array, "batch"]:
        affordable = found.queries + num_noise_samples <= num_queries
        return ~found.success & (found.steps < last) & affordable

    def advance(found: Queried) -> Queried:
        # Rows that are behind first catch up: each takes its steps as it would alone.
        ready = active(found)
        step = earliest_step(found, ready)
        rows = ready & (found.steps == step)
        number, i = step // length, step % length
        memory = found.memory
        if num_targets:
            target = memory.targets[:, number // num_restarts]
            objective = make_targeted_objective(loss, labels, target)
        else:
            objective = make_objective(loss, labels, None)

        def start() -> Images:
            attempt_key = jax.random.fold_in(start_key, number)
            return random_on_sphere(threat, attempt_key, example_ids, images, eps)

        before = memory.attempt
        here = lax.cond(i == 0, start, lambda: move(threat, images, eps, before, i))
        losses, margins, gradient, nonfinite = expected_value_and_gradient(
            jax.random.fold_in(noise_key, step), model, objective, margin, here, noise
        )
        attempt = lax.cond(
            i == 0,
            lambda: begin_attempt(here, losses, gradient, eps),
            lambda: look_back(before, here, losses, gradient, jnp.asarray(windows)[i]),
        )
        better = margins > found.margins
        moved = found._replace(
            success=margins > 0,
            queries=found.queries + num_noise_samples,
            gradients=found.gradients + num_noise_samples,
            nonfinite=found.nonfinite + nonfinite,
            steps=found.steps + 1,
            memory=memory._replace(attempt=attempt),
        )
        looked = moved._replace(images=here, margins=margins)
        return select(rows, select(better, looked, moved), found)

    found = lax.while_loop(lambda found: active(found).any(), advance, found)
    return lax.stop_gradient(found)
