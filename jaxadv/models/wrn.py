"""Wide residual networks (Zagoruyko & Komodakis 2016) as the study built them.

Those of the field are in `wide_resnet.py` and `dm_wide_resnet.py`.
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from jaxtyping import Array

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Logits
from jaxadv.models.defences import (
    Defence,
    defended,
    defended_input,
    defended_norm_input,
    drops_out,
)
from jaxadv.models.layers import Conv, Dropout, batch_norm, check_size
from jaxadv.models.ops import ACTIVATIONS, Activation


class StudyWideResNet(nn.Module):
    """A 3x3 convolution, three stages of residual blocks, average pool, dense.

    Convolutions are initialised He normal, the dense layer LeCun normal, batch norm as the
    identity. Batch norm uses its running averages (collection `batch_stats`) except in training.

    Attributes:
      num_classes: number of logits.
      depth: number of layers, 6 n + 1 for n blocks per stage.
      width: factor on the 16, 32 and 64 features of the stages.
      activation: name of the activation.
      dropout: rate of the dropout between the two convolutions of a block.
      axis_name: see `make_model`.
      defence: see `jaxadv.models.defences`.
    """

    num_classes: int
    depth: int
    width: int
    activation: Activation = "gelu"
    dropout: float = 0.3
    axis_name: str | None = None
    defence: Defence | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=1)
        activation = ACTIVATIONS[self.activation]
        axis_name = self.axis_name if train else None
        norm = partial(batch_norm, train, axis_name)
        dropout = partial(Dropout, self.dropout, not drops_out(self.defence, train), axis_name)
        layer = partial(defended, self.defence, train=train, axis_name=axis_name)
        hidden = defended_input(self.defence, images, train=train, axis_name=axis_name)
        hidden = layer(Conv(16, size=3), hidden, first=True)
        for stage, features in enumerate((16, 32, 64)):
            for block in range((self.depth - 1) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                residual_block = Block(
                    features * self.width,
                    strides,
                    activation,
                    norm,
                    dropout,
                    axis_name,
                    self.defence,
                )
                hidden = residual_block(hidden, train)
        hidden = activation(norm()(hidden)).mean((1, 2))
        return layer(nn.Dense(self.num_classes), hidden)


class Block(nn.Module):
    """Norm, activation and convolution, twice, with a shortcut; the second convolution is strided.

    Attributes:
      features: number of output channels.
      strides: of the second convolution and of the shortcut.
      activation: the function.
      norm: creates a norm layer, in training or evaluation mode.
      dropout: creates a dropout layer, in training or evaluation mode.
      axis_name: pmapped axis in training; None in evaluation.
      defence: of the model.
    """

    features: int
    strides: int
    activation: Callable[[Array], Array]
    norm: Callable[[], nn.Module]
    dropout: Callable[[], nn.Module]
    axis_name: str | None
    defence: Defence | None

    @nn.compact
    def __call__(self, images: Images, train: bool) -> Outputs:
        """Return the shortcut plus the output; a 1x1 convolution adapts the shortcut's shape."""
        layer = partial(defended, self.defence, train=train, axis_name=self.axis_name)
        noisy = partial(defended_norm_input, self.defence, axis_name=self.axis_name)
        hidden = self.activation(self.norm()(noisy(images)))
        hidden = layer(Conv(self.features, size=3), hidden, after_norm=True)
        hidden = self.dropout()(self.activation(self.norm()(noisy(hidden))))
        conv = Conv(self.features, size=3, strides=self.strides)
        hidden = layer(conv, hidden, after_norm=True)
        if hidden.shape != images.shape:
            images = layer(Conv(self.features, size=1, strides=self.strides), images)
        return images + hidden
