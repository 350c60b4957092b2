"""The project's models in PyTorch, as a practitioner there writes them, with its weights."""

from collections.abc import Mapping

import numpy as np
import torch
from flax import linen as nn
from torch.nn import functional

from jaxadv.models.nets import ConvNet
from jaxadv.models.wrn import WideResNet

_ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu}
_EPSILON = 1e-5  # of batch norm

Weights = Mapping[str, "torch.Tensor | Weights"]


class TorchClassifier(torch.nn.Module):
    """A `ConvNet` or a `WideResNet` without a defence, in evaluation mode, on NCHW images."""

    def __init__(self, model: nn.Module, variables: Mapping, dtype: torch.dtype = torch.float32):
        """Takes over the variables of a Flax model."""
        super().__init__()
        self.model = model
        self.params = _tensors(variables["params"], dtype)
        self.stats = _tensors(variables.get("batch_stats", {}), dtype)
        self.first = torch.nn.Parameter(torch.zeros(1, dtype=dtype))  # tells peers the device
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images (batch, channels, height, width) in [0, 1]."""
        if isinstance(self.model, ConvNet):
            return self._conv_net(self.model, images)
        if isinstance(self.model, WideResNet):
            return self._wide_resnet(self.model, images)
        raise ValueError(f"no {type(self.model).__name__} in PyTorch: net, bignet or wrn_...")

    def _conv_net(self, model: ConvNet, hidden: torch.Tensor) -> torch.Tensor:
        conv_activation, dense_activation = (_ACTIVATIONS[name] for name in model.activations)
        for index in range(len(model.channels)):
            layer = self.params[f"Conv_{index}"]
            hidden = functional.conv2d(hidden, layer["kernel"], layer["bias"])
            hidden = functional.max_pool2d(conv_activation(hidden), 2)
        hidden = hidden.permute(0, 2, 3, 1).flatten(1)  # Flax flattens channels last
        for index in range(len(model.widths)):
            hidden = dense_activation(_dense(hidden, self.params[f"Dense_{index}"]))
        return _dense(hidden, self.params[f"Dense_{len(model.widths)}"])

    def _wide_resnet(self, model: WideResNet, images: torch.Tensor) -> torch.Tensor:
        activation = _ACTIVATIONS[model.activation]
        hidden = _same_conv(images, self.params["Conv_0"], 1)
        num_blocks = (model.depth - 1) // 6
        for index in range(3 * num_blocks):
            strides = 2 if index in (num_blocks, 2 * num_blocks) else 1
            hidden = self._block(f"Block_{index}", hidden, strides, activation)
        hidden = _norm(hidden, self.params["BatchNorm_0"], self.stats["BatchNorm_0"])
        return _dense(activation(hidden).mean((2, 3)), self.params["Dense_0"])

    def _block(self, name, images, strides, activation):
        params, stats = self.params[name], self.stats[name]
        hidden = activation(_norm(images, params["BatchNorm_0"], stats["BatchNorm_0"]))
        hidden = _same_conv(hidden, params["Conv_0"], 1)
        hidden = activation(_norm(hidden, params["BatchNorm_1"], stats["BatchNorm_1"]))
        hidden = _same_conv(hidden, params["Conv_1"], strides)
        if "Conv_2" in params:
            images = _same_conv(images, params["Conv_2"], strides)
        return images + hidden


def _tensors(tree: Mapping, dtype: torch.dtype) -> Weights:
    def convert(leaf):
        array = np.asarray(leaf)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)  # HWIO to OIHW
        return torch.from_numpy(np.array(array, copy=True)).to(dtype).contiguous()

    return {
        name: _tensors(value, dtype) if isinstance(value, Mapping) else convert(value)
        for name, value in tree.items()
    }


def _dense(hidden: torch.Tensor, layer: Weights) -> torch.Tensor:
    return hidden @ layer["kernel"] + layer["bias"]


def _norm(hidden: torch.Tensor, layer: Weights, stats: Weights) -> torch.Tensor:
    return functional.batch_norm(
        hidden, stats["mean"], stats["var"], layer["scale"], layer["bias"], eps=_EPSILON
    )


def _same_conv(hidden: torch.Tensor, layer: Weights, strides: int) -> torch.Tensor:
    """A convolution with XLA's SAME padding, which at stride 2 pads behind first."""
    size = layer["kernel"].shape[-1]
    outputs = -(-hidden.shape[-1] // strides)
    pad = max((outputs - 1) * strides + size - hidden.shape[-1], 0)
    low, high = pad // 2, pad - pad // 2
    if low == high:
        return functional.conv2d(hidden, layer["kernel"], layer["bias"], strides, padding=low)
    padded = functional.pad(hidden, (low, high, low, high))
    return functional.conv2d(padded, layer["kernel"], layer["bias"], strides)
