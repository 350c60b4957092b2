"""NES: projected gradient ascent along gradients estimated from queries (Ilyas et al., 2018)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxadv.attacks.black_box import (
    BlackBox,
    QueryFn,
    TracedBlackBox,
    make_query_fn,
    query_context,
)
from jaxadv.attacks.checks import check_arguments
from jaxadv.attacks.eot import Objective
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Proposal,
    SearchMethod,
    SearchProblem,
    accept_always,
    constant_cost,
    is_zero_budget,
    make_problem,
    resume_or_start,
    run_search,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, ascend
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.devices import platform
from jaxadv.core.images import is_concrete
from jaxadv.core.losses import make_objective
from jaxadv.core.rng import example_keys, normal, rademacher
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_DIRECTIONS: dict[str, Callable[..., Array]] = {"normal": normal, "rademacher": rademacher}
_MAX_IMAGES_AT_ONCE = 8192  # per forward pass on an accelerator
_MAX_IMAGES_ON_HOST = 512  # per forward pass of a model outside of JAX
_MAX_IMAGES_OF_BLACK_BOX = 2048  # per call


class NESNumbers(NamedTuple):
    """The traced numbers of NES, see `nes`."""

    sigma: Float[Array, ""]
    momentum: Float[Array, ""]
    min_step_size: Float[Array, ""]


@dataclass(frozen=True)
class NESOptions:
    """The static arguments of NES, see `nes`; `chunk_size` as of `choose_chunk_size`."""

    samples_per_gradient: int
    chunk_size: int
    norm: str
    loss: str
    directions: str
    plateau_length: int
    early_stop: bool


class _Extras(NamedTuple):
    velocity: Images
    step_size: PerExample
    losses: Float[Array, "batch plateau"]  # mean losses of the last gradients, the latest last


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
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run NES (Ilyas et al., 2018): PGD along gradients estimated from a budget of queries.

    The first query is the success check of the clean image. Each step then spends
    `samples_per_gradient` queries around the image on a gradient estimate, and moves by `step_size`
    as PGD does. It checks the new image with one more query per noise sample. An example ends with
    the first check that finds it misclassified. A step that would exceed the budget is not started.

    The result of an example depends on the key and its id alone, not on its batch. Static
    arguments: `norm`, `loss`, `directions`, `samples_per_gradient`, `plateau_length`, `early_stop`,
    `chunk_size` and the operations of `logits_fn`; all others are traced. Images of other
    precisions are cast to float32, and so is the result. Matrix products have the highest
    precision.

    Args:
      key: key of the directions and of the model's noise, which is sampled for every query.
      logits_fn: `(key, images) -> logits`, or a `BlackBox`, which is called from Python with
        exactly the images that are queried.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range.
        An array of shape (batch,) gives each image its own radius. In L-inf an array of four axes
        that broadcasts to the images gives each value its own.
      step_size: length of a step in the same norm and units.
      num_queries: budget of forward passes per example, success checks included. With a budget of
        1 the clean image is checked and no step is taken.
      samples_per_gradient: queries per gradient, an even number: they come in antithetic pairs on
        both sides of the image, and may lie outside the ball and outside [0, 1].
      sigma: standard deviation of the queries around the image, per pixel.
      norm: "linf", "l2" or "l1".
      loss: loss to ascend: "probability", which is -p(label) as in the study, or "cross_entropy",
        "margin", "probability_margin" or "dlr" as for `pgd`.
      directions: "normal", or "rademacher" for SPSA (Spall, 1992; Uesato et al., 2018).
      momentum: decay of the moving average of the gradients, in [0, 1); 0.9 in Ilyas et al.
      plateau_length: number of last gradients to compare; the step size is halved when the mean
        loss is below that of the first of them. 5 in Ilyas et al.; 0 keeps the step size.
      min_step_size: the step size is not halved below this.
      early_stop: end an example with its first success. Under noise one success may be chance, so
        average over `num_noise_samples`. False takes all steps that the budget allows and checks
        once, at the end, as the study did: its L queries are L + 1 here.
      chunk_size: largest number of queries per image at once, 2 or more. Memory grows with it; the
        result does not change. None: 2 on a CPU; on an accelerator as many as a forward pass of
        8192 images allows, at least 2; for a `BlackBox` as many as a call of 2048 images allows.
      num_noise_samples: forward passes that each success check averages over; each is a query.
      targets: target classes, shape (batch,); success is to be classified as the target.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      resume: result of an earlier call with a smaller budget and otherwise equal arguments. The
        search continues from it, to the same result as an uninterrupted call. Not available without
        `early_stop`, where the only check has been spent.

    Returns:
      The adversarial images, within eps of the clean ones and in [0, 1], with their success and
      query counts.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> result = nes(
    ...     jax.random.key(0), logits_fn, x, y, eps=0.1, step_size=0.1, num_queries=50,
    ...     samples_per_gradient=10,
    ... )
    >>> result.success, result.queries
    (Array([ True], dtype=bool), Array([12], dtype=int32))
    """
    static: dict[str, Any] = {
        "samples_per_gradient": samples_per_gradient, "norm": norm, "loss": loss,
        "directions": directions, "plateau_length": plateau_length, "early_stop": early_stop,
    }  # fmt: skip
    _check_nes({
        "eps": eps, "step_size": step_size, "num_queries": num_queries, **static, "sigma": sigma,
        "momentum": momentum, "min_step_size": min_step_size, "chunk_size": chunk_size,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples, per_value=norm == "linf",
    )  # fmt: skip
    is_resumed = resume is not None and is_concrete(resume.queries) and resume.queries.any()
    if is_resumed and not early_stop:
        raise ValueError(
            "resume needs early_stop=True: without it the only success check has been spent"
        )
    ones = jnp.ones_like(problem.images[:, 0, 0, 0])
    extras = _Extras(
        velocity=jnp.zeros_like(problem.images),
        step_size=ones * jnp.asarray(step_size, jnp.float32),
        losses=jnp.tile(ones[:, None] * -jnp.inf, max(plateau_length, 1)),
    )
    state = resume_or_start(resume, initial_result(problem.images, extras), problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    numbers = NESNumbers(*(jnp.asarray(x, jnp.float32) for x in (sigma, momentum, min_step_size)))
    chunk_size = choose_chunk_size(model, samples_per_gradient, chunk_size, len(ones))
    with query_context():
        options = NESOptions(**static, chunk_size=chunk_size)
        return _nes(model, problem, state, numbers, options=options)


_check_nes = partial(check_arguments, optional=("chunk_size",))


@partial(jit_kernel, static_argnames="options")
def _nes(
    model: TracedModel | TracedBlackBox,
    problem: SearchProblem,
    state: AttackResult,
    numbers: NESNumbers,
    *,
    options: NESOptions,
) -> AttackResult:
    threat = THREATS[options.norm]
    sampling = GradientSampling(
        options.samples_per_gradient, options.chunk_size, options.directions, numbers.sigma
    )
    objective = make_objective(options.loss, problem.labels, problem.targets)
    query_fn = make_query_fn(model)
    if problem.eps.ndim == 4:
        query_fn = _keep_fixed_values(query_fn, problem)
    gradient_key, check_key = jax.random.split(problem.key)

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        step_key = jax.random.fold_in(gradient_key, step)
        estimate = estimate_gradient(
            step_key, query_fn, objective, state.images, problem.example_ids, active, sampling
        )
        momentum = numbers.momentum
        velocity = momentum * state.extras.velocity + (1 - momentum) * estimate.gradient
        step_size, losses = state.extras.step_size, state.extras.losses
        if options.plateau_length:
            step_size, losses = _halve_on_plateau(
                step_size, losses, estimate.values, numbers.min_step_size
            )
        candidates = ascend(threat, problem.images, state.images, velocity, step_size, problem.eps)
        return Proposal(candidates, _Extras(velocity, step_size, losses), estimate.nonfinite)

    return run_search(
        check_key,
        query_fn,
        make_objective("margin", problem.labels, problem.targets),
        problem,
        state,
        SearchMethod(propose, constant_cost(options.samples_per_gradient), accept_always),
        early_stop=options.early_stop,
    )


def _halve_on_plateau(
    step_size: PerExample,
    losses: Float[Array, "batch plateau"],
    loss: PerExample,
    min_step_size: Float[Array, ""],
) -> tuple[PerExample, Float[Array, "batch plateau"]]:
    """Halve the step size where the loss fell below the first of the last ones.

    The losses are shifted by the new one, and cleared where the step size is halved.
    """
    losses = jnp.concatenate([losses[:, 1:], loss[:, None]], axis=1)
    is_plateau = losses[:, -1] < losses[:, 0]
    halved = jnp.maximum(step_size / 2, jnp.minimum(min_step_size, step_size))
    losses = jnp.where(is_plateau[:, None], -jnp.inf, losses)
    return jnp.where(is_plateau, halved, step_size), losses


class GradientEstimate(NamedTuple):
    """A gradient from finite differences; every array has one row per example.

    Attributes:
      gradient: gradient of the objective, finite.
      values: mean of the objective over the queries; NaN and infinite values count as zero.
      nonfinite: pairs whose difference is NaN or infinite; it counts as zero.
    """

    gradient: Images
    values: PerExample
    nonfinite: Int[Array, "batch"]


def _keep_fixed_values(query_fn: QueryFn, problem: SearchProblem) -> QueryFn:
    """Return a function that queries the clean value where the radius is 0."""

    def query(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch classes"]:
        return query_fn(keys, jnp.where(problem.eps > 0, images, problem.images), active)

    return query


class GradientSampling(NamedTuple):
    """How a gradient is estimated.

    Attributes:
      num_samples: queries per gradient, in half as many pairs; static.
      chunk_size: queries per image at once; static.
      directions: "normal" or "rademacher"; static.
      sigma: length of the finite difference along a direction; may be traced.
    """

    num_samples: int
    chunk_size: int
    directions: str
    sigma: Float[Array, ""]


def estimate_gradient(
    key: PRNGKey,
    query_fn: QueryFn,
    objective: Objective,
    images: Images,
    example_ids: Int[Array, "batch"],
    active: Bool[Array, "batch"],
    sampling: GradientSampling,
) -> GradientEstimate:
    """Estimate the gradient of an objective by antithetic sampling, and its mean value.

    With n pairs it is 1 / (2 n sigma) sum_i [f(x + sigma u_i) - f(x - sigma u_i)] u_i. For a
    linear f in d pixels its expectation is the gradient w. The expectation of its squared norm is
    |w|^2 (1 + (d + 1) / n), or |w|^2 (1 + (d - 1) / n) for Rademacher directions. Its cosine with
    the gradient therefore grows like the square root of n / (n + d).
    """
    num_pairs, pairs_at_once = sampling.num_samples // 2, sampling.chunk_size // 2
    direction_key, noise_key = jax.random.split(key)
    keys = example_keys(direction_key, example_ids)
    direction = partial(_DIRECTIONS[sampling.directions], shape=images.shape[1:])

    def directions(pair: Int[Array, ""]) -> Images:
        return jax.vmap(lambda key: direction(jax.random.fold_in(key, pair)))(keys)

    def add_chunk(i: int | Int[Array, ""], total: GradientEstimate) -> GradientEstimate:
        first = jnp.asarray(i, jnp.int32) * pairs_at_once
        pairs = first + jnp.arange(pairs_at_once, dtype=jnp.int32)
        u = jax.vmap(directions)(pairs)
        queries = images + sampling.sigma * jnp.concatenate([u, -u])
        noise_keys = example_keys(noise_key, jnp.concatenate([pairs, -1 - pairs]))
        logits = query_fn(noise_keys, queries, active)
        values = jax.vmap(objective)(logits)
        differences = values[:pairs_at_once] - values[pairs_at_once:]
        finite = jnp.isfinite(differences)
        differences = jnp.where(finite, differences, 0)
        return GradientEstimate(
            total.gradient + (differences[..., None, None, None] * u).sum(axis=0),
            total.values + jnp.where(jnp.isfinite(values), values, 0).sum(axis=0),
            total.nonfinite + (~finite).sum(axis=0, dtype=jnp.int32),
        )

    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    zero = GradientEstimate(jnp.zeros_like(images), zeros, zeros.astype(jnp.int32))
    total = lax.fori_loop(0, num_pairs // pairs_at_once, add_chunk, zero)
    return GradientEstimate(
        total.gradient / (2 * num_pairs * sampling.sigma),
        total.values / (2 * num_pairs),
        total.nonfinite,
    )


def choose_chunk_size(
    model: LogitsFn | BlackBox | TracedBlackBox,
    num_samples: int,
    limit: int | None,
    batch_size: int,
) -> int:
    """Return how many queries of an image to evaluate at once: an even divisor of their number.

    Without a limit these are as many as fit in a call of 2048 images for a `BlackBox`, to call it
    rarely, of 512 for other models outside of JAX, and of 8192 on an accelerator, at least 2. On a
    CPU they are 2, because convolutions over a sample axis are slow there.
    """
    if limit is None and isinstance(model, (BlackBox, TracedBlackBox)):
        limit = _MAX_IMAGES_OF_BLACK_BOX // max(batch_size, 1)
    if limit is None and getattr(model, "calls_host", False):
        limit = _MAX_IMAGES_ON_HOST // max(batch_size, 1)
    if limit is None:
        on_cpu = platform() == "cpu"
        limit = 2 if on_cpu else _MAX_IMAGES_AT_ONCE // max(batch_size, 1)
    divisors = (size for size in range(2, num_samples + 1, 2) if num_samples % size == 0)
    return max(size for size in divisors if size <= max(limit, 2))


NES = AttackSpec(
    attack_fn=nes,
    run=nes,
    traced=(
        "eps", "step_size", "num_queries", "sigma", "momentum", "min_step_size",
        "num_noise_samples",
    ),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    resumable=True,
    check=_check_nes,
)  # fmt: skip
