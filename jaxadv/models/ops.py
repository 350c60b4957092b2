"""Activations and pooled convolution, with gradients that are fast on CPUs, GPUs and TPUs.

`pooled_convolution` adds a bias, an activation and a 2x2 max pool to the convolution of
`jaxadv.core.convolution`.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxadv.core.convolution import (
    NO_PADS,
    Kernel,
    Outputs,
    Padding,
    Pads,
    convolution,
    convolution_with_pads,
    pads_of,
)
from jaxadv.core.devices import platform
from jaxadv.core.types import Images

Activation = Literal["relu", "gelu", "silu"]
# The 2x2 windows of a max pool: their elements in one axis, left in place, or in four arrays.
Windows = (
    Float[Array, "batch rows columns 4 out_channels"]
    | Float[Array, "batch rows 2 columns 2 out_channels"]
    | tuple[Float[Array, "batch rows columns out_channels"], ...]
)


def gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute the exact GELU (Hendrycks & Gimpel 2016, equation 2)."""
    # Flax uses erfc. Its extra digits vanish in the sum, and it takes twice the time on a CPU.
    return 0.5 * inputs * (1 + lax.erf(inputs * math.sqrt(0.5)))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": gelu,
    "silu": nn.silu,
}


def pooled_convolution(
    images: Images,
    kernel: Kernel,
    bias: Float[Array, "out_channels"],
    activation: Activation,
    *,
    padding: Padding | int = "SAME",
) -> Outputs:
    """Compute a convolution of stride 1, add the bias, apply the activation and a 2x2 max pool.

    An odd last row or column is dropped. Elements of a window that share the maximum also share its
    gradient equally.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[size, size, in_channels, out_channels]`.
      bias: of the convolution.
      activation: static.
      padding: as in `convolution`; static.
    """
    size, _, *channels = kernel.shape
    if platform() != "cpu":
        outputs = convolution(images, kernel, padding=padding)
        selected = _select_maximum(_corners(outputs), bias, activation)
        return ACTIVATIONS[activation](selected + bias)
    # Measured: forward and backward are 1.2 to 3.6 times as fast for 5x5 kernels with 3 to 12
    # channels. They are slower from 32 channels on, and for 3x3, where the wider kernel has more
    # zeros.
    if size >= 5 and min(channels) < 16:
        windows = _convolution_windows(images, kernel, pads_of(images, size, 1, padding))
    else:
        windows = _as_windows(convolution(images, kernel, padding=padding))
    # Without the barrier XLA would fuse what follows into the slow loop of the maximum.
    selected = lax.optimization_barrier(_select_maximum(windows, bias, activation))
    return ACTIVATIONS[activation](selected + bias)


def _convolution_windows(images: Images, kernel: Kernel, pads: Pads) -> Windows:
    """Return the outputs of a convolution of stride 1 as the windows of a 2x2 max pool.

    The windows are the channels of a convolution of stride 2. Its kernel is one pixel wider and
    contains the given kernel at each of the four positions.
    """
    shifts = [((row, 1 - row), (column, 1 - column)) for row in range(2) for column in range(2)]
    wide = jnp.stack([jnp.pad(kernel, (*shift, *NO_PADS)) for shift in shifts], axis=3)
    outputs = convolution_with_pads(images, wide.reshape(*wide.shape[:3], -1), (2, 2), pads)
    return outputs.reshape(*outputs.shape[:3], 4, -1)


def _as_windows(images: Outputs) -> Windows:
    """Return the 2x2 windows without a transposition; drop an odd last row and column."""
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _corners(images: Outputs) -> Windows:
    """Return the pixels of the 2x2 windows in four arrays; drop an odd last row and column.

    A TPU tiles the last two axes, in which windows of six axes would be padded. By the estimates of
    its compiler, the input gradients of `bignet` and `biggernet` take 0.80 and 0.68 of the time. On
    an H100 that of `bignet` moves 55 instead of 60 MiB for 128 images.
    """
    height, width = (length // 2 * 2 for length in images.shape[1:3])
    return tuple(images[:, i:height:2, j:width:2] for i in range(2) for j in range(2))


def _select_maximum(
    windows: Windows, bias: Float[Array, "out_channels"], activation: Activation
) -> Outputs:
    """Return the element of each window whose activation, with the bias added, is the largest.

    ReLU only rises; GELU and SiLU fall and then rise. So this is the largest or the smallest
    element, and the activation is computed for a quarter or a half of the elements.
    """
    activate = ACTIVATIONS[activation]
    fixed, bias = lax.stop_gradient((windows, bias))
    selected = _over_windows(fixed, jnp.maximum, jnp.max)
    if activation != "relu":
        smallest = _over_windows(fixed, jnp.minimum, jnp.min)
        smaller_wins = activate(selected + bias) < activate(smallest + bias)
        selected = jnp.where(smaller_wins, smallest, selected)
    return _with_shared_gradient(windows, selected)


@jax.custom_vjp
def _with_shared_gradient(windows: Windows, selected: Outputs) -> Outputs:
    """Return `selected`; the elements of the window that equal it share its gradient equally."""
    return selected


def _over_windows(windows: Windows, of_two: Callable, of_axes: Callable) -> Outputs:
    if isinstance(windows, tuple):
        return reduce(of_two, windows)
    return of_axes(windows, axis=_window_axes(windows))


def _window_axes(windows: Array) -> tuple[int, ...]:
    return (3,) if windows.ndim == 5 else (2, 4)


def _shared_gradient_fwd(windows, selected):
    # `selected` alone would have no derivative, in a derivative of this gradient.
    return _with_shared_gradient(windows, selected), (windows, selected)


def _shared_gradient_bwd(residuals, gradient):
    windows, selected = residuals
    if isinstance(windows, tuple):
        are_selected = [corner == selected for corner in windows]
        share = gradient / sum(mask.astype(gradient.dtype) for mask in are_selected)
        gradients = tuple(jnp.where(mask, share, 0) for mask in are_selected)
        return gradients, jnp.zeros_like(selected)
    axes = _window_axes(windows)
    # Counts element by element: a sum over the window axes, as in autodiff, is slower.
    if len(axes) == 1:
        corners = [windows[:, :, :, corner] for corner in range(4)]
    else:
        corners = [windows[:, :, row, :, column] for row in range(2) for column in range(2)]
    count = sum((corner == selected).astype(gradient.dtype) for corner in corners)
    share = jnp.expand_dims(gradient / count, axes)
    is_selected = windows == jnp.expand_dims(selected, axes)
    return jnp.where(is_selected, share, 0), jnp.zeros_like(selected)


_with_shared_gradient.defvjp(_shared_gradient_fwd, _shared_gradient_bwd)
