"""Residual networks (He et al. 2016) for small images, RobustBench's model `ResNet`.

The submodules have the names of those of the PyTorch model.
"""

from flax import linen as nn

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Logits
from jaxadv.models.layers import (
    PYTORCH_KERNEL_INIT,
    Conv,
    batch_norm,
    check_size,
    normalize,
    pytorch_dense,
)

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Number of blocks in each of the four stages, by depth."""


class ResNet(nn.Module):
    """A 3x3 convolution, four stages of post-activation blocks, average pool, dense.

    Depth 50 has bottleneck blocks. All layers are initialised as PyTorch does by default.

    Attributes:
      num_classes: number of logits.
      depth: number of layers, one of `BLOCKS`.
      width: features of the first stage; each further stage has twice as many as the one before.
      mean: subtracted from each channel of the images; None: no normalisation.
      std: divides each channel after the mean is subtracted; None: no normalisation.
      axis_name: see `make_model`.
    """

    num_classes: int
    depth: int
    width: int = 64
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=1)
        hidden = conv(self.width, 3, name="conv1")(normalize(images, self.mean, self.std))
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn1")(hidden))
        block = Bottleneck if self.depth >= 50 else BasicBlock
        for stage, num_blocks in enumerate(BLOCKS[self.depth]):
            for index in range(num_blocks):
                hidden = block(
                    self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}.{index}",
                )(hidden, train)
        hidden = hidden.mean((1, 2))
        return pytorch_dense(self.num_classes, hidden.shape[-1], name="linear")(hidden)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a norm; the first is strided.

    Attributes:
      features: number of output channels.
      strides: of the first convolution and of the shortcut.
      axis_name: see `make_model`.
    """

    features: int
    strides: int
    axis_name: str | None

    @nn.compact
    def __call__(self, inputs: Images, train: bool) -> Outputs:
        """Return the activated sum of the shortcut and the output."""
        hidden = conv(self.features, 3, self.strides, name="conv1")(inputs)
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn1")(hidden))
        hidden = conv(self.features, 3, name="conv2")(hidden)
        hidden = batch_norm(train, self.axis_name, name="bn2")(hidden)
        return nn.relu(hidden + _shortcut(inputs, hidden, self.strides, train, self.axis_name))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, each followed by a norm; the second is strided.

    Attributes:
      features: channels of the first two convolutions; the output has four times as many.
      strides: of the second convolution and of the shortcut.
      axis_name: see `make_model`.
    """

    features: int
    strides: int
    axis_name: str | None

    @nn.compact
    def __call__(self, inputs: Images, train: bool) -> Outputs:
        """Return the activated sum of the shortcut and the output."""
        hidden = conv(self.features, 1, name="conv1")(inputs)
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn1")(hidden))
        hidden = conv(self.features, 3, self.strides, name="conv2")(hidden)
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn2")(hidden))
        hidden = conv(4 * self.features, 1, name="conv3")(hidden)
        hidden = batch_norm(train, self.axis_name, name="bn3")(hidden)
        return nn.relu(hidden + _shortcut(inputs, hidden, self.strides, train, self.axis_name))


def _shortcut(
    inputs: Images, outputs: Outputs, strides: int, train: bool, axis_name: str | None
) -> Outputs:
    """Return the inputs of a block; a 1x1 convolution and a norm adapt them to its outputs."""
    if strides == 1 and inputs.shape[-1] == outputs.shape[-1]:
        return inputs
    hidden = conv(outputs.shape[-1], 1, strides, name="shortcut.0")(inputs)
    return batch_norm(train, axis_name, name="shortcut.1")(hidden)


def conv(features: int, size: int, strides: int = 1, *, name: str) -> Conv:
    """Return a convolution as ResNets in PyTorch have it: without a bias, padded by half its size.

    Args:
      features: number of output channels.
      size: side of the kernel, odd.
      strides: in both directions.
      name: of the submodule.
    """
    return Conv(
        features,
        size,
        strides,
        padding=size // 2,
        use_bias=False,
        kernel_init=PYTORCH_KERNEL_INIT,
        name=name,
    )
