"""Gradients estimated from queries on both sides of an image (Salimans et al. 2017)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxadv.attacks.arguments import DIRECTIONS as NAMES
from jaxadv.attacks.expectation import Objective
from jaxadv.attacks.passes import BlackBox, Passes
from jaxadv.draws import normal, rademacher
from jaxadv.prng import example_keys
from jaxadv.types import Images, LogitsFn, PerExample, PRNGKey

_IMAGES_AT_ONCE = 8192  # on an accelerator

DIRECTIONS: dict[str, Callable[..., Array]] = dict(zip(NAMES, (normal, rademacher), strict=True))


class Estimate(NamedTuple):
    """A gradient from differences; every array has one row per example.

    Attributes:
      gradient: of the objective, finite.
      values: mean of the objective over the queries; one that is not finite counts as zero.
      nonfinite: pairs whose difference is not finite, and counts as zero.
    """

    gradient: Images
    values: PerExample
    nonfinite: Int[Array, "batch"]


class Sampling(NamedTuple):
    """How a gradient is estimated.

    Attributes:
      num_samples: queries of one gradient, in half as many pairs; static.
      chunk_size: queries of an image taken at once; static.
      directions: "normal" or "rademacher"; static.
      sigma: distance of a query along its direction; may be traced.
    """

    num_samples: int
    chunk_size: int
    directions: str
    sigma: Float[Array, ""]


def estimate_gradient(
    key: PRNGKey,
    passes: Passes,
    objective: Objective,
    images: Images,
    example_ids: Int[Array, "batch"],
    active: Bool[Array, "batch"],
    sampling: Sampling,
) -> Estimate:
    """Returns the antithetic estimate of each image's gradient, and the mean of the objective.

    With n pairs it is 1 / (2 n sigma) sum_i [f(x + sigma u_i) - f(x - sigma u_i)] u_i. For a
    linear f in d pixels its expectation is the gradient w, and that of its squared norm
    |w|^2 (1 + (d + 1) / n), or (d - 1) / n for Rademacher directions: its cosine with the
    gradient grows like the root of n / (n + d).
    """
    num_pairs, num_at_once = sampling.num_samples // 2, sampling.chunk_size // 2
    draw_key, noise_key = jax.random.split(key)
    keys = example_keys(draw_key, example_ids)
    draw = partial(DIRECTIONS[sampling.directions], shape=images.shape[1:])

    def directions(pair: Int[Array, ""]) -> Images:
        return jax.vmap(lambda key: draw(jax.random.fold_in(key, pair)))(keys)

    def add(i: int | Int[Array, ""], total: Estimate) -> Estimate:
        first = jnp.asarray(i, jnp.int32) * num_at_once
        pairs = first + jnp.arange(num_at_once, dtype=jnp.int32)
        u = jax.vmap(directions)(pairs)
        queries = images + sampling.sigma * jnp.concatenate([u, -u])
        noise_keys = example_keys(noise_key, jnp.concatenate([pairs, -1 - pairs]))
        logits = passes(noise_keys, queries, active)
        values = jax.vmap(objective)(logits)
        slopes = values[:num_at_once] - values[num_at_once:]
        finite = jnp.isfinite(slopes)
        slopes = jnp.where(finite, slopes, 0)
        return Estimate(
            total.gradient + (slopes[..., None, None, None] * u).sum(axis=0),
            total.values + jnp.where(jnp.isfinite(values), values, 0).sum(axis=0),
            total.nonfinite + (~finite).sum(axis=0, dtype=jnp.int32),
        )

    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    nothing = Estimate(jnp.zeros_like(images), zeros, zeros.astype(jnp.int32))
    total = lax.fori_loop(0, num_pairs // num_at_once, add, nothing)
    return Estimate(
        total.gradient / (2 * num_pairs * sampling.sigma),
        total.values / (2 * num_pairs),
        total.nonfinite,
    )


def choose_chunk_size(
    model: LogitsFn | BlackBox, num_samples: int, limit: int | None, batch: int
) -> int:
    """Returns how many queries of an image to take at once: a divisor of their number.

    With no limit these are all for a black box, which is called as seldom as can be; on a CPU 2,
    since a convolution over an axis of draws is slow there; else so many that a pass has up to 8192
    images, or 2 for each.
    """
    if limit is None and isinstance(model, BlackBox):
        return num_samples
    if limit is None:
        limit = 2 if jax.default_backend() == "cpu" else _IMAGES_AT_ONCE // max(batch, 1)
    divisors = (size for size in range(2, num_samples + 1, 2) if num_samples % size == 0)
    return max(size for size in divisors if size <= max(limit, 2))
