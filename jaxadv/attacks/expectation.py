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
from jaxtyping import Array, Float, Int, PyTree

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


def expected_gradient(
    key: PRNGKey, logits_fn: LogitsFn, objective: Objective, images: Images, noise: Noise
) -> Images:
    """Returns the gradient of the expected objective with respect to the images."""
    return expected_value_and_gradient(key, logits_fn, objective, objective, images, noise)[2]


def expected_value_and_gradient(
    key: PRNGKey,
    logits_fn: LogitsFn,
    objective: Objective,
    score: Objective,
    images: Images,
    noise: Noise,
) -> tuple[PerExample, PerExample, Images]:
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

    def draw(key: PRNGKey) -> tuple[PerExample, PerExample, Images]:
        gradient, (values, scores) = jax.grad(loss, argnums=1, has_aux=True)(key, images)
        return values, scores, gradient

    zeros = jnp.zeros(len(images), images.dtype)
    nothing = zeros, zeros, jnp.zeros_like(images)
    total = _over_draws(draw, key, noise, jnp.sum, nothing)
    return jax.tree.map(lambda x: x / noise.num_samples, total)


def expected_score(
    key: PRNGKey, logits_fn: LogitsFn, objective: Objective, images: Images, noise: Noise
) -> PerExample:
    """Returns the expected objective of each image."""
    if noise.average == "softmax":
        return objective(expected_logits(key, logits_fn, images, noise))

    def score(key: PRNGKey) -> PerExample:
        return objective(logits_fn(key, images))

    nothing = jnp.zeros(len(images))
    return _over_draws(score, key, noise, jnp.sum, nothing) / noise.num_samples


def expected_logits(key: PRNGKey, logits_fn: LogitsFn, images: Images, noise: Noise) -> Logits:
    """Returns the logarithm of the mean softmax over the draws."""

    def log_softmax(key: PRNGKey) -> Logits:
        return jax.nn.log_softmax(logits_fn(key, images))

    shape = jax.eval_shape(log_softmax, key)
    nothing = jnp.full(shape.shape, -jnp.inf, shape.dtype)
    total = _over_draws(log_softmax, key, noise, jax.nn.logsumexp, nothing)
    return total - jnp.log(noise.num_samples)


def _over_draws(
    fn: Callable[[PRNGKey], T], key: PRNGKey, noise: Noise, reduce: Callable, nothing: T
) -> T:
    """Returns `fn` reduced over draws of its key; `nothing` is what changes no reduction."""

    def add(i: Int[Array, ""], total: T) -> T:
        draws = i * noise.chunk_size + jnp.arange(noise.chunk_size)
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
