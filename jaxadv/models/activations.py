"""The activations of the models, by name."""

import math
from collections.abc import Callable
from typing import Literal

from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

Activation = Literal["relu", "gelu"]


def gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU (Hendrycks & Gimpel 2016, equation 2)."""
    # By erf: Flax takes erfc, for digits far below those of the sum, and twice the time on a CPU.
    return 0.5 * inputs * (1 + lax.erf(inputs * math.sqrt(0.5)))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"relu": nn.relu, "gelu": gelu}
