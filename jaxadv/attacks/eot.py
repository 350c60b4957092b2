"""Expectation over transformation (EOT, Athalye et al., 2018): averages over a model's noise.

Gradients and scores average over noise samples, either the losses or the softmax outputs before the
loss. The first suits an adversary of one noisy forward pass, the second an adversary of an ensemble
of forward passes. Noise samples are evaluated in chunks, so that memory grows with the chunk and
not with the number of samples.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxadv.core.logits import finite_logits
from jaxadv.core.types import Images, Logits, LogitsFn, PerExample, PRNGKey

Objective = Callable[[Logits], PerExample]
T = TypeVar("T", bound=PyTree)

AVERAGES = ("loss", "softmax")


class Noise(NamedTuple):
    """How to average over the noise of a model.

    Attributes:
      num_samples: noise samples; may be traced.
      chunk_size: noise samples evaluated at once; static.
      average: "loss" or "softmax"; static.
    """

    num_samples: int | Int[Array, ""]
    chunk_size: int
    average: str


class EOTEstimate(NamedTuple):
    """Averages over noise samples; every array has one row per example.

    Attributes:
      values: the objective.
      scores: the score.
      gradient: gradient of the objective with respect to the images; finite.
      nonfinite: noise samples whose gradient was NaN or infinite; it counts as zero.
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
) -> EOTEstimate:
    """Return the expected objective and score of each image, and the objective's gradient."""
    if noise.average == "loss":

        def loss(key: PRNGKey, images: Images) -> tuple[Float[Array, ""], tuple]:
            logits = logits_fn(key, images)
            values = objective(logits)
            return values.sum(), (values, score(logits))

    else:
        # With s_k the softmax of sample k and s their mean, d log s = mean of (s_k / s) d log s_k.
        mean = expected_logits(key, logits_fn, images, noise)
        slope = jax.grad(lambda logits: objective(logits).sum())(mean)

        def loss(key: PRNGKey, images: Images) -> tuple[Float[Array, ""], tuple]:
            logits = jax.nn.log_softmax(logits_fn(key, images))
            weighted = lax.stop_gradient(slope * jnp.exp(logits - mean)) * logits
            return weighted.sum(), (objective(mean), score(mean))

    def estimate(key: PRNGKey) -> EOTEstimate:
        gradient, (values, scores) = jax.grad(loss, argnums=1, has_aux=True)(key, images)
        gradient, nonfinite = finite_or_zero(gradient)
        return EOTEstimate(values, scores, gradient, nonfinite.astype(jnp.int32))

    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    zero = EOTEstimate(zeros, zeros, jnp.zeros_like(images), zeros.astype(jnp.int32))
    total = _reduce_over_samples(estimate, key, noise, jnp.sum, zero)
    num_samples = jnp.asarray(noise.num_samples, images.dtype)
    return EOTEstimate(
        total.values / num_samples,
        total.scores / num_samples,
        total.gradient / num_samples,
        total.nonfinite,
    )


def finite_or_zero(
    gradients: Float[Array, "*batch height width channels"],
) -> tuple[Float[Array, "*batch height width channels"], Bool[Array, "*batch"]]:
    """Set gradients with a NaN or infinite value to zero, and return which these are."""
    finite = jnp.isfinite(gradients).all(axis=(-3, -2, -1))
    return jnp.where(finite[..., None, None, None], gradients, 0), ~finite


def expected_score(
    key: PRNGKey, logits_fn: LogitsFn, objective: Objective, images: Images, noise: Noise
) -> PerExample:
    """Return the expected objective of each image."""
    if noise.average == "softmax":
        return objective(expected_logits(key, logits_fn, images, noise))

    def score(key: PRNGKey) -> PerExample:
        return objective(logits_fn(key, images))

    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    total = _reduce_over_samples(score, key, noise, jnp.sum, zeros)
    return total / jnp.asarray(noise.num_samples, total.dtype)


def expected_logits(key: PRNGKey, logits_fn: LogitsFn, images: Images, noise: Noise) -> Logits:
    """Return the logarithm of the mean softmax over noise samples."""

    def log_softmax(key: PRNGKey) -> Logits:
        return jax.nn.log_softmax(finite_logits(logits_fn(key, images)))

    shape = jax.eval_shape(log_softmax, key)
    # Derived from the images, so that it varies over the same axes of a mesh.
    zero = jnp.full_like(images[:, 0, 0, :1], -jnp.inf, dtype=shape.dtype, shape=shape.shape)
    total = _reduce_over_samples(log_softmax, key, noise, jax.nn.logsumexp, zero)
    return total - jnp.log(jnp.asarray(noise.num_samples, total.dtype))


def _reduce_over_samples(
    fn: Callable[[PRNGKey], T], key: PRNGKey, noise: Noise, reduce: Callable, identity: T
) -> T:
    """Reduce `fn` over the keys of noise samples; `identity` is the identity of the reduction."""

    def add_chunk(i: Int[Array, ""], total: T) -> T:
        first = jnp.asarray(i, jnp.int32) * noise.chunk_size
        numbers = first + jnp.arange(noise.chunk_size, dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
        # Without vmap for one sample: kernels with a sample axis would make convolutions slow.
        if noise.chunk_size == 1:
            values = jax.tree.map(lambda value: value[None], fn(keys[0]))
        else:
            values = jax.vmap(fn)(keys)
        is_sample = numbers < noise.num_samples  # the last chunk may be larger than what is left

        def add(total: Array, values: Array, identity: Array) -> Array:
            values = jnp.where(is_sample.reshape(-1, *[1] * total.ndim), values, identity)
            return reduce(jnp.concatenate([total[None], values]), axis=0).astype(total.dtype)

        return jax.tree.map(add, total, values, identity)

    num_chunks = (noise.num_samples + noise.chunk_size - 1) // noise.chunk_size
    return lax.fori_loop(0, num_chunks, add_chunk, identity)
