"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): prediction and certificate by sampling.

The smoothed classifier predicts the class that the noisy one predicts most often under Gaussian
noise on its input. Within an L2 radius that follows from how often, it provably stays the same.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from scipy.special import betaincinv, ndtri

from jaxadv.draws import normal
from jaxadv.types import Images, LogitsFn, PRNGKey

ABSTAIN = -1

CountsFn = Callable[[int, int], Int[np.ndarray, "n classes"]]
"""`(stage, num_samples) -> counts`: how often each class was predicted for each example; another
stage is independent noise."""


class Certificate(NamedTuple):
    """What smoothing says about n images.

    Attributes:
      predictions: (n,) classes, or ABSTAIN.
      radii: (n,) L2 radii, in units of the pixel range, within which the smoothed classifier
        predicts this class, with the confidence asked for; 0 where it abstains.
    """

    predictions: np.ndarray
    radii: np.ndarray


def with_input_noise(logits_fn: LogitsFn, sigma: float) -> LogitsFn:
    """Returns the function with Gaussian noise of deviation sigma on its images."""

    def noisy(key: jax.Array, images: jax.Array) -> jax.Array:
        noise_key, key = jax.random.split(key)
        return logits_fn(key, images + sigma * normal(noise_key, images.shape))

    return noisy


@partial(jax.jit, static_argnames=("logits_fn", "num_samples"))
def count_predictions(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    num_samples: int,
    first: int | Int[Array, ""] = 0,
) -> Int[Array, "batch classes"]:
    """Returns how often each class is predicted in `num_samples` passes of a noisy function.

    Args:
      key: of the passes.
      logits_fn: `(key, images) -> logits`, with Gaussian noise on its images.
      images: in [0, 1], shape (batch, height, width, channels).
      num_samples: passes; static.
      first: number of the first pass, which its noise follows from: counts of consecutive parts
        add up to that of the whole.
    """
    num_classes = jax.eval_shape(logits_fn, key, images).shape[1]

    def add(i: Int[Array, ""], counts: Int[Array, "batch classes"]) -> Int[Array, "batch classes"]:
        predictions = logits_fn(jax.random.fold_in(key, first + i), images).argmax(axis=-1)
        return counts + (predictions[:, None] == jnp.arange(num_classes))

    start = jnp.zeros((len(images), num_classes), jnp.int32)
    return lax.fori_loop(0, num_samples, add, start)


def predict(counts_fn: CountsFn, num_samples: int, failure: float = 0.001) -> np.ndarray:
    """Returns the smoothed classifier's classes (algorithm PREDICT), or ABSTAIN.

    Args:
      counts_fn: counts predictions under noise, see `count_predictions`.
      num_samples: passes over each image.
      failure: probability that a class returned is not the smoothed classifier's.
    """
    from scipy.stats import binomtest  # takes a second, which the start need not wait for

    counts = counts_fn(0, num_samples)
    order = counts.argsort(axis=1)
    first, second = (np.take_along_axis(counts, order[:, -k, None], 1)[:, 0] for k in (1, 2))
    doubtful = [
        binomtest(int(top), int(top + next_)).pvalue > failure
        for top, next_ in zip(first, second, strict=True)
    ]
    return np.where(doubtful, ABSTAIN, order[:, -1])


def certify(
    counts_fn: CountsFn,
    sigma: float,
    *,
    num_selection: int = 100,
    num_estimation: int = 100_000,
    failure: float = 0.001,
) -> Certificate:
    """Returns classes and certified L2 radii (algorithm CERTIFY).

    The class is chosen in a first stage; a second, independent one bounds its probability p from
    below, and the radius is sigma times the normal quantile of that bound (theorem 1 with the
    other classes at 1 - p). It abstains where the bound is below one half.

    Args:
      counts_fn: counts predictions under noise, see `count_predictions`.
      sigma: deviation of the Gaussian noise on the images.
      num_selection: passes of the first stage.
      num_estimation: passes of the second.
      failure: probability that a certificate is wrong.
    """
    chosen = counts_fn(0, num_selection).argmax(axis=1)
    successes = np.take_along_axis(counts_fn(1, num_estimation), chosen[:, None], 1)[:, 0]
    lower = lower_bound(successes, num_estimation, failure)
    certified = lower > 0.5
    radii = sigma * ndtri(np.where(certified, lower, 0.5))
    return Certificate(np.where(certified, chosen, ABSTAIN), radii)


def lower_bound(
    successes: Int[np.ndarray, "n"], num_samples: int, failure: float
) -> Float[np.ndarray, "n"]:
    """Returns the one-sided lower confidence bound of Clopper and Pearson (1934)."""
    some = np.maximum(successes, 1)  # the quantile is not defined at 0, where the bound is 0
    return np.where(successes > 0, betaincinv(some, num_samples - some + 1, failure), 0.0)


def certified(
    certificate: Certificate, labels: Int[np.ndarray, "n"], radius: float
) -> Bool[np.ndarray, "n"]:
    """Returns for each example whether it is certified to be classified right in that radius."""
    return (certificate.predictions == labels) & (certificate.radii >= radius)
