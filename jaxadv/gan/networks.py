"""Conditional GAN: a residual generator and a projection discriminator (Miyato & Koyama 2018).

Both networks compute in the dtype of their input. Parameters, statistics of norms and outputs are
float32. For mixed precision, cast latents and images to bfloat16.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Labels, PerExample, UserError
from jaxadv.models.layers import Conv

Latents = Float[Array, "batch latent"]
Maps = Float[Array, "batch height width channels"]
Layer = Callable[[nn.Module, Array], Array]

_FIRST_SIDE = 4  # of the first feature maps of the generator


class Generator(nn.Module):
    """Maps latents and classes to images of side 4 * 2 ** num_blocks.

    A dense layer, residual blocks that each double the side, norm, ReLU, a convolution, tanh. The
    class determines scale and bias of the norms in the blocks (Dumoulin et al. 2017).

    Attributes:
      num_classes: number of classes.
      num_channels: of the images.
      features: channels of the last block; each earlier block has twice as many as the next.
      num_blocks: number of blocks.
      momentum: of the running statistics; 0: those of the last batch.
      axis_name: pmapped axis over which the norms average their statistics in training.
    """

    num_classes: int
    num_channels: int = 3
    features: int = 64
    num_blocks: int = 3
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, latents: Latents, labels: Labels, train: bool = False) -> Images:
        """Return images in [0, 1]; with `train` (static) norms use the statistics of the batch."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=1e-4,
            dtype=latents.dtype,
            axis_name=self.axis_name if train else None,
        )
        widths = [self.features << block for block in reversed(range(self.num_blocks))]
        maps = nn.Dense(_FIRST_SIDE**2 * widths[0], dtype=latents.dtype)(latents)
        maps = maps.reshape(-1, _FIRST_SIDE, _FIRST_SIDE, widths[0])
        for width in widths:
            maps = UpBlock(self.num_classes, width, norm)(maps, labels)
        maps = nn.relu(norm()(maps))
        return (nn.tanh(Conv(self.num_channels, size=3)(maps).astype(jnp.float32)) + 1) / 2


class Discriminator(nn.Module):
    """Maps images and classes to logits, which are large for images that look real.

    Residual blocks, the first two of which halve the side, ReLU and a sum over the pixels. The
    logit is the output of a dense layer plus the product with an embedding of the class. Every
    kernel is divided by its largest singular value (Miyato et al. 2018), by Flax's power iteration
    with one step for each update.

    Attributes:
      num_classes: number of classes.
      features: channels of the first block; the second has twice as many, the others four times.
      num_blocks: at least 2.
    """

    num_classes: int
    features: int = 64
    num_blocks: int = 4

    @nn.compact
    def __call__(self, images: Images, labels: Labels, train: bool = False) -> PerExample:
        """Return the logits; with `train` (static) update the power iteration."""

        def layer(module: nn.Module, inputs: Array) -> Array:
            return nn.SpectralNorm(module)(inputs, update_stats=train)

        maps = 2 * images - 1
        for block in range(self.num_blocks):
            width = self.features << min(block, 2)
            maps = DownBlock(width, layer, first=block == 0, halve=block < 2)(maps)
        pooled = nn.relu(maps).astype(jnp.float32).sum((1, 2))
        projected = layer(nn.Embed(self.num_classes, pooled.shape[-1]), labels)
        return layer(nn.Dense(1), pooled)[:, 0] + (pooled * projected).sum(-1)


class UpBlock(nn.Module):
    """Norm, ReLU, convolution, upsampling, norm, ReLU and convolution, with a shortcut.

    The first convolution precedes the upsampling, which takes a quarter of the operations.

    Attributes:
      num_classes: number of classes of the conditional norms.
      features: number of output channels.
      norm: creates a norm layer, in training or evaluation mode.
    """

    num_classes: int
    features: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Maps, labels: Labels) -> Outputs:
        """Map `[batch, side, side, channels]` to `[batch, 2 side, 2 side, features]`."""
        hidden = nn.relu(ConditionalNorm(self.num_classes, self.norm)(maps, labels))
        hidden = _upsample(Conv(self.features, size=3)(hidden))
        hidden = nn.relu(ConditionalNorm(self.num_classes, self.norm)(hidden, labels))
        return Conv(self.features, size=3)(hidden) + _upsample(Conv(self.features, size=1)(maps))


class DownBlock(nn.Module):
    """ReLU, convolution, ReLU and convolution, with a shortcut.

    With `halve`, both branches halve the side, before the second convolution and before that of the
    shortcut.

    Attributes:
      features: number of output channels.
      layer: applies a layer with a normalised kernel.
      first: whether the inputs are the images, to which no ReLU is applied.
      halve: whether to halve the side.
    """

    features: int
    layer: Layer
    first: bool
    halve: bool

    @nn.compact
    def __call__(self, maps: Maps) -> Outputs:
        """Map `[batch, side, side, channels]` to `[batch, side or side / 2, ..., features]`."""
        hidden = maps if self.first else nn.relu(maps)
        hidden = nn.relu(self.layer(Conv(self.features, size=3), hidden))
        if self.halve:
            hidden, maps = _downsample(hidden), _downsample(maps)
        hidden = self.layer(Conv(self.features, size=3), hidden)
        if self.halve or maps.shape[-1] != self.features:
            maps = self.layer(Conv(self.features, size=1), maps)
        return hidden + maps


class ConditionalNorm(nn.Module):
    """Batch norm with a scale and a bias for each class, initialised with 1 and 0.

    Attributes:
      num_classes: number of classes.
      norm: creates the norm layer.
    """

    num_classes: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Maps, labels: Labels) -> Outputs:
        """Map an array to one of the same shape."""
        shape = (self.num_classes, maps.shape[-1])
        scale = self.param("scale", nn.initializers.ones_init(), shape)[labels]
        bias = self.param("bias", nn.initializers.zeros_init(), shape)[labels]
        normed = self.norm(use_scale=False, use_bias=False)(maps)
        return normed * scale[:, None, None].astype(maps.dtype) + bias[:, None, None].astype(
            maps.dtype
        )


def _upsample(maps: Maps) -> Outputs:
    """Double the side by nearest-neighbour upsampling."""
    return maps.repeat(2, axis=1).repeat(2, axis=2)


def _downsample(maps: Maps) -> Outputs:
    """Halve the side by the means of 2x2 windows."""
    batch, height, width, channels = maps.shape
    if height % 2 or width % 2:
        raise UserError(
            f"the discriminator cannot halve feature maps of {height} x {width}: use images whose "
            "height and width are multiples of 4"
        )
    return maps.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
