"""`fastnet` and `smallnet`: small residual networks, for `configs/fast.py` and `small.py`."""

from typing import Literal

from flax import linen as nn

from jaxadv.core.types import Images, Logits
from jaxadv.models.layers import Conv, batch_norm, check_size
from jaxadv.models.ops import ACTIVATIONS, Activation


class FastNet(nn.Module):
    """Two pooled convolutions, several residual 3x3 convolutions and two dense layers.

    A norm follows each layer but the last. The pools halve the image twice, so that the residual
    convolutions are cheap. The defaults are those of `fastnet`.

    Attributes:
      num_classes: number of logits.
      channels: features of each pooled convolution; the last number is that of the residual ones.
      kernel_sizes: sides of the kernels of the pooled convolutions.
      padding: of the pooled convolutions.
      num_residual: number of residual convolutions.
      mean_pool: whether the mean over 2x2 pixels precedes the dense layers.
      width: features of the hidden dense layer.
      activation: `relu`, `gelu` or `silu`, for all layers.
      axis_name: see `make_model`.
    """

    num_classes: int
    channels: tuple[int, int] = (16, 48)
    kernel_sizes: tuple[int, int] = (5, 5)
    padding: Literal["SAME", "VALID"] = "VALID"
    num_residual: int = 2
    mean_pool: bool = False
    width: int = 128
    activation: Activation = "gelu"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=16)
        activate = ACTIVATIONS[self.activation]
        hidden = images - 0.5
        for features, size in zip(self.channels, self.kernel_sizes, strict=True):
            hidden = Conv(features, size, padding=self.padding, pooled=self.activation)(hidden)
            hidden = batch_norm(train, self.axis_name)(hidden)
        for _ in range(self.num_residual):
            change = Conv(self.channels[-1], 3, use_bias=False)(activate(hidden))
            hidden = hidden + batch_norm(train, self.axis_name)(change)
        if self.mean_pool:
            hidden = nn.avg_pool(activate(hidden), (2, 2), (2, 2))
        hidden = nn.Dense(self.width, use_bias=False)(hidden.reshape(len(hidden), -1))
        hidden = activate(batch_norm(train, self.axis_name)(hidden))
        return nn.Dense(self.num_classes)(hidden)
