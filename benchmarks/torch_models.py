"""The models of `jaxadv.models` in idiomatic PyTorch, with the weights of the Flax models."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from flax import linen
from torch import nn
from torch.nn import functional

from jaxadv.models.convnets import ConvNet
from jaxadv.models.fastnet import FastNet
from jaxadv.models.vit import HEAD_WIDTH, VisionTransformer
from jaxadv.models.wrn import StudyWideResNet

ACTIVATIONS: dict[str, Callable] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def to_torch(model: linen.Module, variables: Mapping, dtype: torch.dtype = torch.float32):
    """Return a PyTorch module with the variables of a Flax model, in evaluation mode.

    The submodules have the names of their counterparts in Flax, by which variables are assigned.

    Args:
      model: a `ConvNet`, `FastNet`, `StudyWideResNet` or `VisionTransformer` without a defence.
      variables: its variables, with the collections `params` and, if any, `batch_stats`.
      dtype: of the weights.

    Returns:
      A module that maps images (batch, channels, height, width) in [0, 1] to logits.
    """
    classes = {
        ConvNet: TorchConvNet,
        FastNet: TorchFastNet,
        StudyWideResNet: TorchStudyWideResNet,
        VisionTransformer: TorchVisionTransformer,
    }
    module = classes[type(model)](model)
    with torch.no_grad():
        _load(module, variables["params"], variables.get("batch_stats", {}))
    return module.to(dtype).eval()


class TorchConvNet(nn.Module):
    """Convolutional network: `net`, `bignet` or `biggernet`."""

    def __init__(self, model: ConvNet):
        super().__init__()
        conv, dense = model.activations
        self.conv_activation, self.dense_activation = ACTIVATIONS[conv], ACTIVATIONS[dense]
        self.num_convs, self.num_hidden = len(model.channels), len(model.widths)
        self.dropout = model.dropout
        channels, side = 3, 32
        for index, features in enumerate(model.channels):
            self.add_module(f"Conv_{index}", nn.Conv2d(channels, features, 5))
            channels, side = features, (side - 4) // 2
        width = channels * side**2
        for index, features in enumerate((*model.widths, model.num_classes)):
            self.add_module(f"Dense_{index}", nn.Linear(width, features))
            width = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = images
        for index in range(self.num_convs):
            hidden = self.conv_activation(self.get_submodule(f"Conv_{index}")(hidden))
            hidden = functional.max_pool2d(hidden, 2)
            if index == 0 and self.dropout:
                hidden = functional.dropout(hidden, self.dropout, self.training)
        hidden = hidden.permute(0, 2, 3, 1).flatten(1)  # Flax flattens channels last
        for index in range(self.num_hidden):
            hidden = self.dense_activation(self.get_submodule(f"Dense_{index}")(hidden))
        return self.get_submodule(f"Dense_{self.num_hidden}")(hidden)


class TorchFastNet(nn.Module):
    """Small residual network: `fastnet` or `smallnet`."""

    def __init__(self, model: FastNet):
        super().__init__()
        self.activation, self.mean_pool = ACTIVATIONS[model.activation], model.mean_pool
        self.num_residual = model.num_residual
        channels, side = 3, 32
        for index, (features, size) in enumerate(
            zip(model.channels, model.kernel_sizes, strict=True)
        ):
            padding = size // 2 if model.padding == "SAME" else 0
            conv = nn.Conv2d(channels, features, size, padding=padding)
            self.add_module(f"Conv_{index}", conv)
            channels, side = features, (side + 2 * padding - size + 1) // 2
        for index in range(2, 2 + model.num_residual):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.add_module(f"Conv_{index}", conv)
        for index in range(2 + model.num_residual):
            self.add_module(f"BatchNorm_{index}", nn.BatchNorm2d(model.channels[min(index, 1)]))
        side = side // 2 if model.mean_pool else side
        self.Dense_0 = nn.Linear(channels * side**2, model.width, bias=False)
        self.add_module(f"BatchNorm_{2 + model.num_residual}", nn.BatchNorm1d(model.width))
        self.Dense_1 = nn.Linear(model.width, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""

        def normed(index: int, hidden: torch.Tensor) -> torch.Tensor:
            return self.get_submodule(f"BatchNorm_{index}")(hidden)

        hidden = images - 0.5
        for index in range(2):
            hidden = self.activation(self.get_submodule(f"Conv_{index}")(hidden))
            hidden = normed(index, functional.max_pool2d(hidden, 2))
        for index in range(2, 2 + self.num_residual):
            change = self.get_submodule(f"Conv_{index}")(self.activation(hidden))
            hidden = hidden + normed(index, change)
        if self.mean_pool:
            hidden = functional.avg_pool2d(self.activation(hidden), 2)
        hidden = self.Dense_0(hidden.permute(0, 2, 3, 1).flatten(1))  # Flax has channels last
        return self.Dense_1(self.activation(normed(2 + self.num_residual, hidden)))


class TorchStudyWideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis, 2016)."""

    def __init__(self, model: StudyWideResNet):
        super().__init__()
        self.activation = ACTIVATIONS[model.activation]
        self.Conv_0 = nn.Conv2d(3, 16, 3, padding=1)
        channels, self.num_blocks = 16, 3 * ((model.depth - 1) // 6)
        for index in range(self.num_blocks):
            stage, position = divmod(index, self.num_blocks // 3)
            features, strides = 16 * 2**stage * model.width, 2 if stage and not position else 1
            block = _ResidualBlock(channels, features, strides, self.activation, model.dropout)
            self.add_module(f"Block_{index}", block)
            channels = features
        self.BatchNorm_0 = nn.BatchNorm2d(channels)
        self.Dense_0 = nn.Linear(channels, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = self.Conv_0(images)
        for index in range(self.num_blocks):
            hidden = self.get_submodule(f"Block_{index}")(hidden)
        return self.Dense_0(self.activation(self.BatchNorm_0(hidden)).mean((2, 3)))


class _ResidualBlock(nn.Module):
    def __init__(self, channels, features, strides, activation, dropout):
        super().__init__()
        self.activation, self.dropout, self.strides = activation, dropout, strides
        self.BatchNorm_0 = nn.BatchNorm2d(channels)
        self.Conv_0 = nn.Conv2d(channels, features, 3, padding=1)
        self.BatchNorm_1 = nn.BatchNorm2d(features)
        # At stride 2 XLA's SAME pads only at the bottom and right; see `forward`.
        self.Conv_1 = nn.Conv2d(features, features, 3, strides, padding=1 if strides == 1 else 0)
        self.Conv_2 = None
        if strides > 1 or channels != features:
            self.Conv_2 = nn.Conv2d(channels, features, 1, strides)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.Conv_0(self.activation(self.BatchNorm_0(images)))
        hidden = self.activation(self.BatchNorm_1(hidden))
        hidden = functional.dropout(hidden, self.dropout, self.training)
        if self.strides > 1:
            hidden = functional.pad(hidden, (0, 1, 0, 1))
        hidden = self.Conv_1(hidden)
        return hidden + (images if self.Conv_2 is None else self.Conv_2(images))


class TorchVisionTransformer(nn.Module):
    """Vision transformer whose tokens come from two convolutions."""

    def __init__(self, model: VisionTransformer):
        super().__init__()
        width = model.width
        self.activation, self.depth = ACTIVATIONS[model.activation], model.depth
        self.Conv_0 = nn.Conv2d(3, width // 2, 3, padding=1)
        self.Conv_1 = nn.Conv2d(width // 2, width, 3, padding=1)
        self.positions = nn.Parameter(torch.zeros(64, width))
        for index in range(model.depth):
            block = _TransformerBlock(width, self.activation, model.dropout)
            self.add_module(f"Block_{index}", block)
        self.LayerNorm_0 = nn.LayerNorm(width, eps=1e-6)
        self.Dense_0 = nn.Linear(width, model.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images."""
        hidden = functional.max_pool2d(self.activation(self.Conv_0(images)), 2)
        hidden = functional.max_pool2d(self.activation(self.Conv_1(hidden)), 2)
        tokens = hidden.flatten(2).transpose(1, 2) + self.positions
        for index in range(self.depth):
            tokens = self.get_submodule(f"Block_{index}")(tokens)
        return self.Dense_0(self.LayerNorm_0(tokens).mean(1))


class _TransformerBlock(nn.Module):
    def __init__(self, width, activation, dropout):
        super().__init__()
        self.activation, self.dropout, self.heads = activation, dropout, width // HEAD_WIDTH
        self.LayerNorm_0 = nn.LayerNorm(width, eps=1e-6)
        self.Dense_0, self.Dense_1 = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.LayerNorm_1 = nn.LayerNorm(width, eps=1e-6)
        self.Dense_2, self.Dense_3 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, _ = tokens.shape
        hidden = self.Dense_0(self.LayerNorm_0(tokens))
        heads = hidden.view(batch, length, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2)
        attended = self.Dense_1(attended.reshape(tokens.shape))
        tokens = tokens + functional.dropout(attended, self.dropout, self.training)
        hidden = self.Dense_3(self.activation(self.Dense_2(self.LayerNorm_1(tokens))))
        return tokens + functional.dropout(hidden, self.dropout, self.training)


def _load(module: nn.Module, params: Mapping, stats: Mapping) -> None:
    """Copy the variables of a Flax module and its submodules into a PyTorch module."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            _load(module.get_submodule(name), value, stats.get(name, {}))
        else:
            array = np.asarray(value)
            if name == "kernel":  # HWIO to OIHW; for a dense layer IO to OI
                array = np.moveaxis(array, (-1, -2), (0, 1))
            torch_name = "weight" if name in ("kernel", "scale") else name
            module.get_parameter(torch_name).copy_(torch.from_numpy(array.copy()))
    for name in ("mean", "var") if "mean" in stats else ():
        module.get_buffer(f"running_{name}").copy_(torch.from_numpy(np.array(stats[name])))
