"""Activations, convolution and pooled convolution, with gradients that are fast on a CPU.

An attack differentiates the model with respect to its images in every step. For the input gradient
of a convolution that autodiff derives, XLA's CPU backend falls back to generic code. In training
the kernel gradient over many images is slow as well. `convolution` replaces both gradients on a
CPU; on other backends it calls XLA's convolution. `pooled_convolution` adds a bias, an activation
and a 2x2 max pool.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxadv.core.types import Images

Activation = Literal["relu", "gelu"]
Padding = Literal["SAME", "VALID"]
Pads = tuple[tuple[int, int], ...]
Kernel = Float[Array, "size size in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]
# The 2x2 windows of a max pool, with their elements in one axis or left in place.
Windows = (
    Float[Array, "batch rows columns 4 out_channels"]
    | Float[Array, "batch rows 2 columns 2 out_channels"]
)

NO_PADS: Pads = ((0, 0), (0, 0))
_IMAGES_PER_CHUNK = 16  # of the kernel gradient


def gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compute the exact GELU (Hendrycks & Gimpel 2016, equation 2)."""
    # Flax uses erfc. Its extra digits vanish in the sum, and it takes twice the time on a CPU.
    return 0.5 * inputs * (1 + lax.erf(inputs * math.sqrt(0.5)))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"relu": nn.relu, "gelu": gelu}


def convolution(
    images: Images, kernel: Kernel, *, strides: int = 1, padding: Padding = "SAME"
) -> Outputs:
    """Convolve NHWC images with an HWIO kernel, as `lax.conv_general_dilated` does.

    The backend is read when the function is traced. Differentiable once, in reverse mode.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[size, size, in_channels, out_channels]`.
      strides: stride in both directions; static.
      padding: static.
    """
    size = kernel.shape[0]
    pads = pads_of(images, size, strides, padding)
    if jax.default_backend() != "cpu":
        return _xla_convolution(images, kernel, strides, pads)
    if size == 1:
        return images[:, ::strides, ::strides] @ kernel[0, 0]
    return convolution_with_pads(images, kernel, strides, pads)


def pads_of(images: Images, size: int, strides: int, padding: Padding) -> Pads:
    """Return the number of zeros before and after the pixels, for height and width."""
    return tuple(lax.padtype_to_pads(images.shape[1:3], (size, size), (strides, strides), padding))


def _xla_convolution(images: Images, kernel: Kernel, strides: int, pads: Pads) -> Outputs:
    return lax.conv_general_dilated(
        images, kernel, (strides, strides), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution_with_pads(images: Images, kernel: Kernel, strides: int, pads: Pads) -> Outputs:
    """Run XLA's convolution; its input gradient consists of ordinary forward convolutions."""
    return _xla_convolution(images, kernel, strides, pads)


def _convolution_fwd(images, kernel, strides, pads):
    outputs = _xla_convolution(images.value, kernel.value, strides, pads)
    # An attack needs no kernel gradient. Under vmap over noisy kernels JAX cannot even trace one.
    learned = (kernel.value,) if kernel.perturbed else ()
    return outputs, (images.value, kernel.value, learned)


def _convolution_bwd(strides, pads, residuals, gradient):
    images, kernel, learned = residuals
    if strides == 1:
        images_gradient = _mirrored_convolution(gradient, kernel, pads)
    else:
        _, images_vjp = jax.vjp(
            lambda images: _space_to_depth_convolution(images, kernel, strides, pads), images
        )
        (images_gradient,) = images_vjp(gradient)
    if not learned:
        return images_gradient, jnp.zeros_like(kernel)
    return images_gradient, _kernel_gradient(images, gradient, kernel.shape[0], strides, pads)


convolution_with_pads.defvjp(_convolution_fwd, _convolution_bwd, symbolic_zeros=True)


def _mirrored_convolution(gradient: Outputs, kernel: Kernel, pads: Pads) -> Images:
    """Return the input gradient of a convolution of stride 1, given its output gradient."""
    # The barrier keeps XLA from folding the mirror back into its slow transposed convolution.
    mirrored = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    margin = kernel.shape[0] - 1
    pads = tuple((margin - low, margin - high) for low, high in pads)
    return _xla_convolution(gradient, mirrored, 1, pads)


def _kernel_gradient(
    images: Images, gradient: Outputs, size: int, strides: int, pads: Pads
) -> Kernel:
    """Return the kernel gradient of a convolution, given its output gradient.

    It is a convolution with the channels as the batch, the images as the channels and the output
    gradient as the kernel. Measured: chunks of images are up to ten times as fast as all images at
    once. In a loop over chunks only the layout of a forward convolution is fast. Without YNNPACK
    chunks of 16 are up to 1.7 times as fast as chunks of 4; larger ones gain nothing.
    """
    chunk_size = math.gcd(len(images), _IMAGES_PER_CHUNK)
    out_pads = tuple(
        (low, size + (out - 1) * strides - length - low)
        for length, out, (low, _) in zip(images.shape[1:3], gradient.shape[1:3], pads, strict=True)
    )

    def add(total: Kernel, chunk: tuple[Images, Outputs]) -> tuple[Kernel, None]:
        chunk_images, chunk_gradient = chunk
        # The barriers keep XLA from folding the transpositions back into its own form.
        kernel_gradient = lax.conv_general_dilated(
            lax.optimization_barrier(chunk_images.transpose(3, 1, 2, 0)),
            lax.optimization_barrier(chunk_gradient.transpose(1, 2, 0, 3)),
            (1, 1),
            out_pads,
            rhs_dilation=(strides, strides),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return total + kernel_gradient.transpose(1, 2, 0, 3), None

    chunks = jax.tree.map(
        lambda array: array.reshape(-1, chunk_size, *array.shape[1:]), (images, gradient)
    )
    zeros = jnp.zeros((size, size, images.shape[-1], gradient.shape[-1]), gradient.dtype)
    return lax.scan(add, zeros, chunks)[0]


def _space_to_depth_convolution(
    images: Images, kernel: Kernel, strides: int, pads: Pads
) -> Outputs:
    """Compute a strided convolution as a convolution of stride 1 on blocks of pixels.

    The input gradient then has sub-pixel form: each position in a block is a channel, and the
    output gradient is not dilated with zeros.
    """
    size = kernel.shape[0]
    blocked_size = -(-size // strides)
    image_pads = []
    for length, (low, high) in zip(images.shape[1:3], pads, strict=True):
        num_blocks = (length + low + high - size) // strides + blocked_size
        image_pads.append((low, num_blocks * strides - low - length, 0))
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *image_pads, (0, 0, 0)])
    margin = (0, blocked_size * strides - size)
    wide = jnp.pad(kernel, (margin, margin, *NO_PADS)).transpose(3, 0, 1, 2)
    blocked_kernel = _space_to_depth(wide, strides).transpose(1, 2, 3, 0)
    return convolution_with_pads(_space_to_depth(padded, strides), blocked_kernel, 1, NO_PADS)


def _space_to_depth(images: Images, block: int) -> Outputs:
    batch, height, width, channels = images.shape
    return (
        images.reshape(batch, height // block, block, width // block, block, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height // block, width // block, block**2 * channels)
    )


def pooled_convolution(
    images: Images,
    kernel: Kernel,
    bias: Float[Array, "out_channels"],
    activation: Activation,
    *,
    padding: Padding = "SAME",
) -> Outputs:
    """Compute a convolution of stride 1, add the bias, apply the activation and a 2x2 max pool.

    An odd last row or column is dropped. Elements of a window that share the maximum also share its
    gradient equally.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[size, size, in_channels, out_channels]`.
      bias: of the convolution.
      activation: static.
      padding: static.
    """
    size, _, *channels = kernel.shape
    # Measured: forward and backward are 1.2 to 3.6 times as fast for 5x5 kernels with 3 to 12
    # channels. They are slower from 32 channels on, and for 3x3, where the wider kernel has more
    # zeros.
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and size >= 5 and min(channels) < 16:
        outputs = _convolution_windows(images, kernel, pads_of(images, size, 1, padding))
    else:
        outputs = _as_windows(convolution(images, kernel, padding=padding))
    selected = _select_maximum(outputs, bias, activation)
    if on_cpu:  # without it XLA would fuse what follows into the slow loop of the maximum
        selected = lax.optimization_barrier(selected)
    return ACTIVATIONS[activation](selected + bias)


def _convolution_windows(images: Images, kernel: Kernel, pads: Pads) -> Windows:
    """Return the outputs of a convolution of stride 1 as the windows of a 2x2 max pool.

    The windows are the channels of a convolution of stride 2. Its kernel is one pixel wider and
    contains the given kernel at each of the four positions.
    """
    shifts = [((row, 1 - row), (column, 1 - column)) for row in range(2) for column in range(2)]
    wide = jnp.stack([jnp.pad(kernel, (*shift, *NO_PADS)) for shift in shifts], axis=3)
    outputs = convolution_with_pads(images, wide.reshape(*wide.shape[:3], -1), 2, pads)
    return outputs.reshape(*outputs.shape[:3], 4, -1)


def _as_windows(images: Outputs) -> Windows:
    """Return the 2x2 windows without a transposition; drop an odd last row and column."""
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _select_maximum(
    windows: Windows, bias: Float[Array, "out_channels"], activation: Activation
) -> Outputs:
    """Return the element of each window whose activation, with the bias added, is the largest.

    ReLU only rises; GELU falls and then rises. So this is the largest or the smallest element, and
    the activation is computed for a quarter or a half of the elements.
    """
    axes, activate = _window_axes(windows), ACTIVATIONS[activation]
    fixed, bias = lax.stop_gradient((windows, bias))
    selected = fixed.max(axes)
    if activation == "gelu":
        smallest = fixed.min(axes)
        smaller_wins = activate(selected + bias) < activate(smallest + bias)
        selected = jnp.where(smaller_wins, smallest, selected)
    return _with_shared_gradient(windows, selected)


@jax.custom_vjp
def _with_shared_gradient(windows: Windows, selected: Outputs) -> Outputs:
    """Return `selected`; the elements of the window that equal it share its gradient equally."""
    return selected


def _window_axes(windows: Windows) -> tuple[int, ...]:
    return (3,) if windows.ndim == 5 else (2, 4)


def _shared_gradient_fwd(windows, selected):
    return selected, (windows, selected)


def _shared_gradient_bwd(residuals, gradient):
    windows, selected = residuals
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
