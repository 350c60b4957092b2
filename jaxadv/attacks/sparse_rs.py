"""Sparse-RS: random search over a few pixels, in L0 (Croce et al., 2022)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxadv.attacks.black_box import BlackBox, TracedBlackBox, make_query_fn, query_context
from jaxadv.attacks.checks import Arguments, check_arguments
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Decision,
    Proposal,
    SearchMethod,
    SearchProblem,
    constant_cost,
    is_zero_budget,
    make_problem,
    resume_or_start,
    run_search,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.rng import example_keys, rademacher, uniform
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

Pixels = Bool[Array, "height width"]
Scalar = Float[Array, ""]

_NORMS = ("l0",)
# The share of pixels that a proposal exchanges is divided by the first of these numbers, and after
# so many proposals by the next.
_DIVISORS = np.array([2, 4, 5, 6, 8, 10, 12, 15, 20], np.float32)
_PROPOSALS = np.array([50, 200, 500, 1000, 2000, 4000, 6000, 8000], np.int32)


def sparse_rs(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    norm: str = "l0",
    share: ArrayLike = 0.3,
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run Sparse-RS (Croce et al., 2022): change a few pixels to random corners of the colour cube.

    The first query is the success check of the clean image, the second that of `eps` random pixels
    with random colours, each channel 0 or 1. Every further query gives some of these pixels their
    clean colour and as many others a random one, and keeps the result if the margin grows. Half of
    `share` of the pixels is exchanged at first, and a twentieth of it after 8,000 proposals. A
    single pixel gets another colour than it has.

    The reference implementation scales these numbers of proposals to the budget by default.

    Args:
      key: key of the pixels, of the colours and of the model's noise.
      logits_fn: `(key, images) -> logits` or a `BlackBox`, see `jaxadv.attacks.nes`.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: number of pixels that may change, in all their channels, one for all images or an array
        of shape (batch,); rounded down; traced.
      num_queries: budget of forward passes per example; traced.
      norm: "l0".
      share: twice the share of the changed pixels that the first proposals exchange, in [0, 1]; at
        least one pixel is exchanged; traced.
      num_noise_samples: noise samples that each success check averages over; traced.
      targets: target classes, shape (batch,).
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      resume: result of an earlier call with a smaller budget.

    Returns:
      The adversarial images with the largest margin found, their success and query counts.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> sparse_rs(jax.random.key(0), logits_fn, x, y, eps=1, num_queries=20).success
    Array([ True], dtype=bool)
    """
    check_sparse_rs({
        "eps": eps, "num_queries": num_queries, "norm": norm, "share": share,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    no_pixels = jnp.zeros_like(problem.images[..., 0], bool)
    initial = initial_result(problem.images, _Extras(no_pixels, no_pixels))
    state = resume_or_start(resume, initial, problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    with query_context():
        return _sparse_rs(model, problem, state, jnp.asarray(share, jnp.float32), norm=norm)


def check_sparse_rs(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `sparse_rs`."""
    check_arguments(arguments, num_classes, norms=_NORMS)


class _Extras(NamedTuple):
    """The pixels that differ in the image of the state, and in the proposed one."""

    pixels: Bool[Array, "batch height width"]
    proposed: Bool[Array, "batch height width"]


@partial(jit_kernel, static_argnames="norm")
def _sparse_rs(
    model: TracedModel | TracedBlackBox,
    problem: SearchProblem,
    state: AttackResult,
    share: Float[Array, ""],
    *,
    norm: str,
) -> AttackResult:
    images = problem.images
    sample_key, check_key = jax.random.split(problem.key)
    num_pixels = jnp.broadcast_to(jnp.floor(problem.eps), len(images))

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        extras = state.extras
        divisor = jnp.asarray(_DIVISORS)[(step - 1 > _PROPOSALS).sum()]
        exchanged = jnp.maximum(jnp.floor(share / divisor * num_pixels), 1)
        num_old = jnp.where(step == 1, 0, exchanged)
        num_new = jnp.minimum(jnp.where(step == 1, num_pixels, exchanged), num_pixels)
        keys = example_keys(jax.random.fold_in(sample_key, step), problem.example_ids)
        pixel_keys, colour_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        old, new = jax.vmap(_exchange)(pixel_keys, extras.pixels, num_old, num_new)
        colours = jax.vmap(_random_colours)(colour_keys, images, num_new == 1)
        candidates = jnp.where(old[..., None], images, state.images)
        candidates = jnp.where(new[..., None], colours, candidates)
        proposed = (extras.pixels & ~old) | new
        nonfinite = jnp.zeros_like(state.nonfinite)
        return Proposal(candidates, extras._replace(proposed=proposed), nonfinite)

    def accept(state: AttackResult, candidates: Images, margins: PerExample) -> Decision:
        extras, is_better = state.extras, margins > state.margins
        # The start replaces the clean image, as in the reference implementation.
        is_accepted = is_better | (state.steps == 1)
        pixels = jnp.where(is_accepted[:, None, None], extras.proposed, extras.pixels)
        return Decision(is_accepted, margins > 0, extras._replace(pixels=pixels))

    return run_search(
        check_key,
        make_query_fn(model),
        make_objective("margin", problem.labels, problem.targets),
        problem,
        state,
        SearchMethod(propose, constant_cost(0), accept),
    )


def _exchange(
    key: Key[Array, ""], pixels: Pixels, num_old: Scalar, num_new: Scalar
) -> tuple[Pixels, Pixels]:
    """Return random ones of the changed pixels, and random ones of the others."""
    order = uniform(key, pixels.shape)

    def first(rows: Pixels, count: Scalar) -> Pixels:
        ranks = jnp.where(rows, order, jnp.inf).ravel().argsort().argsort()
        return (ranks < count).reshape(rows.shape) & rows

    old = first(pixels, num_old)
    # If too few are unchanged, the pixels that get their clean colour may get another one at once.
    free = jnp.where((~pixels).sum() < num_new, ~pixels | old, ~pixels)
    return old, first(free, num_new)


def _random_colours(
    key: Key[Array, ""], image: Float[Array, "height width channels"], differ: Bool[Array, ""]
) -> Float[Array, "height width channels"]:
    """Return random corners of the colour cube, if required other ones than those of the image."""
    colour_key, change_key = jax.random.split(key)
    colours = (1 + rademacher(colour_key, image.shape)) / 2
    # A random number from 1 on has a bit for each channel, of which at least one is set.
    channels = jnp.arange(image.shape[2], dtype=jnp.int32)
    largest = 2 ** min(image.shape[2], 30)
    changes = jax.random.randint(change_key, image.shape[:2], 1, largest, dtype=jnp.int32)
    is_flipped = (changes[..., None] >> channels) & 1 == 1
    is_same = (colours == image).all(axis=2, keepdims=True)
    return jnp.where(differ & is_same & is_flipped, 1 - colours, colours)


SPARSE_RS = AttackSpec(
    attack_fn=sparse_rs,
    run=sparse_rs,
    traced=("eps", "num_queries", "share", "num_noise_samples"),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    norms=_NORMS,
    resumable=True,
    check=check_sparse_rs,
)
