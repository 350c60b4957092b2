"""Wide residual networks of DeepMind, RobustBench's model `DMWideResNet` (Gowal et al. 2020).

The submodules have the names of those of the PyTorch model. `haiku_names.py` converts the weights
that were published for JAX.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Logits
from jaxadv.models.layers import PYTORCH_KERNEL_INIT, Conv, batch_norm, check_size, normalize
from jaxadv.models.ops import ACTIVATIONS, Activation
from jaxadv.models.wide_resnet import HE_NORMAL_FAN_OUT

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
MOMENTUM = 0.99  # of batch norm


class DMWideResNet(nn.Module):
    """A 3x3 convolution, three stages of pre-activation blocks, average pool, dense.

    As in the original code in Haiku, convolutions pad as `SAME` does. For a stride of 2 and an even
    number of pixels, these are the pads (0, 1) of the code in PyTorch. Convolutions are initialised
    He normal with the fan-out, the kernel of the dense layer as PyTorch does by default, its bias
    with zeros (Wang et al. 2023).

    Attributes:
      num_classes: number of logits.
      depth: number of layers, 6 n + 4 for n blocks per stage.
      width: factor on the 16, 32 and 64 features of the stages.
      activation: name of the activation.
      mean: subtracted from each channel of the images.
      std: divides each channel after the mean is subtracted.
      padding: zeros around the images before the normalisation: 2 for the published model of MNIST.
      axis_name: see `make_model`.
    """

    num_classes: int
    depth: int
    width: int
    activation: Activation = "silu"
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    padding: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=1)
        sides = (self.padding, self.padding)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        hidden = _conv(16, 3, name="init_conv")(normalize(padded, self.mean, self.std))
        for stage, features in enumerate((16, 32, 64)):
            for index in range((self.depth - 4) // 6):
                block = Block(
                    features * self.width,
                    strides=2 if stage > 0 and index == 0 else 1,
                    activation=self.activation,
                    axis_name=self.axis_name,
                    name=f"layer.{stage}.block.{index}",
                )
                hidden = block(hidden, train)
        norm = batch_norm(train, self.axis_name, momentum=MOMENTUM, name="batchnorm")
        hidden = ACTIVATIONS[self.activation](norm(hidden)).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=PYTORCH_KERNEL_INIT, name="logits")(hidden)


class Block(nn.Module):
    """Norm, activation and convolution, twice; the first convolution is strided.

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
        """Return the shortcut plus the output.

        Where the number of channels changes, the shortcut is a 1x1 convolution of the activated
        inputs.
        """
        activate = ACTIVATIONS[self.activation]
        norms = [
            batch_norm(train, self.axis_name, momentum=MOMENTUM, name=f"batchnorm_{index}")
            for index in range(2)
        ]
        activated = activate(norms[0](inputs))
        hidden = _conv(self.features, 3, self.strides, name="conv_0")(activated)
        hidden = _conv(self.features, 3, name="conv_1")(activate(norms[1](hidden)))
        if inputs.shape[-1] != self.features:
            inputs = _conv(self.features, 1, self.strides, name="shortcut")(activated)
        return inputs + hidden


def _conv(features: int, size: int, strides: int = 1, *, name: str) -> Conv:
    return Conv(features, size, strides, use_bias=False, kernel_init=HE_NORMAL_FAN_OUT, name=name)
