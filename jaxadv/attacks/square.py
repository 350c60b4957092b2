"""Square attack: random search over square-shaped perturbations (Andriushchenko et al., 2020)."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxadv.attacks.black_box import BlackBox, TracedBlackBox, make_query_fn, query_context
from jaxadv.attacks.checks import check_arguments
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Proposal,
    SearchMethod,
    SearchProblem,
    accept_larger_margin,
    constant_cost,
    is_zero_budget,
    make_problem,
    resume_or_start,
    run_search,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, per_image, perturb
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.rng import example_keys, rademacher
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey

Image = Float[Array, "height width channels"]
Mask = Float[Array, "height width 1"]
Ball = Float[Array, "#height #width #channels"]  # a radius for the image, or for each value
Offsets = Int[Array, "..."]  # of pixels from the corner of a square, down or to the right
Scalar = Float[Array, ""]

# After these many squares the covered share of the image is halved, whatever the budget.
_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], np.int32)
_DECAY = {2: 2, 1: 4}  # of the weights of a bump's rectangles, by the order of the norm
_TINY = 1e-12


def square(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    norm: str = "linf",
    share: ArrayLike = 0.8,
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run the Square attack: change one square at a time, and keep it if the margin grows.

    The first query is the success check of the clean image, the second that of the start: vertical
    stripes of +-eps in L-inf, 5 x 5 bumps in L2 and in L1 (Croce & Hein, 2021). Every further query
    is one square; its position and signs are sampled per example. The share of the image that a
    square covers is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 squares, for
    every budget.

    Differences from AutoAttack's implementation (`square.py` of fra31/auto-attack):

    - AutoAttack keeps the start even if the clean image has the larger margin.
    - Its first 11 squares are large, here the first 10.
    - Its squares do not reach the last row or column.
    - With targets it descends their cross-entropy; here it ascends their margin.

    Args:
      key: key of the squares and of the model's noise.
      logits_fn: `(key, images) -> logits` or a `BlackBox`, see `jaxadv.attacks.nes`.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range; traced.
        An array of shape (batch,) gives each image its own radius. In L-inf an array of four axes
        that broadcasts to the images gives each value its own.
      num_queries: budget of forward passes per example; traced.
      norm: "linf", "l2" or "l1"; static.
      share: share of the image that the first squares cover, in [0, 1]; traced.
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
    >>> square(jax.random.key(0), logits_fn, x, y, eps=0.1, num_queries=10).success
    Array([ True], dtype=bool)
    """
    check_arguments({
        "eps": eps, "num_queries": num_queries, "norm": norm, "share": share,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples, per_value=norm == "linf",
    )  # fmt: skip
    share = jnp.asarray(share, jnp.float32)
    state = resume_or_start(resume, initial_result(problem.images), problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    with query_context():
        return _square(model, problem, state, share, norm=norm)


@partial(jit_kernel, static_argnames="norm")
def _square(
    model: TracedModel | TracedBlackBox,
    problem: SearchProblem,
    state: AttackResult,
    share: Scalar,
    *,
    norm: str,
) -> AttackResult:
    start, change = _MOVES[norm]
    sample_key, check_key = jax.random.split(problem.key)
    images = problem.images
    radii = per_image(problem.eps, len(images))

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        keys = example_keys(jax.random.fold_in(sample_key, step), problem.example_ids)
        covered = _covered_share(share, step - 1)
        delta = jax.lax.cond(
            step == 1,
            lambda: jax.vmap(partial(start, shape=images.shape[1:]))(keys, radii),
            lambda: jax.vmap(partial(change, share=covered))(keys, radii, state.images - images),
        )
        candidates = perturb(THREATS[norm], images, delta, problem.eps)
        return Proposal(candidates, (), jnp.zeros_like(state.nonfinite))

    return run_search(
        check_key,
        make_query_fn(model),
        make_objective("margin", problem.labels, problem.targets),
        problem,
        state,
        SearchMethod(propose, constant_cost(0), accept_larger_margin),
    )


def _covered_share(share: Scalar, number: Int[Array, ""]) -> Scalar:
    """Return the share of the image that a square covers, given its number, from 1."""
    return share / 2.0 ** (number > _HALVINGS).sum(dtype=share.dtype)


def _linf_start(key: Key[Array, ""], eps: Ball, *, shape: tuple[int, ...]) -> Image:
    """Return vertical stripes, one pixel wide, with a random sign per stripe and channel."""
    _, width, channels = shape
    return jnp.broadcast_to(eps * rademacher(key, (1, width, channels)), shape)


def _linf_change(key: Key[Array, ""], eps: Ball, delta: Image, *, share: Scalar) -> Image:
    """Add +-2 eps to each channel of one random square, and clip to [-eps, eps].

    In an image that is narrower than the square, it is a rectangle of the same area.
    """
    place_key, sign_key = jax.random.split(key)
    height, width, channels = delta.shape
    sides = _sides(share, height, width)
    square = _square_mask(*_square_offsets(place_key, delta.shape, sides), sides)
    signs = rademacher(sign_key, (1, 1, channels))
    return jnp.clip(delta + square * 2 * eps * signs, -eps, eps)


def _bump_start(key: Key[Array, ""], eps: Ball, *, shape: tuple[int, ...], order: int) -> Image:
    """Return a 5 x 5 grid of bumps with a random sign per bump and channel.

    In L2 the norm of the grid is eps. In L1 the length of each bump is 1, and the projection that
    follows shortens them.
    """
    height, width, channels = shape
    side, tiles = max(min(height, width) // 5, 1), [min(size, 5) for size in (height, width)]
    rows, columns = (
        jnp.arange(size, dtype=jnp.int32) - (size - count * side) // 2
        for size, count in zip((height, width), tiles, strict=True)
    )
    row, column = (
        jnp.clip(at // side, 0, count - 1) for at, count in zip((rows, columns), tiles, strict=True)
    )
    sign_key, transpose_key = jax.random.split(key)
    signs = rademacher(sign_key, (*tiles, channels))[row[:, None], column]
    transposed = jax.random.bernoulli(transpose_key, shape=(*tiles, 1))[row[:, None], column]
    down = (rows - row * side)[:, None, None]
    across = (columns - column * side)[None, :, None]
    bumps = signs * _bump(down, across, jnp.asarray(side), transposed, order)
    if order == 1:
        return math.prod(tiles) * bumps  # the norm of all tiles together is 1
    return eps * bumps / _norm(bumps, order)


def _bump_change(
    key: Key[Array, ""], eps: Ball, delta: Image, *, share: Scalar, order: int
) -> Image:
    """Set one random square to zero, and spend its norm on a bump in another.

    In L1 the bump is longer by the number of channels, and the projection that follows shortens it.
    """
    place_key, other_key, sign_key, transpose_key = jax.random.split(key, 4)
    height, width, channels = delta.shape
    side = jnp.maximum(_side(share, height, width), 3)
    side = jnp.minimum(side + 1 - side % 2, (min(height, width) - 1) // 2 * 2 + 1)  # odd
    place = _square_offsets(place_key, delta.shape, side)
    square = _square_mask(*place, side)
    other = _square_mask(*_square_offsets(other_key, delta.shape, side), side)
    unused = jnp.maximum(eps**order - _norm(delta, order) ** order, 0) / channels
    windows = delta * jnp.maximum(square, other)
    norm = (_norm(windows, order, axis=(0, 1)) ** order + unused) ** (1 / order)
    transposed = jax.random.bernoulli(transpose_key)
    bump = _bump(*place, side, transposed, order) * rademacher(sign_key, (1, 1, channels))
    old = square * delta
    new = bump + old / (_norm(old, order, axis=(0, 1)) + _TINY)
    new *= norm / (_norm(new, order, axis=(0, 1)) + _TINY)
    if order == 1:
        return jnp.where(square > 0, channels * new, jnp.where(other > 0, 0, delta))
    delta = jnp.where(square > 0, new, jnp.where(other > 0, 0, delta))
    return eps * delta / (_norm(delta, order) + _TINY)


_MOVES: dict[str, tuple[Callable[..., Image], Callable[..., Image]]] = {
    "linf": (_linf_start, _linf_change),
    "l2": (partial(_bump_start, order=2), partial(_bump_change, order=2)),
    "l1": (partial(_bump_start, order=1), partial(_bump_change, order=1)),
}


def _side(share: Scalar, height: int, width: int) -> Int[Array, ""]:
    return jnp.round(jnp.sqrt(share * height * width)).astype(jnp.int32)


def _sides(share: Scalar, height: int, width: int) -> Int[Array, "2"]:
    """Return the height and the width of the square, or rectangle, that covers a share."""
    area, side = share * height * width, jnp.maximum(_side(share, height, width), 1)
    longest = jnp.array([height, width], jnp.int32)
    other = longest[::-1]
    length = jnp.round(area / other.astype(area.dtype)).astype(jnp.int32)
    length = jnp.where(side > other, length, side)
    return jnp.clip(length, 1, longest)


def _square_offsets(
    key: Key[Array, ""], shape: tuple[int, ...], sides: Int[Array, "..."]
) -> tuple[Offsets, Offsets]:
    """Return how far each pixel is below and right of the corner of a randomly placed square."""
    sizes = jnp.array(shape[:2], jnp.int32)
    corner = jax.random.randint(key, (2,), 0, sizes - sides + 1, dtype=jnp.int32)
    down, across = (
        jnp.arange(size, dtype=jnp.int32) - first
        for size, first in zip(shape[:2], corner, strict=True)
    )
    return down[:, None, None], across[None, :, None]


def _square_mask(down: Offsets, across: Offsets, sides: Int[Array, "..."]) -> Mask:
    """Return 1 inside the square, of one side or of two, and 0 outside."""
    height, width = jnp.broadcast_to(sides, 2)
    inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    return inside.astype(jnp.float32)


def _bump(
    down: Offsets,
    across: Offsets,
    side: Int[Array, ""],
    transposed: Bool[Array, "..."],
    order: int,
) -> Mask:
    """Return the paper's eta: a positive bump above a negative one in a square, of norm 1.

    Each bump is a sum of centred rectangles of growing size, the m-th with weight 1 / m^2 in L2 and
    1 / m^4 in L1. They lie side by side if transposed. Outside the square it is 0.
    """
    first, second = jnp.where(transposed, across, down), jnp.where(transposed, down, across)
    half = side // 2
    bump = _centred_rectangles(first, second, half, side, order)
    bump -= _centred_rectangles(first - half, second, side - half, side, order)
    return bump / jnp.maximum(_norm(bump, order), _TINY)


def _centred_rectangles(
    down: Offsets, across: Offsets, height: Int[Array, ""], width: Int[Array, ""], order: int
) -> Mask:
    """Return the sum of centred rectangles inside a larger one, of norm 1."""
    numbers = np.arange(1.0, max(np.broadcast_shapes(down.shape, across.shape)) + 2)
    weights = numbers ** -_DECAY[order]
    sums = jnp.asarray(np.cumsum([0, *weights]), jnp.float32)
    number = jnp.maximum(jnp.abs(down - height // 2), jnp.abs(across - width // 2))
    largest = jnp.maximum(height // 2, width // 2) + 1
    inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    bump = jnp.where(inside, sums[largest] - sums[number], 0)
    return bump / jnp.maximum(_norm(bump, order), _TINY)


def _norm(image: Image, order: int, axis: tuple[int, ...] | None = None) -> Array:
    if order == 1:
        return jnp.abs(image).sum(axis=axis, keepdims=True)
    return jnp.sqrt((image**2).sum(axis=axis, keepdims=True))


SQUARE = AttackSpec(
    attack_fn=square,
    run=square,
    traced=("eps", "num_queries", "share", "num_noise_samples"),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    resumable=True,
)
