"""Layers shared by the models: a convolution and a pooling that are fast on CPU too.

An attack differentiates the model with respect to its images, over and over, inside a loop.
There XLA's CPU backend is slow at two things: the input gradient that autodiff makes of a
convolution (inside a loop it falls to generic code), and convolutions of few channels (they
fill no vector register). `convolution` rewrites both; on other backends it is XLA's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxadv.types import Images

Activation = Literal["relu", "gelu"]
Padding = Literal["SAME", "VALID"]
Pads = tuple[tuple[int, int], ...]
Kernel = Float[Array, "size size in_channels out_channels"]

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
}

_FEW_CHANNELS = 32


class Conv(nn.Module):
    """Convolution with a bias; every convolution of every model is one of these.

    The kernel starts He normal (He et al. 2015), the bias at zero.

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      strides: step between two outputs, in both directions.
      padding: `SAME` or `VALID`.
    """

    features: int
    size: int
    strides: int = 1
    padding: Padding = "SAME"

    @nn.compact
    def __call__(self, images: Images) -> Images:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return convolution(images, kernel, strides=self.strides, padding=self.padding) + bias


def convolution(
    images: Images, kernel: Kernel, *, strides: int = 1, padding: Padding = "SAME"
) -> Images:
    """Convolves NHWC images with an HWIO kernel, as `lax.conv_general_dilated` does.

    The backend is looked up when the function is traced. Differentiable once, in reverse mode.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[size, size, in_channels, out_channels]`.
      strides: step between two outputs, in both directions; static.
      padding: static.
    """
    size, _, *channels = kernel.shape
    pads = tuple(lax.padtype_to_pads(images.shape[1:3], (size, size), (strides, strides), padding))
    if jax.default_backend() != "cpu":
        return _xla_convolution(images, kernel, strides, pads)
    if size == 1:
        return images[:, ::strides, ::strides] @ kernel[0, 0]
    block = 2 if strides == 1 and min(channels) < _FEW_CHANNELS else 1
    return _blocked_convolution(images, kernel, strides, pads, block)


def _xla_convolution(images: Images, kernel: Kernel, strides: int, pads: Pads) -> Images:
    return lax.conv_general_dilated(
        images, kernel, (strides, strides), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense_convolution(images: Images, kernel: Kernel, pads: Pads) -> Images:
    """A convolution of stride 1 whose input gradient is an ordinary forward convolution."""
    return _xla_convolution(images, kernel, 1, pads)


def _dense_convolution_fwd(images, kernel, pads):
    return _dense_convolution(images, kernel, pads), (images, kernel)


def _dense_convolution_bwd(pads, residuals, gradient):
    images, kernel = residuals
    # The barrier keeps XLA from folding the reversal back into the slow transposed convolution.
    mirrored = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    margin = kernel.shape[0] - 1
    mirrored_pads = tuple((margin - low, margin - high) for low, high in pads)
    _, kernel_vjp = jax.vjp(lambda k: _xla_convolution(images, k, 1, pads), kernel)
    return _xla_convolution(gradient, mirrored, 1, mirrored_pads), *kernel_vjp(gradient)


_dense_convolution.defvjp(_dense_convolution_fwd, _dense_convolution_bwd)


def _blocked_convolution(
    images: Images, kernel: Kernel, strides: int, pads: Pads, block: int
) -> Images:
    """The same convolution on blocks of pixels: space to depth, dense convolution, and back.

    One dense convolution reads `strides * block` pixels squared as channels and yields
    `block` pixels squared as channels. Blocks of 2 give the vector units four times the
    channels. With a stride and blocks of 1, the input gradient is in sub-pixel form: no
    zero is put between the pixels of the gradient.
    """
    size, _, _, features = kernel.shape
    stride = strides * block
    blocked_size = -(-(size + strides * (block - 1)) // stride)

    blocked_pads, image_pads, output_sizes = [], [], []
    for length, (low, high) in zip(images.shape[1:3], pads, strict=True):
        output = (length + low + high - size) // strides + 1
        num_needed = -(-output // block) + blocked_size - 1
        # Whole blocks of padding are left to the dense convolution, the rest is laid down here.
        num_low, rest = divmod(low, stride)
        num_blocks = min(-(-(length + rest) // stride), num_needed - num_low)
        blocked_pads.append((num_low, num_needed - num_low - num_blocks))
        image_pads.append((rest, num_blocks * stride - length - rest, 0))
        output_sizes.append(output)

    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *image_pads, (0, 0, 0)])
    outputs = _dense_convolution(
        _space_to_depth(padded, stride),
        _block_kernel(kernel, strides, block, blocked_size),
        tuple(blocked_pads),
    )
    height, width = output_sizes
    return _depth_to_space(outputs, block)[:, :height, :width, :features]


def _block_kernel(kernel: Kernel, strides: int, block: int, blocked_size: int) -> Kernel:
    """Lays the kernel out for every output phase of a block: shifted, with zeros around it."""
    size, _, in_channels, features = kernel.shape
    stride = strides * block
    if stride == 1:
        return kernel
    shifts = np.stack(
        [np.eye(size, blocked_size * stride, strides * phase) for phase in range(block)]
    ).astype(kernel.dtype)
    shifted = jnp.einsum("piu,qjv,ijco->uvcpqo", shifts, shifts, kernel)
    return (
        shifted.reshape(blocked_size, stride, blocked_size, stride, in_channels, -1)
        .transpose(0, 2, 1, 3, 4, 5)
        .reshape(blocked_size, blocked_size, stride**2 * in_channels, block**2 * features)
    )


def _space_to_depth(images: Images, block: int) -> Images:
    batch, height, width, channels = images.shape
    return (
        images.reshape(batch, height // block, block, width // block, block, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height // block, width // block, block**2 * channels)
    )


def _depth_to_space(images: Images, block: int) -> Images:
    batch, height, width, channels = images.shape
    return (
        images.reshape(batch, height, width, block, block, channels // block**2)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height * block, width * block, channels // block**2)
    )


def max_pool(images: Images) -> Images:
    """Takes the maximum of each 2x2 window; an odd last row or column is dropped.

    Where several elements of a window share the maximum they share its gradient equally.
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return _max_of_windows(even.reshape(batch, height // 2, 2, width // 2, 2, channels))


@jax.custom_vjp
def _max_of_windows(windows: Float[Array, "batch rows 2 columns 2 channels"]) -> Images:
    return windows.max((2, 4))


def _max_of_windows_fwd(windows):
    maxima = _max_of_windows(windows)
    return maxima, (windows, maxima)


def _max_of_windows_bwd(residuals, gradient):
    windows, maxima = residuals
    # Counted element by element: a sum over the window axes, as autodiff has it, is slower.
    corners = [windows[:, :, row, :, column] for row in range(2) for column in range(2)]
    num_maximal = sum((corner == maxima).astype(gradient.dtype) for corner in corners)
    share = (gradient / num_maximal)[:, :, None, :, None]
    return (jnp.where(windows == maxima[:, :, None, :, None], share, 0),)


_max_of_windows.defvjp(_max_of_windows_fwd, _max_of_windows_bwd)
