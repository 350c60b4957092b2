"""The published architectures in PyTorch, with the names of submodules in published state dicts.

They pool over all pixels, as the originals do for images of 32x32 pixels.
"""

import numpy as np
import torch
from flax import linen
from torch import nn
from torch.nn import functional

from jaxadv.models.dm_preact_resnet import DMPreActResNet
from jaxadv.models.dm_wide_resnet import DMWideResNet
from jaxadv.models.mnist_cnn import MnistCNN
from jaxadv.models.preact_resnet import PreActResNet
from jaxadv.models.resnet import BLOCKS, ResNet
from jaxadv.models.wide_resnet import WideResNet

_ACTIVATIONS = {"relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu}


def make_torch(model: linen.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return the PyTorch module of a published architecture, in evaluation mode.

    Args:
      model: of `jaxadv.models`.
      image_shape: height, width and channels.

    Returns:
      A module that maps images (batch, channels, height, width) in [0, 1] to logits.
    """
    classes = {
        WideResNet: TorchWideResNet,
        DMWideResNet: TorchDMWideResNet,
        ResNet: TorchResNet,
        PreActResNet: TorchPreActResNet,
        DMPreActResNet: TorchDMPreActResNet,
        MnistCNN: _mnist_cnn,
    }
    network = classes[type(model)](model, image_shape)
    return _Normalised(network, model).eval() if model.mean else network.eval()


def randomise(module: nn.Module, seed: int) -> None:
    """Set all parameters and running averages of a module to random values.

    Kernels keep the variance of activations, so that the logits of a deep network are neither tiny
    nor huge.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if array.ndim > 1:
                array.normal_(0, array[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("weight", "running_var")):
                array.uniform_(0.5, 1.5, generator=generator)
            elif not name.endswith("num_batches_tracked"):
                array.normal_(0, 0.1, generator=generator)


def state_dict(module: nn.Module) -> dict[str, np.ndarray]:
    """Return the arrays of the network of `make_torch` by their published names."""
    network = module.network if isinstance(module, _Normalised) else module
    return {
        name: array.numpy()
        for name, array in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


class _Normalised(nn.Module):
    def __init__(self, network, model):
        super().__init__()
        self.network, self.padding = network, getattr(model, "padding", 0)
        for name in ("mean", "std"):  # not in the state dict, so that they are not randomised
            values = torch.tensor(getattr(model, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(images, (self.padding,) * 4)
        return self.network((padded - self.mean) / self.std)


def _conv(channels, features, size, stride=1, padding=None):
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(channels, features, size, stride, padding, bias=False)


def _pad_same(images, stride):
    """Pad images for a 3x3 convolution as `SAME` does for an even number of pixels."""
    return functional.pad(images, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


def _stage(block, channels, features, num_blocks, stride):
    blocks = [block(channels, features, stride)]
    blocks += [block(features, features, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


class TorchWideResNet(nn.Module):
    """RobustBench's `WideResNet`."""

    def __init__(self, model: WideResNet, image_shape: tuple[int, int, int]):
        super().__init__()
        channels, num_blocks = 16, (model.depth - 4) // 6
        self.conv1 = _conv(image_shape[-1], channels, 3)
        for index, features in enumerate((16, 32, 64)):
            stage, features = nn.Module(), features * model.width
            stage.layer = _stage(_WideBlock, channels, features, num_blocks, 2 if index else 1)
            self.add_module(f"block{index + 1}", stage)
            channels = features
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = self.conv1(images)
        for stage in (self.block1, self.block2, self.block3):
            hidden = stage.layer(hidden)
        return self.fc(functional.relu(self.bn1(hidden)).mean((2, 3)))


class _WideBlock(nn.Module):
    def __init__(self, channels, features, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, features, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(features), _conv(features, features, 3)
        self.convShortcut = _conv(channels, features, 1, stride) if channels != features else None

    def forward(self, inputs):
        activated = functional.relu(self.bn1(inputs))
        hidden = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        return hidden + (inputs if self.convShortcut is None else self.convShortcut(activated))


class TorchDMWideResNet(nn.Module):
    """DeepMind's `WideResNet`, without its normalisation."""

    def __init__(self, model: DMWideResNet, image_shape: tuple[int, int, int]):
        super().__init__()
        self.activation = _ACTIVATIONS[model.activation]
        channels, num_blocks = 16, (model.depth - 4) // 6
        self.init_conv, self.layer = _conv(image_shape[-1], channels, 3), nn.ModuleList()

        def block(*sizes):
            return _DMWideBlock(*sizes, self.activation)

        for index, features in enumerate((16, 32, 64)):
            stage, features = nn.Module(), features * model.width
            stage.block = _stage(block, channels, features, num_blocks, 2 if index else 1)
            self.layer.append(stage)
            channels = features
        self.batchnorm = nn.BatchNorm2d(channels)
        self.logits = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = self.init_conv(images)
        for stage in self.layer:
            hidden = stage.block(hidden)
        return self.logits(self.activation(self.batchnorm(hidden)).mean((2, 3)))


class _DMWideBlock(nn.Module):
    def __init__(self, channels, features, stride, activation):
        super().__init__()
        self.activation, self.stride = activation, stride
        self.batchnorm_0 = nn.BatchNorm2d(channels)
        self.conv_0 = _conv(channels, features, 3, stride, padding=0)
        self.batchnorm_1 = nn.BatchNorm2d(features)
        self.conv_1 = _conv(features, features, 3)
        self.shortcut = _conv(channels, features, 1, stride) if channels != features else None

    def forward(self, inputs):
        activated = self.activation(self.batchnorm_0(inputs))
        hidden = self.conv_0(_pad_same(activated, self.stride))
        hidden = self.conv_1(self.activation(self.batchnorm_1(hidden)))
        return hidden + (inputs if self.shortcut is None else self.shortcut(activated))


class TorchResNet(nn.Module):
    """RobustBench's `ResNet`."""

    def __init__(self, model: ResNet, image_shape: tuple[int, int, int]):
        super().__init__()
        block, expansion = (_Bottleneck, 4) if model.depth >= 50 else (_BasicBlock, 1)
        channels = model.width
        self.conv1, self.bn1 = _conv(image_shape[-1], channels, 3), nn.BatchNorm2d(channels)
        for index, num_blocks in enumerate(BLOCKS[model.depth]):
            features = model.width * 2**index * expansion
            stage = _stage(block, channels, features, num_blocks, 2 if index else 1)
            self.add_module(f"layer{index + 1}", stage)
            channels = features
        self.linear = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = functional.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return self.linear(hidden.mean((2, 3)))


def _residual_shortcut(channels, features, stride):
    if stride == 1 and channels == features:
        return nn.Sequential()
    return nn.Sequential(_conv(channels, features, 1, stride), nn.BatchNorm2d(features))


class _BasicBlock(nn.Module):
    def __init__(self, channels, features, stride):
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, features, 3, stride), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = _conv(features, features, 3), nn.BatchNorm2d(features)
        self.shortcut = _residual_shortcut(channels, features, stride)

    def forward(self, inputs):
        hidden = functional.relu(self.bn1(self.conv1(inputs)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


class _Bottleneck(nn.Module):
    def __init__(self, channels, features, stride):
        super().__init__()
        narrow = features // 4
        self.conv1, self.bn1 = _conv(channels, narrow, 1), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = _conv(narrow, narrow, 3, stride), nn.BatchNorm2d(narrow)
        self.conv3, self.bn3 = _conv(narrow, features, 1), nn.BatchNorm2d(features)
        self.shortcut = _residual_shortcut(channels, features, stride)

    def forward(self, inputs):
        hidden = functional.relu(self.bn1(self.conv1(inputs)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        return functional.relu(self.bn3(self.conv3(hidden)) + self.shortcut(inputs))


class TorchPreActResNet(nn.Module):
    """RobustBench's `PreActResNet`."""

    def __init__(self, model: PreActResNet, image_shape: tuple[int, int, int]):
        super().__init__()
        channels = model.width
        self.conv1 = _conv(image_shape[-1], channels, 3)

        def block(*sizes):
            return _PreActBlock(*sizes, model.version)

        for index, num_blocks in enumerate(BLOCKS[model.depth]):
            features = model.width * 2**index
            stage = _stage(block, channels, features, num_blocks, 2 if index else 1)
            self.add_module(f"layer{index + 1}", stage)
            channels = features
        self.bn = nn.BatchNorm2d(channels) if model.version == 2 else None
        self.linear = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = self.conv1(images)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        if self.bn is not None:
            hidden = functional.relu(self.bn(hidden))
        return self.linear(hidden.mean((2, 3)))


class _PreActBlock(nn.Module):
    def __init__(self, channels, features, stride, version):
        super().__init__()
        self.version, self.shortcut = version, None
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, features, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(features), _conv(features, features, 3)
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(_conv(channels, features, 1, stride))

    def forward(self, inputs):
        activated = functional.relu(self.bn1(inputs))
        hidden = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        if self.shortcut is None:
            return hidden + inputs
        return hidden + self.shortcut(inputs if self.version == 1 else activated)


class TorchDMPreActResNet(nn.Module):
    """DeepMind's `PreActResNet`, without its normalisation."""

    def __init__(self, model: DMPreActResNet, image_shape: tuple[int, int, int]):
        super().__init__()
        self.activation, channels = _ACTIVATIONS[model.activation], model.width
        self.conv_2d = _conv(image_shape[-1], channels, 3)

        def block(*sizes):
            return _DMPreActBlock(*sizes, self.activation)

        for index, num_blocks in enumerate(BLOCKS[model.depth]):
            features = model.width * 2**index
            stage = _stage(block, channels, features, num_blocks, 2 if index else 1)
            self.add_module(f"layer_{index}", stage)
            channels = features
        self.batchnorm = nn.BatchNorm2d(channels)
        self.logits = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = self.conv_2d(images)
        for stage in (self.layer_0, self.layer_1, self.layer_2, self.layer_3):
            hidden = stage(hidden)
        return self.logits(self.activation(self.batchnorm(hidden)).mean((2, 3)))


class _DMPreActBlock(nn.Module):
    def __init__(self, channels, features, stride, activation):
        super().__init__()
        self.activation, self.stride, self.shortcut = activation, stride, None
        self.batchnorm_0 = nn.BatchNorm2d(channels)
        self.conv_2d_1 = _conv(channels, features, 3, stride, padding=0)
        self.batchnorm_1 = nn.BatchNorm2d(features)
        self.conv_2d_2 = _conv(features, features, 3)
        if stride != 1 or channels != features:
            self.shortcut = _conv(channels, features, 3, stride, padding=0)

    def forward(self, inputs):
        hidden = self.activation(self.batchnorm_0(inputs))
        hidden = self.conv_2d_1(_pad_same(hidden, self.stride))
        hidden = self.conv_2d_2(self.activation(self.batchnorm_1(hidden)))
        if self.shortcut is None:
            return hidden + inputs
        return hidden + self.shortcut(_pad_same(inputs, self.stride))


def _mnist_cnn(model: MnistCNN, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return the MNIST network of Wong et al. (2020)."""
    height, width, channels = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        nn.ReLU(),
        nn.Linear(100, model.num_classes),
    )
