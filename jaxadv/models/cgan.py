"""Conditional GAN: a residual generator and a projection discriminator (Miyato & Koyama 2018).

Both compute in the type of their input, with parameters, norms' statistics and outputs in float32:
cast latents and images to bfloat16 for mixed precision.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxadv.models.convolution import Outputs
from jaxadv.models.layers import Conv
from jaxadv.types import Images, Labels, PerExample, UserError

Latents = Float[Array, "batch latent"]
Maps = Float[Array, "batch height width channels"]
Layer = Callable[[nn.Module, Array], Array]

_FIRST_SIDE = 4  # of the maps that the generator begins with
_ATTENTION_SIDE = 16  # of the maps that attend to themselves


class Generator(nn.Module):
    """Maps latents and classes to images of side 4 * 2 ** num_blocks.

    A dense layer, residual blocks that double the side each, norm, ReLU, a convolution, tanh. Scale
    and bias of the blocks' norms follow from the class (Dumoulin et al. 2017).

    Attributes:
      num_classes: how many there are.
      features: channels of the last block; each before it has twice as many.
      num_blocks: doublings of the side.
      attention: whether maps of side 16 attend to themselves (Zhang et al. 2019).
      momentum: of the running statistics; 0 keeps those of the last batch.
      axis_name: pmapped axis over which the norms average their statistics in training.
    """

    num_classes: int
    features: int = 64
    num_blocks: int = 3
    attention: bool = False
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, latents: Latents, labels: Labels, train: bool = False) -> Images:
        """Returns images in [0, 1]; `train` (static) norms by the statistics of the batch."""
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
            if self.attention and maps.shape[1] == _ATTENTION_SIDE:
                maps = SelfAttention(_plain)(maps)
        maps = nn.relu(norm()(maps))
        return (nn.tanh(Conv(3, size=3)(maps).astype(jnp.float32)) + 1) / 2


class Discriminator(nn.Module):
    """Maps images and classes to a number that is large where they look real.

    Residual blocks, the first two of which halve the side, ReLU, a sum over the pixels; then a
    dense layer, plus the product with a vector of the class. Every kernel is divided by its largest
    singular value (Miyato et al. 2018), by Flax's own power iteration, a step for each update.

    Attributes:
      num_classes: how many there are.
      features: channels of the first block; the second has twice as many, the others four times.
      num_blocks: at least 2.
      attention: whether maps of side 16 attend to themselves (Zhang et al. 2019).
    """

    num_classes: int
    features: int = 64
    num_blocks: int = 4
    attention: bool = False

    @nn.compact
    def __call__(self, images: Images, labels: Labels, train: bool = False) -> PerExample:
        """Returns the logits; with `train` (static) the power iteration goes on."""

        def layer(module: nn.Module, inputs: Array) -> Array:
            return nn.SpectralNorm(module)(inputs, update_stats=train)

        maps = 2 * images - 1
        for block in range(self.num_blocks):
            width = self.features << min(block, 2)
            maps = DownBlock(width, layer, first=block == 0, halve=block < 2)(maps)
            if self.attention and maps.shape[1] == _ATTENTION_SIDE:
                maps = SelfAttention(layer)(maps)
        pooled = nn.relu(maps).astype(jnp.float32).sum((1, 2))
        projected = layer(nn.Embed(self.num_classes, pooled.shape[-1]), labels)
        return layer(nn.Dense(1), pooled)[:, 0] + (pooled * projected).sum(-1)


class UpBlock(nn.Module):
    """Norm, ReLU, convolution, doubling, norm, ReLU, convolution, beside a doubled shortcut.

    The first convolution is on the small side, which costs a quarter of what it would on the other.

    Attributes:
      num_classes: that the norms know.
      features: number of output channels.
      norm: makes the norm layer, set to training or evaluation.
    """

    num_classes: int
    features: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Maps, labels: Labels) -> Outputs:
        """Maps `[batch, side, side, channels]` to `[batch, 2 side, 2 side, features]`."""
        hidden = nn.relu(ConditionalNorm(self.num_classes, self.norm)(maps, labels))
        hidden = _double(Conv(self.features, size=3)(hidden))
        hidden = nn.relu(ConditionalNorm(self.num_classes, self.norm)(hidden, labels))
        return Conv(self.features, size=3)(hidden) + _double(Conv(self.features, size=1)(maps))


class DownBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, beside a shortcut.

    Where that is asked the side is halved, before the second convolution as before the shortcut.

    Attributes:
      features: number of output channels.
      layer: applies a layer, with its kernel normalised.
      first: whether it sees the images, which need no ReLU.
      halve: whether its output has half the side.
    """

    features: int
    layer: Layer
    first: bool
    halve: bool

    @nn.compact
    def __call__(self, maps: Maps) -> Outputs:
        """Maps `[batch, side, side, channels]` to `[batch, side or side / 2, ..., features]`."""
        hidden = maps if self.first else nn.relu(maps)
        hidden = nn.relu(self.layer(Conv(self.features, size=3), hidden))
        if self.halve:
            hidden, maps = _halve(hidden), _halve(maps)
        hidden = self.layer(Conv(self.features, size=3), hidden)
        if self.halve or maps.shape[-1] != self.features:
            maps = self.layer(Conv(self.features, size=1), maps)
        return hidden + maps


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and bias are looked up by the class; they start as 1 and 0.

    Attributes:
      num_classes: how many there are.
      norm: makes the norm layer.
    """

    num_classes: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Maps, labels: Labels) -> Outputs:
        """Maps an array to one of the same shape."""
        shape = (self.num_classes, maps.shape[-1])
        scale = self.param("scale", nn.initializers.ones_init(), shape)[labels]
        bias = self.param("bias", nn.initializers.zeros_init(), shape)[labels]
        normed = self.norm(use_scale=False, use_bias=False)(maps)
        return normed * scale[:, None, None].astype(maps.dtype) + bias[:, None, None].astype(
            maps.dtype
        )


class SelfAttention(nn.Module):
    """Adds to each pixel a mean over all others, weighted by likeness (Zhang et al. 2019).

    Its weight starts at 0. Keys and values are of the halved maps, and a pixel is compared by an
    eighth of its channels.

    Attributes:
      layer: applies a layer.
    """

    layer: Layer

    @nn.compact
    def __call__(self, maps: Maps) -> Outputs:
        """Maps an array to one of the same shape."""
        batch, _, _, channels = maps.shape
        few, half = max(channels // 8, 1), max(channels // 2, 1)
        queries = self.layer(Conv(few, size=1), maps).reshape(batch, -1, few)
        keys = _halve(self.layer(Conv(few, size=1), maps)).reshape(batch, -1, few)
        values = _halve(self.layer(Conv(half, size=1), maps)).reshape(batch, -1, half)
        likeness = jnp.einsum("bqc,bkc->bqk", queries, keys).astype(jnp.float32)
        weights = jax.nn.softmax(likeness).astype(maps.dtype)
        seen = jnp.einsum("bqk,bkc->bqc", weights, values).reshape(*maps.shape[:3], half)
        weight = self.param("weight", nn.initializers.zeros_init(), ())
        return maps + weight.astype(maps.dtype) * self.layer(Conv(channels, size=1), seen)


def _plain(module: nn.Module, inputs: Array) -> Array:
    return module(inputs)


def _double(maps: Maps) -> Outputs:
    """Returns maps of twice the side, each pixel repeated."""
    return maps.repeat(2, axis=1).repeat(2, axis=2)


def _halve(maps: Maps) -> Outputs:
    """Returns maps of half the side: the means of 2x2 windows."""
    batch, height, width, channels = maps.shape
    if height % 2 or width % 2:
        raise UserError(
            f"the discriminator cannot halve maps of {height} x {width}: use images whose height "
            "and width are multiples of 4, or of 8 with attention"
        )
    return maps.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
