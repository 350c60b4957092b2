"""Layers that the models share: convolution, dropout and Gaussian noise."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array

from jaxadv.core.convolution import Outputs, Padding, convolution
from jaxadv.core.devices import positions
from jaxadv.core.rng import example_keys, normal, uniform
from jaxadv.core.types import Images, UserError
from jaxadv.models.ops import Activation, pooled_convolution

# PyTorch's default initialiser of kernels: uniform in [-1, 1] / sqrt(fan_in).
PYTORCH_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """Convolution; all models use this layer for every convolution.

    The layer computes in the dtype of its input, whatever the dtype of its parameters.

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      strides: stride in both directions.
      padding: `SAME`, `VALID`, or the number of zeros on each side as in PyTorch.
      pooled: name of an activation that is applied and followed by a 2x2 max pool, at stride 1;
        None: neither.
      use_bias: add a bias.
      kernel_init: initialiser of the kernel, by default He normal (He et al. 2015).
      bias_init: initialiser of the bias.
    """

    features: int
    size: int
    strides: int = 1
    padding: Padding | int = "SAME"
    pooled: Activation | None = None
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.he_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, images: Images) -> Outputs:
        """Map `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(images.dtype)
        if not self.use_bias:
            assert not self.pooled, "a pooled convolution has a bias"
            return convolution(images, kernel, strides=self.strides, padding=self.padding)
        bias = self.param("bias", self.bias_init, (self.features,)).astype(images.dtype)
        if self.pooled:
            assert self.strides == 1, "a pooled convolution has a stride of 1"
            return pooled_convolution(images, kernel, bias, self.pooled, padding=self.padding)
        return convolution(images, kernel, strides=self.strides, padding=self.padding) + bias


def batch_norm(
    train: bool, axis_name: str | None, *, momentum: float = 0.9, name: str | None = None
) -> nn.BatchNorm:
    """Return a batch norm with PyTorch's defaults; it uses its running averages unless it trains.

    Args:
      train: training mode.
      axis_name: see `make_model`; None in evaluation.
      momentum: weight of the old running average; one minus the momentum of PyTorch.
      name: of the submodule.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=1e-5,
        axis_name=axis_name if train else None,
        name=name,
    )


def pytorch_dense(features: int, fan_in: int, name: str) -> nn.Dense:
    """Return a dense layer that is initialised as PyTorch does by default."""
    return nn.Dense(
        features, kernel_init=PYTORCH_KERNEL_INIT, bias_init=pytorch_bias_init(fan_in), name=name
    )


def pytorch_bias_init(fan_in: int) -> Initializer:
    """Return PyTorch's default initialiser of biases, the uniform distribution of the kernel."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normalize(
    images: Images, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Images:
    """Return `(images - mean) / std` for each channel, or the images where both are None.

    Raises:
      UserError: only one is given, or they do not have one number for each channel.
    """
    if mean is None and std is None:
        return images
    channels = images.shape[-1]
    if mean is None or std is None or {len(mean), len(std)} != {channels}:
        raise UserError(
            f"mean {mean} and std {std} do not fit images with {channels} "
            f"channel{'s' if channels > 1 else ''}: give both, with one number for each channel"
        )
    return (images - jnp.array(mean, images.dtype)) / jnp.array(std, images.dtype)


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
