"""Types of arrays and batches, and the error for mistakes of the user."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

PRNGKey = Key[Array, ""]
Images = Float[Array, "batch height width channels"]  # in [0, 1]
Labels = Int[Array, "batch"]
Logits = Float[Array, "batch classes"]
PerExample = Float[Array, "batch"]
ByteImages = UInt8[Array, "batch height width channels"]

LogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, images) -> logits`: the interface of a model to attacks."""


class HostBatch(NamedTuple):
    """Examples in host memory, such as a split of a data set.

    `replicate` and `pmap_batches` of `jaxadv.core.devices` turn it into a `DeviceBatch`.

    Attributes:
      images: uint8 as stored, or floats in [0, 1].
      labels: class of each image.
    """

    images: (
        UInt8[np.ndarray, "batch height width channels"]
        | Float[np.ndarray, "batch height width channels"]
    )
    labels: Int[np.ndarray, "batch"]


class DeviceBatch(NamedTuple):
    """Examples on a device, or their tracers inside a compiled function.

    Attributes:
      images: uint8 as stored, or floats in [0, 1].
      labels: class of each image.
    """

    images: ByteImages | Images
    labels: Labels


class UserError(ValueError):
    """A mistake in a config, a file or an argument. The message is one line, with the remedy."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of the message of an error, or its type if the message is empty.

    >>> first_line(ValueError("wrong header\nat byte 0")), first_line(KeyError())
    ('wrong header', 'KeyError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
