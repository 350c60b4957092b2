"""Pre-activation ResNet of DeepMind, RobustBench's model `DMPreActResNet` (Rebuffi et al. 2021).

The submodules have the names of those of the PyTorch model.
"""

from flax import linen as nn

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Logits
from jaxadv.models.dm_wide_resnet import CIFAR10_MEAN, CIFAR10_STD, MOMENTUM
from jaxadv.models.layers import (
    PYTORCH_KERNEL_INIT,
    Conv,
    batch_norm,
    check_size,
    normalize,
    pytorch_dense,
)
from jaxadv.models.ops import ACTIVATIONS, Activation
from jaxadv.models.resnet import BLOCKS


class DMPreActResNet(nn.Module):
    """A 3x3 convolution, four stages of pre-activation blocks, average pool, dense.

    Convolutions pad as `SAME` does. For a stride of 2 and an even number of pixels, these are the
    pads (0, 1) of the code in PyTorch. All layers are initialised as PyTorch does by default.

    Attributes:
      num_classes: number of logits.
      depth: number of layers: 18 or 34.
      width: features of the first stage; each further stage has twice as many as the one before.
      activation: name of the activation.
      mean: subtracted from each channel of the images.
      std: divides each channel after the mean is subtracted.
      axis_name: see `make_model`.
    """

    num_classes: int
    depth: int
    width: int = 64
    activation: Activation = "silu"
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=1)
        hidden = _conv(self.width, name="conv_2d")(normalize(images, self.mean, self.std))
        for stage, num_blocks in enumerate(BLOCKS[self.depth]):
            for index in range(num_blocks):
                block = Block(
                    self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    activation=self.activation,
                    axis_name=self.axis_name,
                    name=f"layer_{stage}.{index}",
                )
                hidden = block(hidden, train)
        norm = batch_norm(train, self.axis_name, momentum=MOMENTUM, name="batchnorm")
        hidden = ACTIVATIONS[self.activation](norm(hidden)).mean((1, 2))
        return pytorch_dense(self.num_classes, hidden.shape[-1], name="logits")(hidden)


class Block(nn.Module):
    """Norm, activation and 3x3 convolution, twice; the first convolution is strided.

    Attributes:
      features: number of output channels.
      strides: of the first convolution and of the shortcut.
      activation: name of the activation.
      axis_name: see `make_model`.
    """

    features: int
    strides: int
    activation: Activation
    axis_name: str | None

    @nn.compact
    def __call__(self, inputs: Images, train: bool) -> Outputs:
        """Return the shortcut plus the output; a 3x3 convolution adapts the shortcut's shape."""
        activate = ACTIVATIONS[self.activation]
        norms = [
            batch_norm(train, self.axis_name, momentum=MOMENTUM, name=f"batchnorm_{index}")
            for index in range(2)
        ]
        hidden = activate(norms[0](inputs))
        hidden = _conv(self.features, self.strides, name="conv_2d_1")(hidden)
        hidden = _conv(self.features, name="conv_2d_2")(activate(norms[1](hidden)))
        if self.strides > 1 or inputs.shape[-1] != self.features:
            inputs = _conv(self.features, self.strides, name="shortcut")(inputs)
        return inputs + hidden


def _conv(features: int, strides: int = 1, *, name: str) -> Conv:
    return Conv(features, 3, strides, use_bias=False, kernel_init=PYTORCH_KERNEL_INIT, name=name)
