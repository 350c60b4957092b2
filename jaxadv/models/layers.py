"""The layers that models share: their convolution, and what is random for each example."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxadv.draws import normal, uniform
from jaxadv.models.activations import Activation
from jaxadv.models.convolution import Outputs, Padding, convolution
from jaxadv.models.pooling import pooled_convolution
from jaxadv.parallel import positions
from jaxadv.prng import example_keys
from jaxadv.types import Images, UserError


class Conv(nn.Module):
    """Convolution with a bias; every convolution of every model is one of these.

    The kernel starts He normal (He et al. 2015), the bias at zero. It computes in the type of its
    input, whatever that of its parameters.

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      strides: step between two outputs, in both directions.
      padding: `SAME` or `VALID`.
      pooled: name of an activation after which comes a 2x2 max pool, at stride 1; None: neither of
        them.
    """

    features: int
    size: int
    strides: int = 1
    padding: Padding = "SAME"
    pooled: Activation | None = None

    @nn.compact
    def __call__(self, images: Images) -> Outputs:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = kernel.astype(images.dtype), bias.astype(images.dtype)
        if self.pooled:
            assert self.strides == 1, "a pooled convolution has a stride of 1"
            return pooled_convolution(images, kernel, bias, self.pooled, padding=self.padding)
        return convolution(images, kernel, strides=self.strides, padding=self.padding) + bias


def check_size(model: nn.Module, images: Images, smallest: int) -> None:
    """Raises a UserError if images are no batch, or have fewer pixels a side than a model takes."""
    name = type(model).__name__
    if images.ndim != 4:
        raise UserError(
            f"{name} takes images of shape (batch, height, width, channels), not {images.shape}: "
            "add a batch or a channel axis"
        )
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise UserError(
            f"{name} takes images of {smallest} x {smallest} pixels or more, not {height} x "
            f"{width}: use larger images, or a wrn model, which takes every size"
        )


class Dropout(nn.Module):
    """Drops elements, from the collection `dropout`, and scales up the others.

    Attributes:
      rate: probability of each element to be dropped.
      deterministic: drop nothing.
      axis_name: see `make_model`.
    """

    rate: float
    deterministic: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps an array `[batch, ...]` to one of the same shape."""
        if self.deterministic or not self.rate:
            return inputs
        draw = jax.vmap(lambda key: uniform(key, inputs.shape[1:]))
        # Uniform in [-1, 1).
        kept = draw(_keys(self, "dropout", inputs)) >= 2 * self.rate - 1
        return jnp.where(kept, inputs / (1 - self.rate), 0)


class GaussianNoise(nn.Module):
    """Adds independent noise N(0, sigma^2) from the collection `noise`.

    Attributes:
      sigma: its deviation.
      axis_name: see `make_model`.
    """

    sigma: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps an array `[batch, ...]` to one of the same shape."""
        draw = jax.vmap(lambda key: normal(key, inputs.shape[1:]))
        return inputs + self.sigma * draw(_keys(self, "noise", inputs))


def _keys(layer: Dropout | GaussianNoise, collection: str, inputs: Array) -> Array:
    """Returns a key for each example, the same on however many devices the batch lies."""
    return example_keys(layer.make_rng(collection), positions(len(inputs), layer.axis_name))
