"""PyTorch modules as functions `(key, images) -> logits`, with gradients from PyTorch."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxadv.adapters.frameworks import Adapted, describe, reason
from jaxadv.core.types import UserError

_NO_GRADIENT = (
    "the logits of {} have no gradient with respect to the images: remove torch.no_grad, detach "
    "and NumPy from its forward pass, or pass a jaxadv.BlackBox"
)

PullBack = Callable[[Any], np.ndarray]
"""Gradient of a loss with respect to the logits -> gradient with respect to the images."""


def adapt_pytorch(model: Any, variables: Any, stochastic: bool) -> Adapted:
    """Adapt a PyTorch module, which is read at each call and runs on its own device."""
    if variables is not None:
        raise UserError(
            f"{type(model).__name__} holds its weights: write model.load_state_dict(variables), "
            "then jaxadv.wrap(model)"
        )
    _check_mode(model)
    forward, forward_for_gradient = torch_functions(model)

    # One object for each number of classes, so that attacks compile once.
    @cache
    def host_model(num_classes: int) -> Any:
        from jaxadv.attacks.host_model import HostModel

        return HostModel(num_classes, forward, forward_for_gradient)

    @cache
    def num_classes(image_shape: tuple[int, ...]) -> int:
        return forward(np.full((1, *image_shape), 0.5, np.float32)).shape[1]

    def logits_fn(key: jax.Array, images: jax.Array) -> Any:
        _check_mode(model)
        return host_model(num_classes(images.shape[1:]))(key, images)

    return Adapted(logits_fn, sum(parameter.numel() for parameter in model.parameters()))


def torch_functions(
    model: Any,
) -> tuple[Callable[[Any], np.ndarray], Callable[[Any], tuple[np.ndarray, PullBack]]]:
    """Return the forward pass of a module on arrays in host memory, without and with gradients.

    Gradients with respect to the parameters are neither computed nor stored.

    Args:
      model: a PyTorch module.

    Returns:
      `forward(images) -> logits`, and `forward_for_gradient(images) -> (logits, pull_back)`, where
      `pull_back(cotangent)` returns the gradient with respect to the images. It may be called
      several times. All arrays are float32.
    """
    import torch

    name = type(model).__name__

    def to_torch(array: Any) -> Any:
        like = next(model.parameters(), torch.empty(0))
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return torch.from_dlpack(array).to(like.device, dtype)

    def to_numpy(tensor: Any) -> np.ndarray:
        return tensor.detach().to("cpu", torch.float32).numpy()

    def call(images: Any) -> Any:
        try:
            # A copy, because a module may write to its input, and the memory is JAX's.
            logits = model(images.clone())
        except Exception as error:
            raise UserError(
                f"{name} fails on images of shape {tuple(images.shape)}: {reason(error)}"
            ) from error
        if not isinstance(logits, torch.Tensor):
            raise UserError(
                f"{name} returns {describe(logits)}: wrap a torch.nn.Module whose "
                "forward returns only the logits"
            )
        if logits.ndim != 2 or len(logits) != len(images):
            raise UserError(
                f"{name} returns shape {tuple(logits.shape)} for images of shape "
                f"{tuple(images.shape)}: wrap a torch.nn.Module whose forward returns shape "
                f"({len(images)}, classes)"
            )
        return logits

    def forward(images: Any) -> np.ndarray:
        with torch.no_grad():
            return to_numpy(call(to_torch(images)))

    def forward_for_gradient(images: Any) -> tuple[np.ndarray, PullBack]:
        inputs = to_torch(images).requires_grad_()
        with torch.enable_grad():
            logits = call(inputs)
        if not logits.requires_grad:
            raise UserError(_NO_GRADIENT.format(name))

        def pull_back(cotangent: Any) -> np.ndarray:
            (gradient,) = torch.autograd.grad(
                logits,
                inputs,
                to_torch(cotangent).to(logits.device, logits.dtype),
                retain_graph=True,
                allow_unused=True,
            )
            if gradient is None:
                raise UserError(_NO_GRADIENT.format(name))
            return to_numpy(gradient)

        return to_numpy(logits), pull_back

    return forward, forward_for_gradient


def _check_mode(model: Any) -> None:
    if any(module.training for module in model.modules()):
        raise UserError(f"{type(model).__name__} is in training mode: call model.eval() first")
