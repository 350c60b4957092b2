"""The convolutional network of MNIST in the code of Wong et al. (2020), "Fast is better than free".

The submodules have the names of those of the PyTorch model, an `nn.Sequential`.
"""

from typing import ClassVar

from flax import linen as nn

from jaxadv.core.types import Images, Logits
from jaxadv.models.layers import (
    PYTORCH_KERNEL_INIT,
    Conv,
    check_size,
    normalize,
    pytorch_bias_init,
    pytorch_dense,
)


class MnistCNN(nn.Module):
    """Two strided 4x4 convolutions and two dense layers, with ReLU.

    The first dense layer takes the outputs of the convolutions in the order of PyTorch: channels,
    then height, then width. All layers are initialised as PyTorch does by default.

    Attributes:
      num_classes: number of logits.
      mean: subtracted from each channel of the images; None: no normalisation.
      std: divides each channel after the mean is subtracted; None: no normalisation.
      axis_name: see `make_model`; unused, since no layer depends on the batch.
      published_shape: height, width and channels of the images of the published models.
    """

    published_shape: ClassVar[tuple[int, int, int]] = (28, 28, 1)

    num_classes: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` has no effect."""
        check_size(self, images, smallest=4)
        hidden = normalize(images, self.mean, self.std)
        for name, features in (("0", 16), ("2", 32)):
            hidden = nn.relu(_conv(features, hidden.shape[-1], name)(hidden))
        hidden = hidden.transpose(0, 3, 1, 2).reshape(len(hidden), -1)
        hidden = nn.relu(pytorch_dense(100, hidden.shape[-1], "5")(hidden))
        return pytorch_dense(self.num_classes, 100, "7")(hidden)


def _conv(features: int, channels: int, name: str) -> Conv:
    size = 4
    return Conv(
        features,
        size,
        strides=2,
        padding=1,
        kernel_init=PYTORCH_KERNEL_INIT,
        bias_init=pytorch_bias_init(size * size * channels),
        name=name,
    )
