"""Array types shared by every layer, and the one error that is the user's to mend."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key, UInt8

PRNGKey = Key[Array, ""]
Images = Float[Array, "batch height width channels"]  # in [0, 1]
Labels = Int[Array, "batch"]
Logits = Float[Array, "batch classes"]
PerExample = Float[Array, "batch"]
ByteImages = UInt8[Array, "batch height width channels"]

LogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, images) -> logits`: all that an attack sees of a model."""


class Batch(NamedTuple):
    """Examples with their labels; images are bytes as stored, or floats in [0, 1]."""

    images: ByteImages | Images
    labels: Labels


class UserError(ValueError):
    """A mistake in a config, a file or an argument: told in one line, with what to do."""
