"""RayS: an L-inf attack on models that return labels only (Chen & Gu, 2020)."""

import math
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int

from jaxadv.attacks.black_box import BlackBox, TracedBlackBox, make_query_fn, query_context
from jaxadv.attacks.checks import Arguments, check_arguments
from jaxadv.attacks.distance_search import run_distance_search
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Proposal,
    SearchProblem,
    constant_cost,
    is_zero_budget,
    make_problem,
    resume_or_start,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_NORMS = ("linf",)
_TOLERANCE = 1e-3  # of the binary search, as an L2 distance
_LARGEST_RADIUS = 1.0  # the ball of this radius contains all images


class _Extras(NamedTuple):
    """The state of a search; every array has one row per example.

    Attributes:
      signs: direction of the nearest misclassified image found.
      radius: distance to the decision boundary in that direction; infinite without one.
      level, block: the next direction differs in a block of pixels: the number of the block among
        2^level blocks.
      low, high: ends of the binary search for its radius.
      is_searching: whether such a search is under way.
      distance: to the nearest misclassified image found; infinite without one.
    """

    signs: Images
    radius: PerExample
    level: Int[Array, "batch"]
    block: Int[Array, "batch"]
    low: PerExample
    high: PerExample
    is_searching: Bool[Array, "batch"]
    distance: PerExample


def rays(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_queries: ArrayLike,
    norm: str = "linf",
    early_stop: bool = True,
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run RayS (Chen & Gu, 2020): search the direction of the nearest decision boundary.

    A direction has the same magnitude for all pixels, and a sign for each. The search inverts the
    signs of a block of pixels: of the whole image at first, then of each half, of each quarter, and
    so on. If the image at the best radius so far is misclassified in the new direction too, a
    binary search finds the distance to the boundary there, and the direction is kept. Only labels
    are used, and the search has no random choices.

    Args:
      key: key of the model's noise.
      logits_fn: `(key, images) -> logits` or a `BlackBox`, see `jaxadv.attacks.nes`. For label-only
        access return one-hot vectors.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: distance up to which a misclassified image is a success, in units of the pixel range,
        one for all images or an array of shape (batch,); None is any distance; traced.
      num_queries: budget of forward passes per example; traced.
      norm: "linf".
      early_stop: end an example with its first image within eps; without eps, and with False, it
        spends the budget, for the smallest distance; static.
      num_noise_samples: noise samples that each success check averages over; traced.
      targets: target classes, shape (batch,). Directions rarely lead to a given class, so the
        search often finds nothing.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      resume: result of an earlier call with a smaller budget.

    Returns:
      The nearest misclassified image of each example within eps, or the clean image if none was
      found, with success and query counts. `extras.distance` is the distance to the nearest
      misclassified image found, also beyond eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> import jax
    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> rays(jax.random.key(0), logits_fn, x, y, eps=0.1, num_queries=20).success
    Array([ True], dtype=bool)
    """
    check_rays({
        "eps": eps, "num_queries": num_queries, "norm": norm, "early_stop": early_stop,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids,
        eps=jnp.inf if eps is None else eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    initial = initial_result(problem.images, _initial_extras(problem.images))
    state = resume_or_start(resume, initial, problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    with query_context():
        return _rays(model, problem, state, early_stop=early_stop and eps is not None)


def check_rays(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `rays`."""
    check_arguments(arguments, num_classes, norms=_NORMS, optional=("eps",))


def _initial_extras(images: Images) -> _Extras:
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    numbers = zeros.astype(jnp.int32)
    return _Extras(
        signs=jnp.ones_like(images),
        radius=zeros + jnp.inf,
        level=numbers,
        block=numbers,
        low=zeros,
        high=zeros,
        is_searching=zeros > 0,
        distance=zeros + jnp.inf,
    )


@partial(jit_kernel, static_argnames="early_stop")
def _rays(
    model: TracedModel | TracedBlackBox,
    problem: SearchProblem,
    state: AttackResult,
    *,
    early_stop: bool,
) -> AttackResult:
    images = problem.images
    size = math.prod(images.shape[1:])
    tolerance = _TOLERANCE / math.sqrt(size)

    def direction(extras: _Extras) -> Images:
        inverted = _in_block(images.shape, extras.level, extras.block)
        return jnp.where(inverted, -extras.signs, extras.signs)

    def radius_of(extras: _Extras) -> PerExample:
        middle = (extras.low + extras.high) / 2
        return jnp.where(extras.is_searching, middle, jnp.minimum(extras.radius, _LARGEST_RADIUS))

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        extras = state.extras
        move = radius_of(extras)[:, None, None, None] * direction(extras)
        return Proposal(jnp.clip(images + move, 0.0, 1.0), extras, jnp.zeros_like(state.nonfinite))

    def advance(extras: _Extras, candidates: Images, is_wrong: Bool[Array, "batch"]) -> _Extras:
        tried = radius_of(extras)
        # A new direction is searched if the image at the best radius is misclassified.
        low = jnp.where(is_wrong, jnp.where(extras.is_searching, extras.low, 0), tried)
        high = jnp.where(is_wrong, tried, extras.high)
        is_searching = extras.is_searching | is_wrong
        is_found = is_searching & (high - low <= tolerance)
        is_done = is_found | ~is_searching
        is_better = is_found & (high < extras.radius)
        level, block = _next_block(size, extras.level, extras.block)
        return extras._replace(
            signs=jnp.where(is_better[:, None, None, None], direction(extras), extras.signs),
            radius=jnp.where(is_better, high, extras.radius),
            level=jnp.where(is_done, level, extras.level),
            block=jnp.where(is_done, block, extras.block),
            low=low,
            high=high,
            is_searching=is_searching & ~is_found,
        )

    return run_distance_search(
        problem.key,
        make_query_fn(model),
        make_objective("margin", problem.labels, problem.targets),
        problem,
        state,
        propose=propose,
        cost=constant_cost(0),
        advance=advance,
        initial_extras=_initial_extras(images),
        norm="linf",
        early_stop=early_stop,
    )


def _in_block(
    shape: tuple[int, ...], level: Int[Array, "batch"], block: Int[Array, "batch"]
) -> Bool[Array, "batch height width channels"]:
    """Return whether each value is in a block of its image.

    Blocks are runs of values in the order channel, row, column, as in the reference implementation.
    """
    height, width, channels = shape[1:]
    numbers = jnp.arange(channels * height * width, dtype=jnp.int32)
    numbers = numbers.reshape(channels, height, width).transpose(1, 2, 0)
    length = _block_length(height * width * channels, level)
    own = numbers // length[:, None, None, None]
    return own == block[:, None, None, None]


def _block_length(size: int, level: Int[Array, "batch"]) -> Int[Array, "batch"]:
    return -(-size // 2**level)


def _next_block(
    size: int, level: Int[Array, "batch"], block: Int[Array, "batch"]
) -> tuple[Int[Array, "batch"], Int[Array, "batch"]]:
    """Return the level and the number of the next block. The last level has a block per value."""
    is_last = (block + 1) * _block_length(size, level) >= size
    deeper = jnp.minimum(level + 1, math.ceil(math.log2(size)))
    return jnp.where(is_last, deeper, level), jnp.where(is_last, 0, block + 1)


RAYS = AttackSpec(
    attack_fn=rays,
    run=rays,
    traced=("eps", "num_queries", "num_noise_samples"),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    norms=_NORMS,
    resumable=True,
    takes_example_ids=True,
    returns_clean=True,
    measures_distance=True,
    check=check_rays,
)
