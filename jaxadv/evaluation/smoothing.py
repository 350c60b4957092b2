"""Randomised smoothing (Cohen, Rosenfeld & Kolter, 2019): prediction and certification by sampling.

The smoothed classifier predicts the class that the base classifier predicts most often under
Gaussian noise on its input. Its prediction is provably constant within an L2 radius that follows
from the frequency of that class.

The proof holds for real numbers and exact Gaussian noise. `certify` documents the effect of
floating-point arithmetic.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks.checks import check_key
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.core.devices import padded_batches, pmap_batches
from jaxadv.core.images import check_images, to_float
from jaxadv.core.logits import at_least_float32, predicted_class
from jaxadv.core.progress import progress_bar
from jaxadv.core.results import CertifiedAccuracy, CertifiedResult
from jaxadv.core.rng import normal, stream
from jaxadv.core.types import ByteImages, HostBatch, Images, LogitsFn, PRNGKey
from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.models.classifier import check_certifiable, make_logits_fn

ABSTAIN = -1
_ROUNDING = 2.0**-24  # largest relative error of one float32 operation

CountsFn = Callable[[int, int], Int[np.ndarray, "n classes"]]
"""`(stage, num_samples) -> counts`: how often each class was predicted for each example.

The noise of different stages is independent. Forward passes that are missing from the sum of a row
predicted no class."""


class Certificate(NamedTuple):
    """Certified predictions of the smoothed classifier for n images.

    Attributes:
      predictions: (n,) classes, or ABSTAIN.
      radii: (n,) L2 radii in units of the pixel range, within which the smoothed classifier
        predicts this class, with the requested confidence; 0 where it abstains. They are already
        reduced by `allowances`.
      allowances: (n,) L2 distances by which the radii were reduced for float32 rounding.
      num_nonfinite: (n,) forward passes of both stages with NaN or infinite logits. They count for
        no class, and can only lower a radius.
    """

    predictions: np.ndarray
    radii: np.ndarray
    allowances: np.ndarray
    num_nonfinite: np.ndarray


def with_input_noise(logits_fn: LogitsFn, sigma: float) -> LogitsFn:
    """Return a function that adds Gaussian noise of standard deviation sigma to its images.

    Raises:
      ValueError: sigma is negative or not finite.
    """
    if not isinstance(sigma, jax.core.Tracer) and not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is {sigma!r}: it must be a finite number, 0 or more")

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
    """Count how often each class is predicted in `num_samples` forward passes of a noisy function.

    A forward pass with NaN or infinite logits counts for no class.

    Args:
      key: randomness of the forward passes.
      logits_fn: `(key, images) -> logits`, with Gaussian noise on its images.
      images: in [0, 1], shape (batch, height, width, channels).
      num_samples: number of forward passes; static.
      first: number of the first forward pass. The noise of a forward pass follows from its number,
        so counts of consecutive parts add up to the count of the whole.

    Raises:
      ValueError: `logits_fn` returns fewer than two logits, or `num_samples` is below 1.
    """
    _check_passes("num_samples", num_samples)
    images = jnp.asarray(images)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}, not floats of shape "
            "(batch, height, width, channels)"
        )
    key, images = check_key(key), at_least_float32(images)
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
    """Predict the classes of the smoothed classifier (algorithm PREDICT), or ABSTAIN.

    Forward passes with NaN or infinite logits count for the runner-up, so they never decide for a
    class.

    Args:
      counts_fn: counts predictions under noise, see `count_predictions`.
      num_samples: forward passes per image.
      failure: probability that a returned class is not that of the smoothed classifier.

    Raises:
      ValueError: an argument is out of range, or the counts exceed `num_samples` forward passes.
    """
    from scipy.stats import binomtest  # slow to import

    _check_passes("num_samples", num_samples)
    _check_failure(failure)
    # Two-sided: num_samples unanimous forward passes have a p-value of 2 * 0.5 ** num_samples.
    _warn_if_always_abstains("num_samples", num_samples, failure, math.ceil(1 - math.log2(failure)))
    counts, nonfinite = _count(counts_fn, 0, num_samples)
    order = counts.argsort(axis=1)
    first, second = (np.take_along_axis(counts, order[:, -k, None], 1)[:, 0] for k in (1, 2))
    if nonfinite.any():
        warnings.warn(
            f"{nonfinite.sum()} of {num_samples * len(counts)} forward passes have NaN or infinite "
            "logits and count for the runner-up: check the model on images with noise",
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
    """Certify classes and L2 radii of the smoothed classifier (algorithm CERTIFY).

    A first stage selects the class. A second, independent stage bounds its probability p from
    below. The radius is sigma times the normal quantile of that bound (theorem 1, with the other
    classes at 1 - p). Where the bound is at most one half, the classifier abstains.

    The theorem holds for real numbers. In floating-point arithmetic a certificate can be violated:
    Jin, Ohrimenko & Rubinstein ("Getting a-Round Guarantees: Floating-Point Attacks on Certified
    Robustness", arXiv 2207.07209) find misclassified images inside certified radii, because the
    radius, the norm of a perturbation and the noisy images are rounded. Radii are therefore
    computed in float64 and reduced by `rounding_allowance`, which covers the rounding of a standard
    float32 implementation. It is not a proof for other implementations or precisions (bfloat16,
    TensorFloat-32), nor for the sampled noise, which has finitely many values and no tail beyond
    about 5.6 sigma.

    Args:
      counts_fn: counts predictions under noise, see `count_predictions`.
      sigma: standard deviation of the Gaussian noise on the images, above 0.
      image_shape: of one image, such as (32, 32, 3); the allowance grows with its size.
      num_selection: forward passes of the first stage, at least 1.
      num_estimation: forward passes of the second stage, at least 1. Too few for `failure` certify
        nothing; a warning says how many are needed.
      failure: probability that a certificate is wrong, between 0 and 1, exclusive.

    Raises:
      ValueError: an argument is out of range, or the counts exceed the number of forward passes.
    """
    from scipy.special import ndtri  # slow to import

    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma!r}: it must be a finite number above 0")
    _check_passes("num_selection", num_selection)
    _check_passes("num_estimation", num_estimation)
    _check_failure(failure)
    # Unanimous forward passes have the bound failure ** (1 / num_estimation).
    enough = math.floor(-math.log2(failure)) + 1
    _warn_if_always_abstains("num_estimation", num_estimation, failure, enough)
    selected, nonfinite_selected = _count(counts_fn, 0, num_selection)
    estimated, nonfinite_estimated = _count(counts_fn, 1, num_estimation)
    chosen = selected.argmax(axis=1)
    successes = np.take_along_axis(estimated, chosen[:, None], 1)[:, 0]
    # Rounded down, so that it stays below 1, whose quantile is infinite.
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
    """Bound the error of an L2 radius that float32 rounding causes, to first order.

    Let u = 2**-24 be the largest relative error of an operation, and d the size of an image.

    - As float32 numbers, sigma and the radius have a relative error of u each.
    - An L2 norm summed in float32, in any order, is too small by a factor of at least
      1 - (d / 2 + 2) u. Each difference has a relative error of u, which squaring doubles; the
      square adds u, and the sum (d - 1) u. The root halves the total, and adds u.
    - The value x + sigma z of a pixel x in [0, 1] with noise z has an error of at most
      u (1 + 2 sigma |z|). For noise of root mean square up to 2 (1 is expected) this is an L2
      distance of sqrt(d) u (1 + 4 sigma), counted once for the clean and once for the perturbed
      image.
    """
    size = math.prod(image_shape)
    relative = (size / 2 + 4) * _ROUNDING
    return radii * relative + 2 * math.sqrt(size) * _ROUNDING * (1 + 4 * sigma)


def lower_bound(
    successes: Int[np.ndarray, "n"], num_samples: int, failure: float
) -> Float[np.ndarray, "n"]:
    """Return the one-sided lower confidence bound of Clopper and Pearson (1934)."""
    from scipy.special import betaincinv  # slow to import

    some = np.maximum(successes, 1)  # the quantile is undefined at 0, where the bound is 0
    return np.where(successes > 0, betaincinv(some, num_samples - some + 1, failure), 0.0)


def certified(
    certificate: Certificate, labels: Int[np.ndarray, "n"], radius: float
) -> Bool[np.ndarray, "n"]:
    """Return whether each example is certified to be classified correctly within a radius.

    Raises:
      ValueError: the radius is negative or not finite.
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius is {radius!r}: it must be a finite number, 0 or more")
    return (certificate.predictions == labels) & (certificate.radii >= radius)


def _count(
    counts_fn: CountsFn, stage: int, num_samples: int
) -> tuple[Int[np.ndarray, "n classes"], Int[np.ndarray, "n"]]:
    """Return the counts of a stage, and the number of forward passes that predicted no class."""
    counts = np.asarray(counts_fn(stage, num_samples))
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(
            f"counts have shape {counts.shape}, not (n, classes) with at least 2 classes"
        )
    missing = num_samples - counts.sum(axis=1)
    if (counts < 0).any() or (missing < 0).any():
        raise ValueError(
            f"counts are {counts.min()} or more and up to {counts.sum(axis=1).max()} per image: "
            f"they must be those of {num_samples} forward passes"
        )
    return counts, missing


def _check_passes(name: str, number: Any) -> None:
    if not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{name} is {number!r}: it must be an integer, 1 or more")


def _check_failure(failure: float) -> None:
    if not 0 < failure < 1:
        raise ValueError(f"failure is {failure!r}: it must be between 0 and 1, exclusive")


def _warn_if_always_abstains(name: str, number: int, failure: float, enough: int) -> None:
    if number < enough:
        warnings.warn(
            f"{name} is {number} with failure {failure}: the classifier always abstains. Use "
            f"{name}={enough} or more",
            stacklevel=3,
        )


_PASSES_AT_ONCE = 100  # forward passes between two updates of the progress bar


def certify_split(
    model: nn.Module,
    weights: PyTree,
    split: HostBatch,
    certification: ConfigDict,
    batch_size: int,
    seed: int,
    *,
    progress: bool = True,
) -> tuple[CertifiedResult, Certificate]:
    """Certify the first examples of a split.

    Args:
      model: the classifier, whose defence adds Gaussian noise to the images.
      weights: its variables.
      split: images, as uint8 or as floats in [0, 1], and labels.
      certification: `config.evaluation.certification`.
      batch_size: over all devices together.
      seed: of the noise.
      progress: whether to show a progress bar.

    Returns:
      The certified accuracy over L2 radii, and the certificate of each example.

    Raises:
      UserError: the model has no Gaussian noise on its images, or the images are neither uint8 nor
        floats in [0, 1].
    """
    began = time.monotonic()
    sigma = check_certifiable(model)
    check_images(split.images)
    n = min(certification.num_examples, len(split.labels))
    batch_size = min(batch_size, -(-n // jax.device_count()) * jax.device_count())
    options = {key: certification[key] for key in ("num_selection", "num_estimation", "failure")}
    total = n * (options["num_selection"] + options["num_estimation"])
    with progress_bar(
        total=total, title="Certify", unit="pass", unit_scale=True, disable=not progress
    ) as bar:

        def counts_fn(stage: int, num_samples: int) -> Int[np.ndarray, "n classes"]:
            return _counts(model, weights, split, n, stage, num_samples, batch_size, seed, bar)

        certificate = certify(counts_fn, sigma, image_shape=split.images.shape[1:], **options)
    labels = split.labels[:n]
    return CertifiedResult(
        sigma=sigma,
        **options,
        n=n,
        abstained=int((certificate.predictions == ABSTAIN).sum()),
        rounding_allowance=float(certificate.allowances.max()),
        nonfinite_passes=int(certificate.num_nonfinite.sum()),
        nonfinite_examples=int((certificate.num_nonfinite > 0).sum()),
        radii=tuple(
            CertifiedAccuracy(
                radius=radius,
                **vars(binomial_accuracy(certified(certificate, labels, radius).sum(), n)),
            )
            for radius in sorted(certification.radii)
        ),
        seconds=time.monotonic() - began,
    ), certificate


def _counts(
    model: nn.Module,
    weights: PyTree,
    split: HostBatch,
    n: int,
    stage: int,
    num_samples: int,
    batch_size: int,
    seed: int,
    bar: tqdm,
) -> Int[np.ndarray, "n classes"]:
    counts = []
    for ids, padded in padded_batches(np.arange(n), batch_size):
        total: Any = 0
        for first in range(0, num_samples, _PASSES_AT_ONCE):
            passes = min(_PASSES_AT_ONCE, num_samples - first)
            step = _count_step(model, passes)
            total = total + step(weights, (seed, stage, first), split.images[padded], padded)
            bar.update(len(ids) * passes)
        counts.append(total[: len(ids)])
    return np.concatenate(counts)


@cache
def _count_step(model: nn.Module, passes: int) -> Callable:
    def step(
        weights: PyTree, place: tuple, images: ByteImages | Images, ids: Int[Array, "share"]
    ) -> Int[Array, "share classes"]:
        seed, stage, first = place
        key = stream(seed, "smoothing", stage)
        logits_fn = make_logits_fn(model, weights, ids)
        return count_predictions(key, logits_fn, to_float(images), passes, first)

    return pmap_batches(step, num_replicated=2, num_batches=2, sharded_output=True)
