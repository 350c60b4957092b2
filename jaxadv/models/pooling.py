"""A convolution, its activation and a 2x2 max pool in one, which is fast on a CPU too.

There XLA is slow at convolutions of few channels, which fill no vector register, with a max pool
after them: `pooled_convolution` makes the windows of the pool channels, and takes the activation of
no more elements than it has to.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxadv.models.activations import ACTIVATIONS, Activation
from jaxadv.models.convolution import (
    NO_PADS,
    Kernel,
    Outputs,
    Padding,
    Pads,
    convolution,
    convolution_with_pads,
    pads_of,
)
from jaxadv.types import Images

# The windows of a max pool: whole, or where the pixels lie.
Windows = (
    Float[Array, "batch rows columns 4 out_channels"]
    | Float[Array, "batch rows 2 columns 2 out_channels"]
)


def pooled_convolution(
    images: Images,
    kernel: Kernel,
    bias: Float[Array, "out_channels"],
    activation: Activation,
    *,
    padding: Padding = "SAME",
) -> Outputs:
    """Returns the 2x2 max pool of the activation of a convolution of stride 1.

    An odd last row or column is dropped. Where several elements of a window share the maximum they
    share its gradient equally.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[size, size, in_channels, out_channels]`.
      bias: of the convolution.
      activation: static.
      padding: static.
    """
    size, _, *channels = kernel.shape
    # Measured: forward and backward are 1.2 to 3.6 times as fast for 5x5 from 3 to 12 channels, but
    # slower from 32, and for 3x3, where the wider kernel holds more zeros.
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and size >= 5 and min(channels) < 16:
        outputs = _windows(images, kernel, pads_of(images, size, 1, padding))
    else:
        outputs = _as_windows(convolution(images, kernel, padding=padding))
    picked = _greatest_of_windows(outputs, bias, activation)
    if on_cpu:  # XLA would fuse what follows into the slow loop of the maximum
        picked = lax.optimization_barrier(picked)
    return ACTIVATIONS[activation](picked + bias)


def _windows(images: Images, kernel: Kernel, pads: Pads) -> Windows:
    """Returns the outputs of a convolution of stride 1 as the windows of a 2x2 max pool.

    They are the channels of a convolution of stride 2, whose kernel is wider by one pixel and has
    the kernel at each of its four places.
    """
    shifts = [((row, 1 - row), (column, 1 - column)) for row in range(2) for column in range(2)]
    wide = jnp.stack([jnp.pad(kernel, (*shift, *NO_PADS)) for shift in shifts], axis=3)
    outputs = convolution_with_pads(images, wide.reshape(*wide.shape[:3], -1), 2, pads)
    return outputs.reshape(*outputs.shape[:3], 4, -1)


def _as_windows(images: Outputs) -> Windows:
    """Returns the 2x2 windows without moving a pixel, the odd last row and column dropped."""
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _greatest_of_windows(
    windows: Windows, bias: Float[Array, "out_channels"], activation: Activation
) -> Outputs:
    """Returns what is greatest in each window once the bias is added and the activation taken.

    Both activations fall and then rise, or only rise, so that is the largest or the smallest
    element: the activation is taken of a quarter or a half of the elements.
    """
    axes, activate = _window_axes(windows), ACTIVATIONS[activation]
    fixed, bias = lax.stop_gradient((windows, bias))
    picked = fixed.max(axes)
    if activation == "gelu":
        least = fixed.min(axes)
        picked = jnp.where(activate(picked + bias) < activate(least + bias), least, picked)
    return _picked(windows, picked)


@jax.custom_vjp
def _picked(windows: Windows, picked: Outputs) -> Outputs:
    """Returns `picked`, whose gradient goes in equal shares to the elements equal to it."""
    return picked


def _window_axes(windows: Windows) -> tuple[int, ...]:
    return (3,) if windows.ndim == 5 else (2, 4)


def _picked_fwd(windows, picked):
    return picked, (windows, picked)


def _picked_bwd(residuals, gradient):
    windows, picked = residuals
    axes = _window_axes(windows)
    # Counted element by element: a sum over the window axes, as autodiff has it, is slower.
    if len(axes) == 1:
        corners = [windows[:, :, :, corner] for corner in range(4)]
    else:
        corners = [windows[:, :, row, :, column] for row in range(2) for column in range(2)]
    num_picked = sum((corner == picked).astype(gradient.dtype) for corner in corners)
    share = jnp.expand_dims(gradient / num_picked, axes)
    return jnp.where(windows == jnp.expand_dims(picked, axes), share, 0), jnp.zeros_like(picked)


_picked.defvjp(_picked_fwd, _picked_bwd)
