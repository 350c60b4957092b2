"""Certified accuracy of a classifier with Gaussian noise on its input, over a split."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.classifier import check_certifiable, check_images, make_logits_fn, to_float
from jaxadv.metrics import proportion
from jaxadv.parallel import padded_batches, pmap_batches
from jaxadv.prng import stream
from jaxadv.smoothing import ABSTAIN, certified, certify, count_predictions
from jaxadv.types import Batch, ByteImages, Images

_PASSES_AT_ONCE = 100  # between two moves of the progress bar


def certify_split(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    certification: ConfigDict,
    batch_size: int,
    seed: int,
    *,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the certified accuracy of the first examples of a split, over L2 radii.

    Args:
      model: the classifier, whose defence puts Gaussian noise on the images.
      weights: its variables.
      split: images, as uint8 or as floats in [0, 1], and labels.
      certification: `config.evaluation.certification`.
      batch_size: over all devices together.
      seed: of the noise.
      progress: whether to show a bar.

    Returns:
      The entry `certified` of evaluation.json, and the arrays `certified/predictions` (-1 where
      it abstains) and `certified/radii` of examples.npz. In the entry, `rounding_allowance` is the
      largest L2 distance by which a radius was reduced for float32 rounding (see
      `smoothing.certify`), and `nonfinite_passes` and `nonfinite_examples` count the forward passes
      with NaN or infinite logits, and the examples that they belong to.

    Raises:
      UserError: the model has no Gaussian noise on its images, or the images are no bytes and no
        floats in [0, 1].
    """
    began = time.monotonic()
    sigma = check_certifiable(model)
    check_images(split.images)
    n = min(certification.num_examples, len(split.labels))
    batch_size = min(batch_size, -(-n // jax.device_count()) * jax.device_count())
    options = {key: certification[key] for key in ("num_selection", "num_estimation", "failure")}
    total = n * (options["num_selection"] + options["num_estimation"])
    with tqdm(
        total=total, desc="Certify", unit="pass", unit_scale=True, disable=not progress
    ) as bar:

        def counts_fn(stage: int, num_samples: int) -> Int[np.ndarray, "n classes"]:
            return _counts(model, weights, split, n, stage, num_samples, batch_size, seed, bar)

        certificate = certify(counts_fn, sigma, image_shape=split.images.shape[1:], **options)
    labels = np.asarray(split.labels[:n])
    return {
        "sigma": sigma,
        **options,
        "n": n,
        "abstained": int((certificate.predictions == ABSTAIN).sum()),
        "rounding_allowance": float(certificate.allowances.max()),
        "nonfinite_passes": int(certificate.num_nonfinite.sum()),
        "nonfinite_examples": int((certificate.num_nonfinite > 0).sum()),
        "radii": [
            {"radius": radius, **proportion(certified(certificate, labels, radius).sum(), n)}
            for radius in sorted(certification.radii)
        ],
        "seconds": time.monotonic() - began,
    }, {
        "certified/predictions": certificate.predictions,
        "certified/radii": certificate.radii,
    }


def _counts(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
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
