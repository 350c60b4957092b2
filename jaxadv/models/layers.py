"""Layers that the models share: convolution, dropout and Gaussian noise."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxadv.core.convolution import Outputs, Padding, convolution
from jaxadv.core.devices import positions
from jaxadv.core.rng import example_keys, normal, uniform
from jaxadv.core.types import Images, UserError
from jaxadv.models.ops import Activation, pooled_convolution


class Conv(nn.Module):
    """Convolution with a bias; all models use this layer for every convolution.

    The kernel is initialised He normal (He et al. 2015), the bias with zeros. The layer computes in
    the dtype of its input, whatever the dtype of its parameters.

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      strides: stride in both directions.
      padding: `SAME` or `VALID`.
      pooled: name of an activation that is applied and followed by a 2x2 max pool, at stride 1;
        None: neither.
    """

    features: int
    size: int
    strides: int = 1
    padding: Padding = "SAME"
    pooled: Activation | None = None

    @nn.compact
    def __call__(self, images: Images) -> Outputs:
        """Map `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = kernel.astype(images.dtype), bias.astype(images.dtype)
        if self.pooled:
            assert self.strides == 1, "a pooled convolution has a stride of 1"
            return pooled_convolution(images, kernel, bias, self.pooled, padding=self.padding)
        return convolution(images, kernel, strides=self.strides, padding=self.padding) + bias


def check_size(model: nn.Module, images: Images, smallest: int) -> None:
    """Check that images are a batch, with at least `smallest` pixels in height and width.

    Raises:
      UserError: they are not.
    """
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
    """Dropout with keys from the collection `dropout`; kept elements are scaled by 1/(1 - rate).

    Attributes:
      rate: probability that an element is dropped.
      deterministic: drop nothing.
      axis_name: see `make_model`.
    """

    rate: float
    deterministic: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map an array `[batch, ...]` to one of the same shape."""
        if self.deterministic or not self.rate:
            return inputs
        sample = jax.vmap(lambda key: uniform(key, inputs.shape[1:]))
        # Uniform in [-1, 1).
        kept = sample(_example_keys(self, "dropout", inputs)) >= 2 * self.rate - 1
        return jnp.where(kept, inputs / (1 - self.rate), 0)


class GaussianNoise(nn.Module):
    """Additive Gaussian noise N(0, sigma^2) with keys from the collection `noise`.

    Attributes:
      sigma: standard deviation.
      axis_name: see `make_model`.
    """

    sigma: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map an array `[batch, ...]` to one of the same shape."""
        sample = jax.vmap(lambda key: normal(key, inputs.shape[1:]))
        return inputs + self.sigma * sample(_example_keys(self, "noise", inputs))


def _example_keys(layer: Dropout | GaussianNoise, collection: str, inputs: Array) -> Array:
    """Return a key for each example that does not depend on the number of devices."""
    return example_keys(layer.make_rng(collection), positions(len(inputs), layer.axis_name))
