"""Square attack: random search over squares of a perturbation (Andriushchenko et al. 2020)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxadv.attacks.arguments import check_arguments
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
    keep_larger,
    make_task,
    search,
)
from jaxadv.attacks.tracing import TracedModel
from jaxadv.draws import rademacher
from jaxadv.losses import make_objective
from jaxadv.prng import example_keys
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey

Image = Float[Array, "height width channels"]
Grid = Float[Array, "height width 1"]
Offsets = Int[Array, "..."]  # of pixels from the corner of a square, down or across
Scalar = Float[Array, ""]

# After so many squares the share of the image that one covers is halved, whatever the budget.
_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], np.int32)
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
    resume: Queried | None = None,
) -> Queried:
    """Changes one square after another, each kept only if the margin grows.

    The first query looks at the clean image, the second at the start: vertical stripes of +-eps in
    L-inf, 5 x 5 bumps in L2. Then every query is one square, at a place and with signs drawn for
    each example from its own key. The share of the image that a square covers is halved after 10,
    50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of them, whatever the budget.

    In AutoAttack the start is kept even where the clean image has the larger margin, the first
    11 squares are large, none reaches the last row or column, and a target's cross entropy is
    descended where here its margin is.

    `share` of the image is covered by the first squares; it is traced. The other arguments, the
    result and the errors are those of `jaxadv.attacks.nes`.
    """
    check_arguments({
        "eps": eps, "num_queries": num_queries, "norm": norm, "share": share,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, task = make_task(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    share = jnp.asarray(share, jnp.float32)
    found = go_on(resume, begin(task.images), task.eps, norm)
    if buys_nothing(num_queries):
        return found
    with reaching(model):
        return _square(model, task, found, share, norm=norm)


@partial(jax.jit, static_argnames="norm")
def _square(
    model: TracedModel | BlackBox, task: Task, found: Queried, share: Scalar, *, norm: str
) -> Queried:
    start, change = _MOVES[norm]
    draw_key, look_key = jax.random.split(task.key)
    images, eps = task.images, task.eps

    def propose(found: Queried, active: Bool[Array, "batch"], step: Int[Array, ""]) -> Proposal:
        keys = example_keys(jax.random.fold_in(draw_key, step), task.example_ids)
        covered = _covered(share, step - 1)
        delta = jax.lax.cond(
            step == 1,
            lambda: jax.vmap(partial(start, eps=eps, shape=images.shape[1:]))(keys),
            lambda: jax.vmap(partial(change, eps=eps, share=covered))(keys, found.images - images),
        )
        return Proposal(jnp.clip(images + delta, 0.0, 1.0), (), jnp.zeros_like(found.nonfinite))

    return search(
        look_key,
        make_passes(model, task.labels, task.targets),
        make_objective("margin", task.labels, task.targets),
        task,
        found,
        Search(propose, always(0), keep_larger),
    )


def _covered(share: Scalar, square: Int[Array, ""]) -> Scalar:
    """Returns the share of the image that a square covers; the first has the number 1."""
    return share / 2.0 ** (square > _HALVINGS).sum(dtype=share.dtype)


def _linf_start(key: Key[Array, ""], *, eps: Scalar, shape: tuple[int, ...]) -> Image:
    """Returns vertical stripes, one pixel wide, with a sign for each stripe and channel."""
    _, width, channels = shape
    return jnp.broadcast_to(eps * rademacher(key, (1, width, channels)), shape)


def _linf_change(key: Key[Array, ""], delta: Image, *, eps: Scalar, share: Scalar) -> Image:
    """Returns the perturbation with +-2 eps added to each channel of one square, and clipped."""
    place_key, sign_key = jax.random.split(key)
    height, width, channels = delta.shape
    side = jnp.clip(_side(share, height, width), 1, min(height, width))
    square = _inside(*_offsets(place_key, delta.shape, side), side)
    signs = rademacher(sign_key, (1, 1, channels))
    return jnp.clip(delta + square * 2 * eps * signs, -eps, eps)


def _l2_start(key: Key[Array, ""], *, eps: Scalar, shape: tuple[int, ...]) -> Image:
    """Returns 5 x 5 bumps side by side, with a sign for each bump and channel."""
    height, width, channels = shape
    side, tiles = max(min(height, width) // 5, 1), [min(size, 5) for size in (height, width)]
    rows, columns = (
        jnp.arange(size, dtype=jnp.int32) - (size - count * side) // 2
        for size, count in zip((height, width), tiles, strict=True)
    )
    row, column = (
        jnp.clip(at // side, 0, count - 1) for at, count in zip((rows, columns), tiles, strict=True)
    )
    sign_key, turn_key = jax.random.split(key)
    signs = rademacher(sign_key, (*tiles, channels))[row[:, None], column]
    turned = jax.random.bernoulli(turn_key, shape=(*tiles, 1))[row[:, None], column]
    down = (rows - row * side)[:, None, None]
    across = (columns - column * side)[None, :, None]
    bumps = signs * _bump(down, across, jnp.asarray(side), turned)
    return eps * bumps / _norm(bumps)


def _l2_change(key: Key[Array, ""], delta: Image, *, eps: Scalar, share: Scalar) -> Image:
    """Returns the perturbation with one square emptied and its norm spent on a bump in another."""
    place_key, other_key, sign_key, turn_key = jax.random.split(key, 4)
    height, width, channels = delta.shape
    side = jnp.maximum(_side(share, height, width), 3)
    side = jnp.minimum(side + 1 - side % 2, (min(height, width) - 1) // 2 * 2 + 1)  # odd
    place = _offsets(place_key, delta.shape, side)
    square, other = _inside(*place, side), _inside(*_offsets(other_key, delta.shape, side), side)
    unused = jnp.maximum(eps**2 - _norm(delta) ** 2, 0)
    norm = jnp.sqrt(_norm(delta * jnp.maximum(square, other), axis=(0, 1)) ** 2 + unused / channels)
    turned = jax.random.bernoulli(turn_key)
    bump = _bump(*place, side, turned) * rademacher(sign_key, (1, 1, channels))
    old = square * delta
    new = bump + old / (_norm(old, axis=(0, 1)) + _TINY)
    new *= norm / (_norm(new, axis=(0, 1)) + _TINY)
    delta = jnp.where(square > 0, new, jnp.where(other > 0, 0, delta))
    return eps * delta / (_norm(delta) + _TINY)


_MOVES: dict[str, tuple[Callable[..., Image], Callable[..., Image]]] = {
    "linf": (_linf_start, _linf_change),
    "l2": (_l2_start, _l2_change),
}


def _side(share: Scalar, height: int, width: int) -> Int[Array, ""]:
    return jnp.round(jnp.sqrt(share * height * width)).astype(jnp.int32)


def _offsets(
    key: Key[Array, ""], shape: tuple[int, ...], side: Int[Array, ""]
) -> tuple[Offsets, Offsets]:
    """Returns how far each pixel is below and right of the corner of a square put anywhere."""
    sizes = jnp.array(shape[:2], jnp.int32)
    corner = jax.random.randint(key, (2,), 0, sizes - side + 1, dtype=jnp.int32)
    down, across = (
        jnp.arange(size, dtype=jnp.int32) - first
        for size, first in zip(shape[:2], corner, strict=True)
    )
    return down[:, None, None], across[None, :, None]


def _inside(down: Offsets, across: Offsets, side: Int[Array, ""]) -> Grid:
    """Returns 1 inside of the square and 0 outside."""
    return ((down >= 0) & (down < side) & (across >= 0) & (across < side)).astype(jnp.float32)


def _bump(down: Offsets, across: Offsets, side: Int[Array, ""], turned: Bool[Array, "..."]) -> Grid:
    """Returns a hill above a pit in a square, of norm 1 (the paper's eta); 0 outside.

    Each is a sum of centred rectangles of growing size, the m-th with the weight 1 / m^2. Turned,
    they lie side by side.
    """
    first, second = jnp.where(turned, across, down), jnp.where(turned, down, across)
    half = side // 2
    bump = _rectangles(first, second, half, side)
    bump -= _rectangles(first - half, second, side - half, side)
    return bump / jnp.maximum(_norm(bump), _TINY)


def _rectangles(
    down: Offsets, across: Offsets, height: Int[Array, ""], width: Int[Array, ""]
) -> Grid:
    """Returns the sum of centred rectangles inside of one, of norm 1."""
    weights = 1 / np.arange(1, max(np.broadcast_shapes(down.shape, across.shape)) + 2) ** 2
    sums = jnp.asarray(np.cumsum([0, *weights]), jnp.float32)
    number = jnp.maximum(jnp.abs(down - height // 2), jnp.abs(across - width // 2))
    largest = jnp.maximum(height // 2, width // 2) + 1
    inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    hill = jnp.where(inside, sums[largest] - sums[number], 0)
    return hill / jnp.maximum(_norm(hill), _TINY)


def _norm(image: Image, axis: tuple[int, ...] | None = None) -> Array:
    return jnp.sqrt((image**2).sum(axis=axis, keepdims=True))
