"""Examples whose images are encoded, as PNG or JPEG: in files, or in records of a data set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxadv.core.types import HostBatch, UserError
from jaxadv.data.examples import Rows, progress
from jaxadv.data.images import Header, ImageFormat, common_shape, read_header, to_array


class EncodedImage(NamedTuple):
    """An image that PIL has opened and not decoded.

    Attributes:
      name: its path, or its place in a data set, for messages.
      image: of PIL.
      label: its class.
    """

    name: str
    image: Image.Image
    label: int


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
        for name, image, _ in self._all("Check images"):
            yield read_header(name, image)

    def _all(self, title: str) -> Iterator[EncodedImage]:
        num = len(self)
        images = self.reader.read(np.arange(num))
        yield from progress(images, title, num)

    def take(self, rows: Rows) -> UInt8[np.ndarray, "m height width channels"]:
        """Return the images of some rows, decoded."""
        return self._decode(self.reader.read(rows), len(rows)).images

    def decode(self, title: str) -> HostBatch:
        """Return all examples, decoded."""
        return self._decode(self._all(title), len(self))

    def _decode(self, encoded: Iterable[EncodedImage], num: int) -> HostBatch:
        images = np.empty((num, *self.image_shape), np.uint8)
        labels = np.empty(num, np.int32)
        for i, (name, image, label) in enumerate(encoded):
            try:
                array = to_array(image, self.image_format)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise unreadable(name, error) from None
            if array.shape != self.image_shape:
                raise UserError(
                    f"{name} has shape {array.shape}, the other images have {self.image_shape}: "
                    "set config.data.size and config.data.channels to convert all images"
                )
            images[i], labels[i] = array, label
        return HostBatch(images, labels)


def unreadable(name: str, error: Exception) -> UserError:
    """Return the error for a file that is not an image, or a damaged one."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"cannot read {name} as an image ({reason}): delete or replace it")
