"""Sample evaluation: a classifier of real images, and the quality of samples by its features."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from jaxadv.core.devices import divisible_size, padded_batches, pmap_batches, replicate
from jaxadv.core.files import atomic_write
from jaxadv.core.images import to_float
from jaxadv.core.logits import predicted_class
from jaxadv.core.sample_quality import SampleEvaluation, SampleQuality
from jaxadv.core.types import ByteImages, HostBatch, Images, UserError
from jaxadv.data import Dataset, in_memory
from jaxadv.data.examples import image_shape
from jaxadv.data.sources import source_family
from jaxadv.gan.metrics import (
    frechet_distance,
    kernel_distance,
    nearest,
    num_duplicates,
    precision_and_recall,
)
from jaxadv.models.checks import variable_shapes
from jaxadv.models.classifier import is_declared_stochastic
from jaxadv.runs.distributed import from_first
from jaxadv.runs.workdir import DATA_KEYS, claimed, read_in_first, restore_classifier
from jaxadv.training.train import train as train_classifier

ImageArray = UInt8[np.ndarray, "n height width channels"]

_MAX_IMAGES = 10_000  # samples, and real images that they are compared with
_BATCH_SIZE = 256
# Root mean square over the pixels, below which two images are visually equal.
_SAME = 4 / 255


class SampleEvaluator(NamedTuple):
    """A trained classifier that evaluates samples.

    Attributes:
      model: the module.
      weights: its variables, replicated.
    """

    model: nn.Module
    weights: PyTree


def make_sample_evaluator(config: ConfigDict, dataset: Dataset, workdir: Path) -> SampleEvaluator:
    """Restore the classifier of `config.evaluator.checkpoint`, or train one in the workdir.

    Raises:
      UserError: there is no checkpoint, or the classifier was trained on another data set.
    """
    if config.evaluator.checkpoint:
        source = Path(config.evaluator.checkpoint)
        trained = read_in_first(source, mode="train")
        if source_family(trained.data.source) != source_family(config.data.source):
            raise UserError(
                f"config.evaluator.checkpoint is a classifier of {trained.data.source}, "
                f"config.data.source is {config.data.source}: pass a run on that data set"
            )
    else:
        source = evaluator_workdir(workdir)
        trained = config.evaluator.classifier.copy_and_resolve_references()
        for key in DATA_KEYS:
            trained.data[key] = config.data[key]
        with claimed(source, trained):
            print(f"Sample evaluator: a classifier in {source}", flush=True)
            train_classifier(trained, dataset, source)
    model, restored = restore_classifier(trained, dataset, source, "best")
    check_evaluator(model, image_shape(dataset.train))
    return SampleEvaluator(model, replicate(restored.items["weights"]))


def check_evaluator(model: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Check that a classifier can evaluate samples of a shape (height, width, channels).

    Raises:
      UserError: it is stochastic, or has no dense layer, whose inputs are the features.
    """
    if is_declared_stochastic(model):
        raise UserError(
            "config.evaluator: the classifier is stochastic, and samples are evaluated by one "
            "forward pass: use a deterministic classifier"
        )
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = variable_shapes(model, image_shape)
    jax.eval_shape(partial(logits_and_features, model), variables, images)


def evaluator_workdir(workdir: Path) -> Path:
    """Return the folder of the evaluator in the workdir of a GAN."""
    earlier = workdir / "judge"  # its name in earlier versions
    return earlier if from_first(earlier.exists) else workdir / "evaluator"


class ClassifiedImages(NamedTuple):
    """Images with the features and probabilities that the evaluator computes.

    Attributes:
      images: as uint8.
      features: inputs of the last dense layer.
      probabilities: softmax of the logits.
    """

    images: ImageArray
    features: Float[np.ndarray, "n features"]
    probabilities: Float[np.ndarray, "n classes"]

    def predictions(self) -> Int[np.ndarray, "n"]:
        """Return the predicted classes, or -1 for probabilities that are not finite."""
        return np.asarray(predicted_class(jnp.asarray(self.probabilities)))


def classify(evaluator: SampleEvaluator, images: ImageArray) -> ClassifiedImages:
    """Compute the features and probabilities of images."""
    step = _classify_step(evaluator.model)
    parts = []
    for rows, padded in padded_batches(np.arange(len(images)), divisible_size(_BATCH_SIZE)):
        features, probabilities = step(evaluator.weights, images[padded])
        parts.append((features[: len(rows)], probabilities[: len(rows)]))
    features, probabilities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ClassifiedImages(images, features, probabilities)


@cache
def _classify_step(model: nn.Module) -> Callable:
    def step(weights: PyTree, images: ByteImages | Images) -> tuple[Array, Array]:
        # At full precision, like the scores of an evaluation.
        with jax.default_matmul_precision("highest"):
            logits, features = logits_and_features(model, weights, to_float(images))
        return features, jax.nn.softmax(logits)

    return pmap_batches(step, num_replicated=1, num_batches=1, sharded_output=True)


def logits_and_features(
    model: nn.Module, weights: PyTree, images: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"]]:
    """Return the logits of a deterministic model and the input of its last dense layer."""
    dense_inputs: list[Array] = []

    def record(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            dense_inputs.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        logits: Any = model.apply(weights, images, train=False)
    if not dense_inputs:
        raise UserError(
            "config.evaluator: the classifier has no flax.linen.Dense layer, whose inputs are the "
            "features of samples: use another classifier"
        )
    return logits, dense_inputs[-1].reshape(len(images), -1)


def train_images(dataset: Dataset) -> ImageArray:
    """Return the images of the train split, which a GAN needs in memory.

    Raises:
      UserError: the split is streamed.
    """
    if not isinstance(dataset.train, HostBatch):
        raise UserError(
            "a GAN needs the train split in memory, but it is streamed: set "
            "config.data.streaming=False, or a smaller config.data.size"
        )
    return dataset.train.images


def classify_train_split(evaluator: SampleEvaluator, dataset: Dataset) -> ClassifiedImages:
    """Classify the real images that samples are compared with during the training of a GAN."""
    return classify(evaluator, train_images(dataset)[:_MAX_IMAGES])


def num_test_images(dataset: Dataset) -> int:
    """Return the number of test images, and of samples, in the final evaluation."""
    return min(_MAX_IMAGES, len(dataset.test.labels))


def evaluate_on_test(
    evaluator: SampleEvaluator, samples: HostBatch, dataset: Dataset
) -> SampleEvaluation:
    """Evaluate samples against the test split, which no checkpoint was selected on.

    Args:
      evaluator: the classifier.
      samples: `num_test_images` samples or fewer, with the classes that they were generated for.
      dataset: of the real images.
    """
    test = in_memory(dataset.test, num_test_images(dataset))
    real = classify(evaluator, test.images)
    correct = real.predictions() == test.labels
    return SampleEvaluation(
        num_images=len(samples.labels),
        evaluator_accuracy=float(correct.mean()),
        samples=evaluate_samples(evaluator, samples, real),
    )


def evaluate_samples(
    evaluator: SampleEvaluator, samples: HostBatch, real: ClassifiedImages
) -> SampleQuality:
    """Compute the quality of samples.

    Args:
      evaluator: the classifier.
      samples: images as uint8, with the classes that they were generated for.
      real: the images to compare with.
    """
    fake = classify(evaluator, samples.images)
    # Only classification runs on all devices.
    quality = from_first(lambda: _quality(fake, samples.labels, real).to_json())
    return SampleQuality.from_json(quality)


def _quality(
    fake: ClassifiedImages, labels: Int[np.ndarray, "n"], real: ClassifiedImages
) -> SampleQuality:
    """Compute the quality of samples of the given classes."""
    correct = fake.predictions() == labels
    distance, deviation = kernel_distance(real.features, fake.features)
    precision, recall = precision_and_recall(real.features, fake.features)
    pixels, real_pixels = _pixels(fake.images), _pixels(real.images)
    same = _SAME * pixels.shape[1] ** 0.5
    _, squared = nearest(pixels, real_pixels)
    return SampleQuality(
        accuracy=float(correct.mean()),
        accuracy_by_class=tuple(
            float(correct[labels == label].mean()) if (labels == label).any() else None
            for label in range(fake.probabilities.shape[1])
        ),
        frechet_distance=frechet_distance(real.features, fake.features),
        kernel_distance=distance,
        kernel_distance_sd=deviation,
        precision=precision,
        recall=recall,
        duplicates=num_duplicates(pixels, same) / len(pixels),
        copies=float((squared <= same**2).mean()),
    )


def summary(quality: SampleQuality) -> str:
    """Return the quality of samples in one line."""
    return (
        f"evaluator accuracy {quality.accuracy:5.1%}"
        f"  Fréchet distance {quality.frechet_distance:.2f} (evaluator's features)"
        f"  precision {quality.precision:.2f}  recall {quality.recall:.2f}"
    )


def write_neighbours(
    path: Path, evaluator: SampleEvaluator, samples: ImageArray, dataset: Dataset
) -> None:
    """Write samples and the train images nearest to them, by pixels and by features."""
    real = train_images(dataset)
    features, real_features = (classify(evaluator, images).features for images in (samples, real))

    def write_here() -> None:
        by_pixels, _ = nearest(_pixels(samples), _pixels(real))
        by_features, _ = nearest(features, real_features)
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                samples=samples,
                by_pixels=real[by_pixels],
                by_features=real[by_features],
            )

    from_first(write_here)


def _pixels(images: ImageArray) -> Float[np.ndarray, "n pixels"]:
    """Return images as rows of floats in [0, 1]."""
    return images.reshape(len(images), -1) / np.float32(255)
