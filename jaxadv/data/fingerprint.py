"""The fingerprint of a data set, which tells data sets of the same name apart."""

import hashlib

import numpy as np
from jaxtyping import Int

from jaxadv.core.types import HostBatch
from jaxadv.data.datasets import Dataset
from jaxadv.data.examples import StoredExamples

_NUM_IMAGES = 1024  # of each split
_PART = 128  # images that are decoded at a time


def fingerprint(dataset: Dataset) -> str:
    """Return the SHA-256 of all labels and of evenly spaced images.

    It is the same for a data set in memory and a streamed one, and for any validation fraction:
    the train split of the source is the train split followed by the validation split.
    """
    sha256 = hashlib.sha256()
    for split in ((dataset.train, dataset.validation), (dataset.test,)):
        labels = np.concatenate([examples.labels for examples in split])
        sha256.update(labels.astype("<i8").tobytes())
        rows = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _NUM_IMAGES)).round())
        first = 0
        for examples in split:
            inside = rows[(first <= rows) & (rows < first + len(examples.labels))] - first
            _update(sha256, examples, inside.astype(int))
            first += len(examples.labels)
    return sha256.hexdigest()


def _update(
    sha256: "hashlib._Hash", examples: HostBatch | StoredExamples, rows: Int[np.ndarray, "m"]
) -> None:
    for part in np.split(rows, range(_PART, len(rows), _PART)):
        images = examples.images[part] if isinstance(examples, HostBatch) else examples.take(part)
        sha256.update(np.ascontiguousarray(images).tobytes())
