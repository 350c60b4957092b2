"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): prediction and certificate by sampling.

The smoothed classifier predicts the class that the noisy one predicts most often under Gaussian
noise on its input. Within an L2 radius that follows from how often, it provably stays the same.

The proof is about real numbers and exact Gaussian noise. See `certify` for what floating-point
arithmetic does to it.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from scipy.special import betaincinv, ndtri

from jaxadv.attacks.inputs import check_key
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.draws import normal
from jaxadv.logits import at_least_single, predicted_class
from jaxadv.types import Images, LogitsFn, PRNGKey

ABSTAIN = -1
_ROUNDING = 2.0**-24  # largest relative error of one float32 operation

CountsFn = Callable[[int, int], Int[np.ndarray, "n classes"]]
"""`(stage, num_samples) -> counts`: how often each class was predicted for each example; another
stage is independent noise. Forward passes that are missing from the sum of a row predicted none."""


class Certificate(NamedTuple):
    """Certified predictions of the smoothed classifier for n images.

    Attributes:
      predictions: (n,) classes, or ABSTAIN.
      radii: (n,) L2 radii, in units of the pixel range, within which the smoothed classifier
        predicts this class, with the confidence asked for; 0 where it abstains. Already reduced by
        `allowances`.
      allowances: (n,) L2 distances by which the radii were reduced for float32 rounding.
      num_nonfinite: (n,) forward passes of both stages with a NaN or infinite logit. They count for
        no class, so they only lower a radius.
    """

    predictions: np.ndarray
    radii: np.ndarray
    allowances: np.ndarray
    num_nonfinite: np.ndarray


def with_input_noise(logits_fn: LogitsFn, sigma: float) -> LogitsFn:
    """Returns the function with Gaussian noise of deviation sigma on its images.

    Raises:
      ValueError: sigma is negative or not finite.
    """
    if not isinstance(sigma, jax.core.Tracer) and not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma}: use a finite number of 0 or more")

    def noisy(key: jax.Array, images: jax.Array) -> jax.Array:
        noise_key, key = jax.random.split(key)
        return logits_fn(key, images + sigma * normal(noise_key, images.shape))

    return noisy


def count_predictions(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    num_samples: int,
    first: int | Int[Array, ""] = 0,
) -> Int[Array, "batch classes"]:
    """Counts how often each class is predicted in `num_samples` passes of a noisy function.

    A pass with a NaN or infinite logit counts for no class.

    Args:
      key: of the passes.
      logits_fn: `(key, images) -> logits`, with Gaussian noise on its images.
      images: in [0, 1], shape (batch, height, width, channels).
      num_samples: passes; static.
      first: number of the first pass, which its noise follows from: counts of consecutive parts
        add up to that of the whole.

    Raises:
      ValueError: `logits_fn` returns no logits of two classes or more, or `num_samples` is below 1.
    """
    _check_passes("num_samples", num_samples)
    images = jnp.asarray(images)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}: use floats (batch, height, width, "
            "channels)"
        )
    key, images = check_key(key), at_least_single(images)
    model = trace_model(logits_fn, key, images, gradients=False)
    return _count_predictions(key, model, images, num_samples, first)


@partial(jax.jit, static_argnames="num_samples")
def _count_predictions(
    key: PRNGKey,
    model: TracedModel,
    images: Images,
    num_samples: int,
    first: int | Int[Array, ""],
) -> Int[Array, "batch classes"]:
    num_classes = model.num_classes

    def add(i: Int[Array, ""], counts: Int[Array, "batch classes"]) -> Int[Array, "batch classes"]:
        predictions = predicted_class(model(jax.random.fold_in(key, first + i), images))
        return counts + (predictions[:, None] == jnp.arange(num_classes))

    start = jnp.zeros((len(images), num_classes), jnp.int32)
    return lax.fori_loop(0, num_samples, add, start)


def predict(counts_fn: CountsFn, num_samples: int, failure: float = 0.001) -> np.ndarray:
    """Predicts the smoothed classifier's classes (algorithm PREDICT), or ABSTAIN.

    Passes with a NaN or infinite logit count as if they had predicted the runner-up, so they never
    decide for a class.

    Args:
      counts_fn: counts predictions under noise, see `count_predictions`.
      num_samples: passes over each image.
      failure: probability that a class returned is not the smoothed classifier's.

    Raises:
      ValueError: an argument is out of its range, or the counts are not of `num_samples` passes.
    """
    from scipy.stats import binomtest  # takes a second, which the start need not wait for

    _check_passes("num_samples", num_samples)
    _check_failure(failure)
    # Two-sided: num_samples passes that all agree have a p-value of 2 * 0.5 ** num_samples.
    _warn_if_always_abstains("num_samples", num_samples, failure, math.ceil(1 - math.log2(failure)))
    counts, nonfinite = _count(counts_fn, 0, num_samples)
    order = counts.argsort(axis=1)
    first, second = (np.take_along_axis(counts, order[:, -k, None], 1)[:, 0] for k in (1, 2))
    if nonfinite.any():
        warnings.warn(
            f"{nonfinite.sum()} of {num_samples * len(counts)} forward passes have NaN or infinite "
            "logits: they count as the runner-up. Check the model on images with noise",
            stacklevel=2,
        )
    others = second + nonfinite
    doubtful = [
        top <= other or binomtest(int(top), int(top + other)).pvalue > failure
        for top, other in zip(first, others, strict=True)
    ]
    return np.where(doubtful, ABSTAIN, order[:, -1])


def certify(
    counts_fn: CountsFn,
    sigma: float,
    *,
    image_shape: Sequence[int],
    num_selection: int = 100,
    num_estimation: int = 100_000,
    failure: float = 0.001,
) -> Certificate:
    """Certifies classes and L2 radii of the smoothed classifier (algorithm CERTIFY).

    The class is chosen in a first stage; a second, independent one bounds its probability p from
    below, and the radius is sigma times the normal quantile of that bound (theorem 1 with the
    other classes at 1 - p). It abstains where the bound is not above one half.

    The theorem holds for real numbers. With floating-point numbers a certificate can be violated:
    Jin, Ohrimenko & Rubinstein ("Getting a-Round Guarantees: Floating-Point Attacks on Certified
    Robustness", arXiv 2207.07209) find misclassified images inside of certified radii, because the
    radius and the norm of a perturbation are rounded, and so are images with noise. Radii are
    therefore computed in float64 and reduced by `rounding_allowance`. That is an allowance against
    the rounding of a standard float32 implementation. It is no proof: not for another
    implementation or precision (bfloat16, TensorFloat-32), nor for the sampled noise, which has
    finitely many values and no tail beyond about 5.6 sigma.

    Args:
      counts_fn: counts predictions under noise, see `count_predictions`.
      sigma: deviation of the Gaussian noise on the images, above 0.
      image_shape: of one image, such as (32, 32, 3): the allowance grows with its number of values.
      num_selection: passes of the first stage, at least 1.
      num_estimation: passes of the second, at least 1. Too few for this `failure` certify nothing:
        a warning says how many are needed.
      failure: probability that a certificate is wrong, between 0 and 1, exclusive.

    Raises:
      ValueError: an argument is out of its range, or the counts are not of as many passes.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma}: use a finite number above 0")
    _check_passes("num_selection", num_selection)
    _check_passes("num_estimation", num_estimation)
    _check_failure(failure)
    # The bound of num_estimation passes that all agree is failure ** (1 / num_estimation).
    enough = math.floor(-math.log2(failure)) + 1
    _warn_if_always_abstains("num_estimation", num_estimation, failure, enough)
    selected, nonfinite_selected = _count(counts_fn, 0, num_selection)
    estimated, nonfinite_estimated = _count(counts_fn, 1, num_estimation)
    chosen = selected.argmax(axis=1)
    successes = np.take_along_axis(estimated, chosen[:, None], 1)[:, 0]
    # Rounded down, and so below 1, whose quantile is infinite.
    lower = np.nextafter(lower_bound(successes, num_estimation, failure), 0)
    exact = sigma * ndtri(np.maximum(lower, 0.5))
    allowances = rounding_allowance(exact, sigma, image_shape)
    radii = np.maximum(exact - allowances, 0)
    return Certificate(
        np.where(radii > 0, chosen, ABSTAIN),
        radii,
        allowances,
        nonfinite_selected + nonfinite_estimated,
    )


def rounding_allowance(
    radii: Float[np.ndarray, "n"], sigma: float, image_shape: Sequence[int]
) -> Float[np.ndarray, "n"]:
    """Bounds what float32 rounding can add to an L2 radius, to first order.

    With u = 2**-24, the largest relative error of an operation, and d values in an image:

    - sigma and the radius are off by a factor of 1 + u each as float32.
    - An L2 norm summed in float32, in any order, is too small by a factor of at most
      1 - (d / 2 + 2) u: each difference is off by u, which its square doubles, the square itself by
      u, and the sum by (d - 1) u; the root halves the total, and adds u.
    - A value x + sigma z, of a pixel x in [0, 1] with noise z, is off by at most
      u (1 + 2 sigma |z|). For noise of root mean square up to 2 (1 is expected) that is an L2
      distance of sqrt(d) u (1 + 4 sigma), counted once for the image and once for the perturbed
      one.
    """
    size = math.prod(image_shape)
    relative = (size / 2 + 4) * _ROUNDING
    return radii * relative + 2 * math.sqrt(size) * _ROUNDING * (1 + 4 * sigma)


def lower_bound(
    successes: Int[np.ndarray, "n"], num_samples: int, failure: float
) -> Float[np.ndarray, "n"]:
    """Returns the one-sided lower confidence bound of Clopper and Pearson (1934)."""
    some = np.maximum(successes, 1)  # the quantile is not defined at 0, where the bound is 0
    return np.where(successes > 0, betaincinv(some, num_samples - some + 1, failure), 0.0)


def certified(
    certificate: Certificate, labels: Int[np.ndarray, "n"], radius: float
) -> Bool[np.ndarray, "n"]:
    """Returns for each example whether it is certified to be classified right in that radius.

    Raises:
      ValueError: the radius is negative or not finite.
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius={radius}: use a finite number of 0 or more")
    return (certificate.predictions == labels) & (certificate.radii >= radius)


def _count(
    counts_fn: CountsFn, stage: int, num_samples: int
) -> tuple[Int[np.ndarray, "n classes"], Int[np.ndarray, "n"]]:
    """Returns the counts of a stage, and of how many passes no class was predicted."""
    counts = np.asarray(counts_fn(stage, num_samples))
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(
            f"counts have shape {counts.shape}: use (n, classes), of 2 classes or more"
        )
    missing = num_samples - counts.sum(axis=1)
    if (counts < 0).any() or (missing < 0).any():
        raise ValueError(
            f"counts are {counts.min()} or more, and {counts.sum(axis=1).max()} for an image: "
            f"use those of {num_samples} passes"
        )
    return counts, missing


def _check_passes(name: str, number: Any) -> None:
    if not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{name}={number}: use a whole number of 1 or more")


def _check_failure(failure: float) -> None:
    if not 0 < failure < 1:
        raise ValueError(f"failure={failure}: use a probability between 0 and 1, exclusive")


def _warn_if_always_abstains(name: str, number: int, failure: float, enough: int) -> None:
    if number < enough:
        warnings.warn(
            f"{name}={number} with failure={failure}: every image is abstained on, whatever the "
            f"model; use {name}={enough} or more",
            stacklevel=3,
        )
