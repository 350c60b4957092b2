"""Pre-activation residual networks (He et al. 2016), RobustBench's model `PreActResNet`.

The submodules have the names of those of the PyTorch model.
"""

from typing import Literal

from flax import linen as nn

from jaxadv.core.convolution import Outputs
from jaxadv.core.types import Images, Logits
from jaxadv.models.layers import batch_norm, check_size, normalize, pytorch_dense
from jaxadv.models.resnet import BLOCKS, conv


class PreActResNet(nn.Module):
    """A 3x3 convolution, four stages of pre-activation blocks, average pool, dense.

    All layers are initialised as PyTorch does by default.

    Attributes:
      num_classes: number of logits.
      depth: number of layers: 18 or 34.
      width: features of the first stage; each further stage has twice as many as the one before.
      version: 1: the shortcut of a block that changes the shape takes the inputs, and no norm
        precedes the pool (Wong et al. 2020; Andriushchenko & Flammarion 2020). 2: the shortcut
        takes the activated inputs, and a norm and ReLU precede the pool (Rice et al. 2020).
      mean: subtracted from each channel of the images; None: no normalisation.
      std: divides each channel after the mean is subtracted; None: no normalisation.
      axis_name: see `make_model`.
    """

    num_classes: int
    depth: int
    width: int = 64
    version: Literal[1, 2] = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits of images in [0, 1]; `train` (static) is the training mode of Flax."""
        check_size(self, images, smallest=1)
        hidden = conv(self.width, 3, name="conv1")(normalize(images, self.mean, self.std))
        for stage, num_blocks in enumerate(BLOCKS[self.depth]):
            for index in range(num_blocks):
                block = Block(
                    self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    version=self.version,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}.{index}",
                )
                hidden = block(hidden, train)
        if self.version == 2:
            hidden = nn.relu(batch_norm(train, self.axis_name, name="bn")(hidden))
        hidden = hidden.mean((1, 2))
        return pytorch_dense(self.num_classes, hidden.shape[-1], name="linear")(hidden)


class Block(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice; the first convolution is strided.

    Attributes:
      features: number of output channels.
      strides: of the first convolution and of the shortcut.
      version: see `PreActResNet`.
      axis_name: see `make_model`.
    """

    features: int
    strides: int
    version: Literal[1, 2]
    axis_name: str | None

    @nn.compact
    def __call__(self, inputs: Images, train: bool) -> Outputs:
        """Return the shortcut plus the output; a 1x1 convolution adapts the shortcut's shape."""
        activated = nn.relu(batch_norm(train, self.axis_name, name="bn1")(inputs))
        hidden = conv(self.features, 3, self.strides, name="conv1")(activated)
        hidden = nn.relu(batch_norm(train, self.axis_name, name="bn2")(hidden))
        hidden = conv(self.features, 3, name="conv2")(hidden)
        if self.strides > 1 or inputs.shape[-1] != self.features:
            shortcut = conv(self.features, 1, self.strides, name="shortcut.0")
            inputs = shortcut(activated if self.version == 2 else inputs)
        return inputs + hidden
