"""The judging of a generator: the classifier that does it, and what it says of samples."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jaxadv import config as configs
from jaxadv.data import Dataset
from jaxadv.evaluate import restore_classifier
from jaxadv.files import written_whole
from jaxadv.judge import Judge, Seen, flat, judge_samples, look
from jaxadv.parallel import replicate
from jaxadv.quality import nearest
from jaxadv.train import train as train_classifier
from jaxadv.types import Batch, UserError

MOST_JUDGED = 10_000  # samples, and real images that they are compared with


def make_judge(config: ConfigDict, dataset: Dataset, workdir: Path) -> Judge:
    """Returns the classifier that judges: that of `config.judge.checkpoint`, or one trained here.

    Raises:
      UserError: there is no checkpoint, or its classes are not those of the data set.
    """
    if config.judge.checkpoint:
        source = Path(config.judge.checkpoint)
        trained = configs.read(source, mode="train")
        if trained.data.name != config.data.name:
            raise UserError(
                f"config.judge.checkpoint is a classifier of {trained.data.name}, "
                f"config.data.name is {config.data.name}"
            )
    else:
        source, trained = workdir / "judge", config.judge.classifier.copy_and_resolve_references()
        for key in ("name", "data_dir", "validation_fraction"):
            trained.data[key] = config.data[key]
        with configs.claimed(source, trained):
            print(f"The judge, a classifier in {source}", flush=True)
            train_classifier(trained, dataset, source)
    model, restored = restore_classifier(trained, dataset, source, "best")
    return Judge(model, replicate(restored.items["weights"]))


def plain(sampling: ConfigDict) -> ConfigDict:
    """Returns the sampling that a GAN is judged by: from the prior, untruncated."""
    changed = ConfigDict(sampling.to_dict())
    changed.update({"sampler": "prior", "truncation": None})
    return changed


def collect(batches: Iterable[Batch]) -> Batch:
    """Returns all images and labels in one batch."""
    arrays: Any = map(np.concatenate, zip(*batches, strict=True))
    return Batch(*arrays)


def look_at_train_split(judge: Judge, dataset: Dataset) -> Seen:
    """Returns what samples are compared with while a GAN is trained."""
    return look(judge, dataset.train.images[:MOST_JUDGED])


def num_judged(dataset: Dataset) -> int:
    """Returns how many samples are compared with as many images of the test split."""
    return min(MOST_JUDGED, len(dataset.test.labels))


def judge_on_test(judge: Judge, made: Batch, dataset: Dataset) -> dict[str, Any]:
    """Judges samples against the test split, which chose nothing.

    Args:
      judge: the classifier.
      made: `num_judged` samples, or less.
      dataset: the real images.

    Returns:
      num_images: of the samples.
      judge_accuracy_on_test: share of the real images that the judge gives their class.
      samples: as of `judge_samples`.
    """
    rows = slice(num_judged(dataset))
    real = look(judge, dataset.test.images[rows])
    right = real.predictions() == np.asarray(dataset.test.labels[rows])
    return {
        "num_images": len(made.labels),
        "judge_accuracy_on_test": float(right.mean()),
        "samples": judge_samples(judge, made, real),
    }


def write_neighbours(
    path: Path,
    judge: Judge,
    samples: UInt8[np.ndarray, "n height width channels"],
    dataset: Dataset,
) -> None:
    """Writes samples beside the train images that are nearest to them."""
    train_images = np.asarray(dataset.train.images)
    by_pixels, _ = nearest(flat(samples), flat(train_images))
    by_features, _ = nearest(look(judge, samples).features, look(judge, train_images).features)
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            samples=samples,
            by_pixels=train_images[by_pixels],
            by_features=train_images[by_features],
        )


def summary(judged: dict[str, Any]) -> str:
    """Returns what a judge says of samples, in one line."""
    return (
        f"judge: {judged['judge_accuracy']:6.2%} right"
        f"  Fréchet distance {judged['judge_frechet_distance']:.2f} (its features)"
        f"  precision {judged['judge_precision']:.2f}  recall {judged['judge_recall']:.2f}"
    )
