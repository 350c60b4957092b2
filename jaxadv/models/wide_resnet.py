"""Wide residual networks of RobustBench's model `WideResNet` (TRADES, Carmon et al., MART, AWP).

The submodules have the names of those of the PyTorch model.
"""

from typing import ClassVar

from flax import linen as nn

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Logits
from jaxadv.models.layers import (
    PYTORCH_KERNEL_INIT,
    Conv,
    Dropout,
    batch_norm,
    check_size,
    normalize,
)

HE_NORMAL_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class WideResNet(nn.Module):
    """A 3x3 convolution, three stages of pre-activation blocks, average pool, dense.

    Convolutions are initialised He normal with the fan-out, the kernel of the dense layer as
    PyTorch does by default, its bias with zeros.

    Attributes:
      num_classes: number of logits.
      depth: number of layers, 6 n + 4 for n blocks per stage.
      width: factor on the 16, 32 and 64 features of the stages.
      dropout: rate of the dropout between the two convolutions of a block.
      mean: subtracted from each channel of the images; None: no normalisation.
      std: divides each channel after the mean is subtracted; None: no normalisation.
      axis_name: see `make_model`.
      unused_keys: prefixes of keys that published state dicts have and no forward pass reads.
    """

    unused_keys: ClassVar[tuple[str, ...]] = ("sub_block1.",)

    num_classes: int
    depth: int
    width: int
    dropout: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=1)
        hidden = _conv(16, 3, name="conv1")(normalize(images, self.mean, self.std))
        for stage, features in enumerate((16, 32, 64), start=1):
            for index in range((self.depth - 4) // 6):
                block = Block(
                    features * self.width,
                    strides=2 if stage > 1 and index == 0 else 1,
                    dropout=self.dropout,
                    axis_name=self.axis_name,
                    name=f"block{stage}.layer.{index}",
                )
                hidden = block(hidden, train)
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn1")(hidden)).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=PYTORCH_KERNEL_INIT, name="fc")(hidden)


class Block(nn.Module):
    """Norm, ReLU and convolution, twice; the first convolution is strided.

    Attributes:
      features: number of output channels.
      strides: of the first convolution and of the shortcut.
      dropout: rate of the dropout before the second convolution.
      axis_name: see `make_model`.
    """

    features: int
    strides: int
    dropout: float
    axis_name: str | None

    @nn.compact
    def __call__(self, inputs: Images, train: bool) -> Outputs:
        """Return the shortcut plus the output.

        Where the number of channels changes, the shortcut is a 1x1 convolution of the activated
        inputs.
        """
        activated = nn.relu(batch_norm(train, self.axis_name, name="bn1")(inputs))
        hidden = _conv(self.features, 3, self.strides, name="conv1")(activated)
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn2")(hidden))
        hidden = Dropout(self.dropout, not train, self.axis_name)(hidden)
        hidden = _conv(self.features, 3, name="conv2")(hidden)
        if inputs.shape[-1] != self.features:
            inputs = _conv(self.features, 1, self.strides, name="convShortcut")(activated)
        return inputs + hidden


def _conv(features: int, size: int, strides: int = 1, *, name: str) -> Conv:
    return Conv(
        features,
        size,
        strides,
        padding=size // 2,
        use_bias=False,
        kernel_init=HE_NORMAL_FAN_OUT,
        name=name,
    )
