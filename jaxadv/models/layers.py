"""Layers shared by the models: a convolution and a pooling that are fast on CPU too.

An attack differentiates the model with respect to its images, over and over, inside a loop.
There XLA's CPU backend is slow at two things: the input gradient that autodiff makes of a
convolution (inside a loop it falls to generic code), and convolutions of few channels (they
fill no vector register). In training the kernel gradient of many images is slow as well.
`convolution` rewrites all three; on other backends it is XLA's own.
"""

import math
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
Outputs = Float[Array, "batch out_height out_width out_channels"]
Kernel = Float[Array, "size size in_channels out_channels"]

_NO_PADS: Pads = ((0, 0), (0, 0))
_FEW = 4  # images whose share of a kernel's gradient is taken at a time

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
}


class Conv(nn.Module):
    """Convolution with a bias; every convolution of every model is one of these.

    The kernel starts He normal (He et al. 2015), the bias at zero. It computes in the type of its
    input, whatever that of its parameters.

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
    def __call__(self, images: Images) -> Outputs:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = kernel.astype(images.dtype), bias.astype(images.dtype)
        return convolution(images, kernel, strides=self.strides, padding=self.padding) + bias


def convolution(
    images: Images, kernel: Kernel, *, strides: int = 1, padding: Padding = "SAME"
) -> Outputs:
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
    # Measured: twice as fast for 5x5 from 3 channels, even at 16 channels, slower beyond and
    # for 3x3, whose blocks hold more zeros.
    if strides == 1 and size >= 5 and min(channels) < 16:
        return _blocked_convolution(images, kernel, strides, pads, block=2)
    return _convolution(images, kernel, strides, pads)


def _xla_convolution(images: Images, kernel: Kernel, strides: int, pads: Pads) -> Outputs:
    return lax.conv_general_dilated(
        images, kernel, (strides, strides), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(images: Images, kernel: Kernel, strides: int, pads: Pads) -> Outputs:
    """XLA's convolution, with an input gradient made of ordinary forward convolutions."""
    return _xla_convolution(images, kernel, strides, pads)


def _convolution_fwd(images, kernel, strides, pads):
    outputs = _xla_convolution(images.value, kernel.value, strides, pads)
    # An attack asks for no gradient of the kernel; of many draws of it JAX cannot even trace one.
    learned = (kernel.value,) if kernel.perturbed else ()
    return outputs, (images.value, kernel.value, learned)


def _convolution_bwd(strides, pads, residuals, gradient):
    images, kernel, learned = residuals
    if strides == 1:
        images_gradient = _mirrored_convolution(gradient, kernel, pads)
    else:
        _, images_vjp = jax.vjp(
            lambda images: _blocked_convolution(images, kernel, strides, pads, block=1), images
        )
        (images_gradient,) = images_vjp(gradient)
    if not learned:
        return images_gradient, jnp.zeros_like(kernel)
    return images_gradient, _kernel_gradient(images, gradient, kernel.shape[0], strides, pads)


_convolution.defvjp(_convolution_fwd, _convolution_bwd, symbolic_zeros=True)


def _mirrored_convolution(gradient: Outputs, kernel: Kernel, pads: Pads) -> Images:
    """Maps the output gradient of a convolution of stride 1 to its input gradient."""
    # The barrier keeps XLA from folding the mirror back into its slow transposed convolution.
    mirrored = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    margin = kernel.shape[0] - 1
    pads = tuple((margin - low, margin - high) for low, high in pads)
    return _xla_convolution(gradient, mirrored, 1, pads)


def _kernel_gradient(
    images: Images, gradient: Outputs, size: int, strides: int, pads: Pads
) -> Kernel:
    """Maps the images and the output gradient of a convolution to its kernel gradient.

    It is a convolution whose batch are the channels, whose channels are the images and whose kernel
    is the gradient. Measured: a few images at a time are up to ten times as fast as all, and only
    laid out as a forward convolution is it fast in the loop over them.
    """
    few = math.gcd(len(images), _FEW)
    out_pads = tuple(
        (low, size + (out - 1) * strides - length - low)
        for length, out, (low, _) in zip(images.shape[1:3], gradient.shape[1:3], pads, strict=True)
    )

    def add(total: Kernel, part: tuple[Images, Outputs]) -> tuple[Kernel, None]:
        here, slope = part
        # The barriers keep XLA from folding the transpositions back into its own form.
        kernel_gradient = lax.conv_general_dilated(
            lax.optimization_barrier(here.transpose(3, 1, 2, 0)),
            lax.optimization_barrier(slope.transpose(1, 2, 0, 3)),
            (1, 1),
            out_pads,
            rhs_dilation=(strides, strides),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return total + kernel_gradient.transpose(1, 2, 0, 3), None

    parts = jax.tree.map(lambda array: array.reshape(-1, few, *array.shape[1:]), (images, gradient))
    nothing = jnp.zeros((size, size, images.shape[-1], gradient.shape[-1]), gradient.dtype)
    return lax.scan(add, nothing, parts)[0]


def _blocked_convolution(
    images: Images, kernel: Kernel, strides: int, pads: Pads, block: int
) -> Outputs:
    """The same convolution on blocks of pixels: space to depth, stride 1, depth to space.

    The inner convolution reads a square of `strides * block` pixels as channels and yields a
    square of `block` pixels as channels. Blocks of 2 give the vector units four times the
    channels. Blocks of 1 put the input gradient of a strided convolution in sub-pixel form:
    each phase of the pixels is a channel, and no zeros stand between those of the gradient.
    """
    size, _, in_channels, _ = kernel.shape
    in_block = strides * block
    blocked_size = -(-(size + strides * (block - 1)) // in_block)

    output_sizes, image_pads = [], []
    for length, (low, high) in zip(images.shape[1:3], pads, strict=True):
        output_size = (length + low + high - size) // strides + 1
        num_blocks = -(-output_size // block) + blocked_size - 1
        output_sizes.append(output_size)
        image_pads.append((low, num_blocks * in_block - low - length, 0))
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *image_pads, (0, 0, 0)])

    # Each output phase (p, q) of a block has the kernel at its own shift, zeros around it.
    wide = blocked_size * in_block
    shifts = np.stack([np.eye(size, wide, strides * phase) for phase in range(block)])
    shifts = shifts.astype(kernel.dtype)
    shifted = jnp.einsum("piu,qjv,ijco->pqouvc", shifts, shifts, kernel)
    shifted = shifted.reshape(-1, wide, wide, in_channels)
    blocked_kernel = _space_to_depth(shifted, in_block).transpose(1, 2, 3, 0)

    outputs = _convolution(_space_to_depth(padded, in_block), blocked_kernel, 1, _NO_PADS)
    height, width = output_sizes
    return _depth_to_space(outputs, block)[:, :height, :width]


def _space_to_depth(images: Images, block: int) -> Outputs:
    batch, height, width, channels = images.shape
    return (
        images.reshape(batch, height // block, block, width // block, block, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height // block, width // block, block**2 * channels)
    )


def _depth_to_space(images: Images, block: int) -> Outputs:
    batch, height, width, channels = images.shape
    return (
        images.reshape(batch, height, width, block, block, channels // block**2)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height * block, width * block, channels // block**2)
    )


def max_pool(images: Images) -> Outputs:
    """Takes the maximum of each 2x2 window; an odd last row or column is dropped.

    Where several elements of a window share the maximum they share its gradient equally.
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return _max_of_windows(even.reshape(batch, height // 2, 2, width // 2, 2, channels))


@jax.custom_vjp
def _max_of_windows(windows: Float[Array, "batch rows 2 columns 2 channels"]) -> Outputs:
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
