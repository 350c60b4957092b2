"""The small convolutional networks of the study: `net`, `bignet` and `biggernet`."""

from functools import partial
from typing import Any

from flax import linen as nn

from jaxadv.core.types import Images, Logits
from jaxadv.models.defences import Defence, defended, defended_input, drops_out
from jaxadv.models.layers import Conv, Dropout, check_size
from jaxadv.models.ops import ACTIVATIONS, Activation

CONVNETS: dict[str, dict[str, Any]] = {
    "net": {"channels": (6, 16), "widths": (120, 84), "activations": ("relu", "relu")},
    "bignet": {"channels": (12, 32), "widths": (248, 160, 84), "activations": ("relu", "gelu")},
    "biggernet": {
        "channels": (32, 64),
        "widths": (248, 160, 100, 84),
        "activations": ("gelu", "gelu"),
        "dropout": 0.3,
    },
}
_KERNEL = 5  # pixels a side


class ConvNet(nn.Module):
    """5x5 convolutions, each followed by a 2x2 max pool, then dense layers.

    The convolutions are not padded, so two of them need images of 16x16 pixels or more. A pool
    drops an odd last row or column. Convolutions are initialised He normal, dense layers LeCun
    normal, biases with zeros.

    Attributes:
      num_classes: number of logits.
      channels: features of each convolution.
      widths: features of each hidden dense layer.
      activations: names of the activations after convolutions and after dense layers.
      dropout: rate of the dropout after the first pool.
      axis_name: see `make_model`.
      defence: see `jaxadv.models.defences`.
    """

    num_classes: int
    channels: tuple[int, ...]
    widths: tuple[int, ...]
    activations: tuple[Activation, Activation]
    dropout: float = 0.0
    axis_name: str | None = None
    defence: Defence | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) activates dropout."""
        check_size(self, images, _smallest_side(len(self.channels)))
        conv_activation, dense_activation = self.activations
        axis_name = self.axis_name if train else None
        layer = partial(defended, self.defence, train=train, axis_name=axis_name)
        dropout = Dropout(self.dropout, not drops_out(self.defence, train), axis_name)
        hidden = defended_input(self.defence, images, train=train, axis_name=axis_name)
        for index, features in enumerate(self.channels):
            conv = Conv(features, size=_KERNEL, padding="VALID", pooled=conv_activation)
            hidden = layer(conv, hidden, first=index == 0)
            if index == 0:
                hidden = dropout(hidden)
        hidden = hidden.reshape(hidden.shape[0], -1)
        for width in self.widths:
            hidden = ACTIVATIONS[dense_activation](layer(nn.Dense(width), hidden))
        return layer(nn.Dense(self.num_classes), hidden)


def _smallest_side(num_convolutions: int) -> int:
    """Return the smallest side of an image, of which the last pool leaves one pixel."""
    side = 1
    for _ in range(num_convolutions):
        side = 2 * side + _KERNEL - 1
    return side
