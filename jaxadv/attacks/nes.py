"""NES: projected gradient ascent along gradients estimated from queries (Ilyas et al. 2018)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.arguments import check_arguments, known
from jaxadv.attacks.finite_difference import Sampling, choose_chunk_size, estimate_gradient
from jaxadv.attacks.passes import BlackBox, make_passes, reaching
from jaxadv.attacks.queries import (
    Proposal,
    Queried,
    Search,
    Task,
    always,
    begin,
    buys_nothing,
    go_on,
    keep_latest,
    make_task,
    search,
)
from jaxadv.attacks.threat import THREATS, perturb
from jaxadv.attacks.tracing import TracedModel
from jaxadv.losses import make_objective
from jaxadv.types import Images, Labels, LogitsFn, PerExample, PRNGKey


class _Memory(NamedTuple):
    velocity: Images
    step_size: PerExample
    losses: Float[Array, "batch plateau"]  # of the last gradients, the latest last


def nes(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    step_size: ArrayLike,
    num_queries: ArrayLike,
    samples_per_gradient: int = 100,
    sigma: ArrayLike = 1e-3,
    norm: str = "linf",
    loss: str = "probability",
    directions: str = "normal",
    momentum: ArrayLike = 0.0,
    plateau_length: int = 0,
    min_step_size: ArrayLike = 5e-5,
    early_stop: bool = True,
    chunk_size: int | None = None,
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: Queried | None = None,
) -> Queried:
    """Returns what projected ascent along estimated gradients finds within a budget of queries.

    The first query looks at the clean image. Each step then takes `samples_per_gradient` queries
    around the image for its gradient, moves by `step_size` as PGD does, and looks at the result
    with one more. An example is done when a look sees it misclassified. A step that would exceed
    the budget is not begun.

    What an example gets follows from the key and its number alone, not from its batch. Static are
    the operations of `logits_fn`, `norm`, `loss`, `directions`, `samples_per_gradient`,
    `plateau_length`, `early_stop` and `chunk_size`; the rest is traced. Images of other precisions
    are cast to float32, and so is the result. Matrix products are taken at full precision.

    Args:
      key: randomness of the directions and of the model's noise, which every query draws anew.
      logits_fn: `(key, images) -> logits`, or a `BlackBox`, which is called from Python with
        exactly the images that are queried.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range.
      step_size: length of a step in the same norm and units.
      num_queries: budget of each example: its forward passes, looks included. With 1 there is
        the look at the clean image and no step.
      samples_per_gradient: queries of one gradient, in pairs on both sides of the image, which
        may lie outside the ball and outside [0, 1].
      sigma: how far the queries are from the image: their standard deviation in each pixel.
      norm: "linf" or "l2".
      loss: what is climbed: "probability" is -p(label) as in the study, "cross_entropy" and
        "margin" as for `pgd`.
      directions: "normal", or "rademacher", which makes it SPSA (Spall 1992, Uesato et al. 2018).
      momentum: of the gradients, in [0, 1); .9 in Ilyas et al.
      plateau_length: the step size is halved when the loss is below the first of the last so
        many; 5 in Ilyas et al., 0 keeps it.
      min_step_size: below which it is not halved.
      early_stop: an example is done with its first success, which in a model with noise may be
        chance: average it over `num_noise_samples`. False takes all steps that the budget allows
        and looks once, at the end, as the study did: its L queries are L + 1 here.
      chunk_size: how many queries of an image are taken at once, at most; 2 or more. Memory grows
        with it; it changes no result. None: 2 on a CPU, elsewhere so many that a pass has up to
        8192 images, or 2 for each; for a black box all of a gradient.
      num_noise_samples: passes averaged in each look, each of them a query.
      targets: classes to be predicted instead, shape (batch,).
      example_ids: distinct numbers of the examples, shape (batch,), by default their positions.
      resume: result of an earlier call with a smaller budget and else the same arguments: the
        search goes on from there, to the same result as if it had never stopped. Not without
        `early_stop`, whose one look has been taken.

    Returns:
      The adversarial images, within eps of the clean ones and in [0, 1], with the ledger.

    Raises:
      ValueError: a shape, a range or a name that is not as above.
    """
    check_arguments({
        "eps": eps, "step_size": step_size, "num_queries": num_queries, "norm": norm, "loss": loss,
        "samples_per_gradient": samples_per_gradient, "sigma": sigma, "directions": directions,
        "momentum": momentum, "plateau_length": plateau_length, "min_step_size": min_step_size,
        "early_stop": early_stop, "chunk_size": chunk_size, "num_noise_samples": num_noise_samples,
    }, optional=("chunk_size",))  # fmt: skip
    model, task = make_task(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    begun = resume is not None and known(resume.queries) and resume.queries.any()
    if begun and not early_stop:
        raise ValueError("resume needs early_stop: without it the last look has been taken")
    ones = jnp.ones_like(task.images[:, 0, 0, 0])
    memory = _Memory(
        velocity=jnp.zeros_like(task.images),
        step_size=ones * jnp.asarray(step_size, jnp.float32),
        losses=jnp.tile(ones[:, None] * -jnp.inf, max(plateau_length, 1)),
    )
    found = go_on(resume, begin(task.images, memory), task.eps, norm)
    if buys_nothing(num_queries):
        return found
    with reaching(model):
        return _nes(
            model,
            task,
            found,
            *(jnp.asarray(x, jnp.float32) for x in (sigma, momentum, min_step_size)),
            samples_per_gradient=samples_per_gradient,
            chunk_size=choose_chunk_size(model, samples_per_gradient, chunk_size, len(ones)),
            norm=norm,
            loss=loss,
            directions=directions,
            plateau_length=plateau_length,
            early_stop=early_stop,
        )


_STATIC = (
    "samples_per_gradient",
    "chunk_size",
    "norm",
    "loss",
    "directions",
    "plateau_length",
    "early_stop",
)


@partial(jax.jit, static_argnames=_STATIC)
def _nes(
    model: TracedModel | BlackBox,
    task: Task,
    found: Queried,
    sigma: Float[Array, ""],
    momentum: Float[Array, ""],
    min_step_size: Float[Array, ""],
    *,
    samples_per_gradient: int,
    chunk_size: int,
    norm: str,
    loss: str,
    directions: str,
    plateau_length: int,
    early_stop: bool,
) -> Queried:
    threat = THREATS[norm]
    sampling = Sampling(samples_per_gradient, chunk_size, directions, sigma)
    objective = make_objective(loss, task.labels, task.targets)
    passes = make_passes(model, task.labels, task.targets)
    gradient_key, look_key = jax.random.split(task.key)

    def propose(found: Queried, active: Bool[Array, "batch"], step: Int[Array, ""]) -> Proposal:
        step_key = jax.random.fold_in(gradient_key, step)
        estimate = estimate_gradient(
            step_key, passes, objective, found.images, task.example_ids, active, sampling
        )
        velocity = momentum * found.memory.velocity + (1 - momentum) * estimate.gradient
        step_size, last = found.memory.step_size, found.memory.losses
        if plateau_length:
            step_size, last = _decay(step_size, last, estimate.values, min_step_size)
        move = step_size[:, None, None, None] * threat.steepest(velocity)
        delta = found.images + move - task.images
        candidates = perturb(threat, task.images, delta, task.eps)
        return Proposal(candidates, _Memory(velocity, step_size, last), estimate.nonfinite)

    return search(
        look_key,
        passes,
        make_objective("margin", task.labels, task.targets),
        task,
        found,
        Search(propose, always(samples_per_gradient), keep_latest),
        early_stop=early_stop,
    )


def _decay(
    step_size: PerExample,
    last: Float[Array, "batch plateau"],
    losses: PerExample,
    min_step_size: Float[Array, ""],
) -> tuple[PerExample, Float[Array, "batch plateau"]]:
    """Halves the step size of the examples whose loss is lower than it was; begins anew there."""
    last = jnp.concatenate([last[:, 1:], losses[:, None]], axis=1)
    stuck = last[:, -1] < last[:, 0]
    halved = jnp.maximum(step_size / 2, jnp.minimum(min_step_size, step_size))
    last = jnp.where(stuck[:, None], -jnp.inf, last)
    return jnp.where(stuck, halved, step_size), last
