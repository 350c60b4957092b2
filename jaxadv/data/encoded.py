"""Examples whose images are encoded, as PNG or JPEG: in files, or in records of a data set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxadv.core.types import HostBatch, UserError, first_line
from jaxadv.data.examples import Rows, progress
from jaxadv.data.images import Header, ImageFormat, common_shape, read_header, to_array

DAMAGES = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""Errors of PIL for files that are not images, or damaged ones."""

_NUM_LABELS = 100  # that are read to find out whether a split is labelled


class EncodedImage(NamedTuple):
    """An image that PIL has opened and not decoded.

    Attributes:
      name: its path, or its place in a data set, for messages.
      image: of PIL.
      label: its class; -1 if it has none.
      remedy: what to do if the image is damaged, for messages.
    """

    name: str
    image: Image.Image
    label: int
    remedy: str = "delete or replace it"


@runtime_checkable
class ImageReader(Protocol):
    """Access to encoded images. It can be pickled: files are opened when they are read."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def labels(self) -> Int[np.ndarray, "n"]:
        """Return the class of each image."""
        ...

    def read(self, rows: Rows) -> Iterator[EncodedImage]:
        """Yield the images of some rows."""
        ...


@dataclass(frozen=True)
class EncodedExamples:
    """Encoded images in one format.

    Attributes:
      reader: of the images.
      image_format: requested by the config.
      declared_shape: shape of an image in that format; None: it is found in the headers.
    """

    reader: ImageReader
    image_format: ImageFormat
    declared_shape: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.reader)

    @cached_property
    def labels(self) -> Int[np.ndarray, "n"]:
        """Return the class of each image, int32."""
        return self.reader.labels()

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels.

        Raises:
          UserError: the images have no common shape, or one is not an image.
        """
        return self.declared_shape or common_shape(self._headers(), self.image_format)

    def _headers(self) -> Iterator[Header]:
        for name, image, _, remedy in self._all("Check images"):
            try:
                yield read_header(name, image)
            except UserError:
                raise
            except DAMAGES as error:
                raise unreadable(name, error, remedy) from None

    def _all(self, title: str) -> Iterator[EncodedImage]:
        num = len(self)
        images = self.reader.read(np.arange(num))
        yield from progress(images, title, num)

    def has_labels(self) -> bool:
        """Return whether any of the first labels is not -1."""
        images = self.reader.read(np.arange(min(len(self), _NUM_LABELS)))
        return any(image.label != -1 for image in images)

    def take(self, rows: Rows) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows, decoded."""
        return self._decode(self.reader.read(rows), len(rows)).images

    def decode(self, title: str) -> HostBatch:
        """Return all examples, decoded."""
        return self._decode(self._all(title), len(self))

    def _decode(self, encoded: Iterable[EncodedImage], num: int) -> HostBatch:
        images = np.empty((num, *self.image_shape), np.uint8)
        labels = np.empty(num, np.int32)
        for i, (name, image, label, remedy) in enumerate(encoded):
            try:
                array = to_array(image, self.image_format)
            except DAMAGES as error:
                raise unreadable(name, error, remedy) from None
            if array.shape != self.image_shape:
                raise UserError(
                    f"{name} has shape {array.shape}, the other images have {self.image_shape}: "
                    "set config.data.size and config.data.channels to convert all images"
                )
            images[i], labels[i] = array, label
        return HostBatch(images, labels)


def unreadable(name: str, error: Exception, remedy: str = "delete or replace it") -> UserError:
    """Return the error for a file that is not an image, or a damaged one."""
    return UserError(f"cannot read {name} as an image ({first_line(error)}): {remedy}")
