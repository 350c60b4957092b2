"""A split of a data set on the devices, from which compiled steps take their batches."""

from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from jaxadv.core.devices import replicate
from jaxadv.core.types import DeviceBatch, HostBatch


@struct.dataclass
class ResidentSplit:
    """A whole split; each image is a row of its pixels.

    A TPU stores the last two axes in tiles of 8 x 128 numbers or more. To take rows of
    `[n, height, width, channels]` it first copies the whole split to another layout: 562 MiB for
    CIFAR-10, in every step. Of `[n, pixels]` it reads the rows alone.

    Attributes:
      pixels: uint8 as stored, or floats in [0, 1].
      labels: class of each image.
      image_shape: (height, width, channels); static.
    """

    pixels: UInt8[Array, "n pixels"] | Float[Array, "n pixels"]
    labels: Int[Array, "n"]
    image_shape: tuple[int, int, int] = struct.field(pytree_node=False)

    def take(self, rows: Int[Array, "batch"]) -> DeviceBatch:
        """Return the images and labels of some rows."""
        images = self.pixels[rows].reshape(len(rows), *self.image_shape)
        return DeviceBatch(images, self.labels[rows])


def make_resident(split: HostBatch) -> ResidentSplit:
    """Put a split on all devices of this process."""
    images, labels = split
    pixels, labels = replicate((images.reshape(len(images), -1), labels))
    return ResidentSplit(pixels, labels, images.shape[1:])
