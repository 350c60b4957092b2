"""An independent classifier that judges samples of a generator, by its predictions and features."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from jaxadv.classifier import to_float
from jaxadv.logits import predicted_class
from jaxadv.parallel import divisible, padded_batches, pmap_batches
from jaxadv.quality import (
    frechet_distance,
    kernel_distance,
    nearest,
    num_duplicates,
    precision_and_recall,
)
from jaxadv.types import Batch, ByteImages, Images

_BATCH = 256
# Root mean square over the pixels: what differs by less is the same picture to the eye.
_SAME = 4 / 255


class Judge(NamedTuple):
    """A trained classifier.

    Attributes:
      model: the module.
      weights: its variables, replicated.
    """

    model: nn.Module
    weights: PyTree


class Seen(NamedTuple):
    """What a judge sees in n images.

    Attributes:
      images: (n, height, width, channels) bytes.
      features: (n, features) input of the last dense layer.
      probabilities: (n, classes).
    """

    images: np.ndarray
    features: np.ndarray
    probabilities: np.ndarray

    def predictions(self) -> np.ndarray:
        """Returns the classes, or -1 where the probabilities are not finite."""
        return np.asarray(predicted_class(jnp.asarray(self.probabilities)))


def look(judge: Judge, images: Any) -> Seen:
    """Returns what a judge sees in images, bytes (n, height, width, channels)."""
    images = np.asarray(images)
    step = _look_step(judge.model)
    parts = []
    for rows, padded in padded_batches(np.arange(len(images)), divisible(_BATCH)):
        features, probabilities = step(judge.weights, images[padded])
        parts.append((features[: len(rows)], probabilities[: len(rows)]))
    return Seen(images, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@cache
def _look_step(model: nn.Module) -> Callable:
    def step(weights: PyTree, images: ByteImages | Images) -> tuple[Array, Array]:
        # At full precision, as scores are.
        with jax.default_matmul_precision("highest"):
            logits, features = logits_and_features(model, weights, to_float(images))
        return features, jax.nn.softmax(logits)

    return pmap_batches(step, num_replicated=1, num_batches=1, sharded_output=True)


def logits_and_features(
    model: nn.Module, weights: PyTree, images: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
    """Returns the logits of a model without noise, and the input of its last dense layer."""
    seen: list[Array] = []

    def watch(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        logits: Any = model.apply(weights, images)
    return logits, seen[-1].reshape(len(images), -1)


def flat(images: Any) -> Float[np.ndarray, "n pixels"]:
    """Returns bytes as rows of floats in [0, 1]."""
    images = np.asarray(images)
    return images.reshape(len(images), -1) / np.float32(255)


def judge_samples(judge: Judge, samples: Batch, real: Seen) -> dict[str, Any]:
    """Returns what a judge says of samples with the classes that they were made for.

    Args:
      judge: the classifier.
      samples: bytes and labels.
      real: what it sees in the images to compare with.

    Returns:
      judge_accuracy: share of the samples that it gives their class, and by class; None where a
        class has no sample.
      judge_frechet_distance, judge_kernel_distance, judge_kernel_distance_sd, judge_precision,
      judge_recall: see `jaxadv.quality`, by the judge's features; never the usual ones.
      duplicates: share of samples that show the same as an earlier one, to 4/255 root mean square.
      copies: share that shows the same as a real one.
    """
    images, labels = np.asarray(samples.images), np.asarray(samples.labels)
    fake = look(judge, images)
    right = fake.predictions() == labels
    distance, spread = kernel_distance(real.features, fake.features)
    precision, recall = precision_and_recall(real.features, fake.features)
    pixels, real_pixels = flat(images), flat(real.images)
    same = _SAME * pixels.shape[1] ** 0.5
    _, squared = nearest(pixels, real_pixels)
    return {
        "judge_accuracy": float(right.mean()),
        "judge_accuracy_by_class": [
            float(right[labels == label].mean()) if (labels == label).any() else None
            for label in range(fake.probabilities.shape[1])
        ],
        "judge_frechet_distance": frechet_distance(real.features, fake.features),
        "judge_kernel_distance": distance,
        "judge_kernel_distance_sd": spread,
        "judge_precision": precision,
        "judge_recall": recall,
        "duplicates": num_duplicates(pixels, same) / len(pixels),
        "copies": float((squared <= same**2).mean()),
    }
