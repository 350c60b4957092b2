"""Expectation over a model's noise (EOT, Athalye et al. 2018): gradients and scores.

What is averaged over the draws is either the loss of each, or their softmax, whose loss is then
taken: the adversary of one noisy pass, or that of an ensemble of passes. Draws are taken a chunk at
a time, so that memory grows with the chunk and not with the number of draws.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxadv.logits import finite_logits
from jaxadv.types import Images, Logits, LogitsFn, PerExample, PRNGKey

Objective = Callable[[Logits], PerExample]
T = TypeVar("T", bound=PyTree)

AVERAGES = ("loss", "softmax")


class Noise(NamedTuple):
    """How the noise of a model is averaged.

    Attributes:
      num_samples: draws; may be traced.
      chunk_size: draws taken at once; static.
      average: "loss" or "softmax"; static.
    """

    num_samples: int | Int[Array, ""]
    chunk_size: int
    average: str


class Expected(NamedTuple):
    """What is expected of a model at a batch of images; every array has one row per example.

    Attributes:
      values: of the objective.
      scores: of the score.
      gradient: of the objective, with respect to the images; finite.
      nonfinite: how many draws had a gradient that is not finite, and counts as zero.
    """

    values: PerExample
    scores: PerExample
    gradient: Images
    nonfinite: Int[Array, "batch"]


def expected_value_and_gradient(
    key: PRNGKey,
    logits_fn: LogitsFn,
    objective: Objective,
    score: Objective,
    images: Images,
    noise: Noise,
) -> Expected:
    """Returns the expected objective and score of each image, and the objective's gradient."""
    if noise.average == "loss":

        def loss(key: PRNGKey, images: Images) -> tuple[Float[Array, ""], tuple]:
            logits = logits_fn(key, images)
            values = objective(logits)
            return values.sum(), (values, score(logits))

    else:
        # With s_k the softmax of draw k and s their mean, d log s = mean of (s_k / s) d log s_k.
        mean = expected_logits(key, logits_fn, images, noise)
        slope = jax.grad(lambda logits: objective(logits).sum())(mean)

        def loss(key: PRNGKey, images: Images) -> tuple[Float[Array, ""], tuple]:
            logits = jax.nn.log_softmax(logits_fn(key, images))
            weighted = lax.stop_gradient(slope * jnp.exp(logits - mean)) * logits
            return weighted.sum(), (objective(mean), score(mean))

    def draw(key: PRNGKey) -> Expected:
        gradient, (values, scores) = jax.grad(loss, argnums=1, has_aux=True)(key, images)
        gradient, nonfinite = finite_or_zero(gradient)
        return Expected(values, scores, gradient, nonfinite.astype(jnp.int32))

    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    nothing = Expected(zeros, zeros, jnp.zeros_like(images), zeros.astype(jnp.int32))
    total = _over_draws(draw, key, noise, jnp.sum, nothing)
    num_samples = jnp.asarray(noise.num_samples, images.dtype)
    return Expected(
        total.values / num_samples,
        total.scores / num_samples,
        total.gradient / num_samples,
        total.nonfinite,
    )


def finite_or_zero(
    gradients: Float[Array, "*batch height width channels"],
) -> tuple[Float[Array, "*batch height width channels"], Bool[Array, "*batch"]]:
    """Returns gradients of images, zero where one is not finite, and where that is."""
    finite = jnp.isfinite(gradients).all(axis=(-3, -2, -1))
    return jnp.where(finite[..., None, None, None], gradients, 0), ~finite


def expected_score(
    key: PRNGKey, logits_fn: LogitsFn, objective: Objective, images: Images, noise: Noise
) -> PerExample:
    """Returns the expected objective of each image."""
    if noise.average == "softmax":
        return objective(expected_logits(key, logits_fn, images, noise))

    def score(key: PRNGKey) -> PerExample:
        return objective(logits_fn(key, images))

    nothing = jnp.zeros_like(images[:, 0, 0, 0])
    total = _over_draws(score, key, noise, jnp.sum, nothing)
    return total / jnp.asarray(noise.num_samples, total.dtype)


def expected_logits(key: PRNGKey, logits_fn: LogitsFn, images: Images, noise: Noise) -> Logits:
    """Returns the logarithm of the mean softmax over the draws."""

    def log_softmax(key: PRNGKey) -> Logits:
        return jax.nn.log_softmax(finite_logits(logits_fn(key, images)))

    shape = jax.eval_shape(log_softmax, key)
    # Of the images, so that it varies over the axes of a mesh as they do.
    nothing = jnp.full_like(images[:, 0, 0, :1], -jnp.inf, dtype=shape.dtype, shape=shape.shape)
    total = _over_draws(log_softmax, key, noise, jax.nn.logsumexp, nothing)
    return total - jnp.log(jnp.asarray(noise.num_samples, total.dtype))


def _over_draws(
    fn: Callable[[PRNGKey], T], key: PRNGKey, noise: Noise, reduce: Callable, nothing: T
) -> T:
    """Returns `fn` reduced over draws of its key; `nothing` is what changes no reduction."""

    def add(i: Int[Array, ""], total: T) -> T:
        first = jnp.asarray(i, jnp.int32) * noise.chunk_size
        draws = first + jnp.arange(noise.chunk_size, dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, draws)
        # One draw is not mapped: a kernel with an axis of draws would make a slow convolution.
        if noise.chunk_size == 1:
            values = jax.tree.map(lambda value: value[None], fn(keys[0]))
        else:
            values = jax.vmap(fn)(keys)
        counts = draws < noise.num_samples

        def reduced(total: Array, values: Array, nothing: Array) -> Array:
            values = jnp.where(counts.reshape(-1, *[1] * total.ndim), values, nothing)
            return reduce(jnp.concatenate([total[None], values]), axis=0).astype(total.dtype)

        return jax.tree.map(reduced, total, values, nothing)

    num_chunks = (noise.num_samples + noise.chunk_size - 1) // noise.chunk_size
    return lax.fori_loop(0, num_chunks, add, nothing)
