"""Labelled images that are decoded when they are read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from jaxadv.core.progress import progress_bar
from jaxadv.core.types import HostBatch

_CHUNK = 256  # images that are decoded between two updates of a progress bar
_DELAY = 1  # seconds before a progress bar is shown

T = TypeVar("T")

Rows = Int[np.ndarray, "m"]


@runtime_checkable
class StoredExamples(Protocol):
    """Labelled images in files. They can be pickled, for other processes.

    Attributes:
      labels: class of each image, int32, in memory.
      image_shape: height, width and channels.
    """

    @property
    def labels(self) -> Int[np.ndarray, "n"]: ...  # noqa: D102

    @property
    def image_shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    def take(self, rows: Rows) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows, decoded."""
        ...


@runtime_checkable
class SourceExamples(StoredExamples, Protocol):
    """A whole split of a source, which can also be read into memory."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def has_labels(self) -> bool:
        """Return whether the split is labelled; the labels of others are all -1."""
        ...

    def decode(self, title: str) -> HostBatch:
        """Return all examples in memory; the title is that of the progress bar."""
        ...


class OpenedSource(NamedTuple):
    """A source whose files were found and whose description was read.

    Attributes:
      name: in reports.
      class_names: in the order of the labels.
      train: the train split.
      tests: splits for testing by name; the first one with labels is the test split.
      version: of a TFDS or Hugging Face data set; "" otherwise.
      cache: file for the decoded images; None: they are not cached.
      shuffle_train: whether the train split may be sorted by class; its last part is held out.
      shuffle_test: the same for the test split, whose first part may be evaluated alone.
    """

    name: str
    class_names: tuple[str, ...]
    train: SourceExamples
    tests: Mapping[str, SourceExamples]
    version: str = ""
    cache: Path | None = None
    shuffle_train: bool = True
    shuffle_test: bool = True


@dataclass(frozen=True)
class ArrayExamples:
    """Examples that are in memory anyway."""

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def take(self, rows: Rows) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows."""
        return self.images[rows]

    def has_labels(self) -> bool:
        """Return True."""
        return True

    def decode(self, title: str) -> HostBatch:
        """Return the arrays."""
        del title
        return HostBatch(self.images, self.labels)


@dataclass(frozen=True)
class Selection:
    """Some of the examples of a source, in an order."""

    examples: StoredExamples
    rows: Int[np.ndarray, "n"]

    @cached_property
    def labels(self) -> Int[np.ndarray, "n"]:
        """Return the class of each image."""
        return self.examples.labels[self.rows]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        return self.examples.image_shape

    def take(self, rows: Rows) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows of the selection, decoded."""
        return self.examples.take(self.rows[rows])


def image_shape(examples: HostBatch | StoredExamples) -> tuple[int, int, int]:
    """Return height, width and channels."""
    if isinstance(examples, HostBatch):
        height, width, channels = examples.images.shape[1:]
        return height, width, channels
    return examples.image_shape


def select(examples: HostBatch | StoredExamples, rows: slice | Rows) -> HostBatch | StoredExamples:
    """Return some of the examples. A slice of arrays in memory is not copied."""
    if isinstance(examples, HostBatch):
        return HostBatch(examples.images[rows], examples.labels[rows])
    if isinstance(rows, slice):
        rows = np.arange(len(examples.labels))[rows]
    if isinstance(examples, Selection):
        return Selection(examples.examples, examples.rows[rows])
    return Selection(examples, rows)


def in_memory(examples: HostBatch | StoredExamples, num: int | None = None) -> HostBatch:
    """Return the first examples, decoded.

    Args:
      examples: in memory or stored.
      num: how many; None: all.
    """
    if isinstance(examples, HostBatch):
        return HostBatch(examples.images[:num], examples.labels[:num])
    labels = examples.labels[:num]
    images = np.empty((len(labels), *examples.image_shape), np.uint8)
    starts = range(0, len(labels), _CHUNK)
    for start in progress(starts, "Decode images", len(starts), f" x {_CHUNK} images"):
        rows = np.arange(start, min(start + _CHUNK, len(labels)))
        images[rows] = examples.take(rows)
    return HostBatch(images, labels)


def progress(items: Iterable[T], title: str, num: int, unit: str = " images") -> Iterable[T]:
    """Show a progress bar if iterating takes long."""
    return progress_bar(items, title=title, total=num, unit=unit, delay=_DELAY, leave=False)
