"""Convolutions and max pools with gradients that are fast on a CPU, and compile on a TPU.

An attack differentiates the model with respect to its images in every step. For the input gradient
of a convolution that autodiff derives, XLA's CPU backend falls back to generic code inside loops:
it took 1.6 to 18 times as long as here. In training the kernel gradient over many images is slow as
well. `convolution` replaces both gradients on a CPU. On a TPU it replaces the kernel gradient for
few input channels, which XLA may take many minutes to compile. Else it calls XLA's convolution.
"""

import itertools
import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxadv.core.devices import platform
from jaxadv.core.types import Images

Padding = Literal["SAME", "VALID"]
Pair = tuple[int, int]
Pads = tuple[Pair, ...]
Kernel = Float[Array, "kernel_height kernel_width in_channels out_channels"]
Outputs = Float[Array, "batch out_height out_width out_channels"]

NO_PADS: Pads = ((0, 0), (0, 0))
_IMAGES_PER_CHUNK = 16  # of the kernel gradient
# Measured: convolutions of fewer input channels are hardly faster, so small groups are merged.
_MIN_CHANNELS = 32
# A TPU's kernel gradient of fewer input channels has channels of zeros up to this number. Measured
# for a 5x5 kernel and 1,024 images: XLA compiles it in 13 s for 12 channels and in 51 s for 4; for
# 3 it was not done after nine minutes. A TPU pads channels to 128 anyway.
_MIN_TPU_CHANNELS = 12


def convolution(
    images: Images, kernel: Kernel, *, strides: int = 1, padding: Padding | int = "SAME"
) -> Outputs:
    """Convolve NHWC images with an HWIO kernel, as `lax.conv_general_dilated` does.

    The platform is read when the function is traced. Differentiable once, in reverse mode.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[size, size, in_channels, out_channels]`.
      strides: stride in both directions; static.
      padding: `SAME`, `VALID`, or the number of zeros on each side as in PyTorch; static.
    """
    size = kernel.shape[0]
    pads = pads_of(images, size, strides, padding)
    if platform() == "tpu" and images.shape[-1] < _MIN_TPU_CHANNELS:
        return _convolution_of_few_channels(images, kernel, (strides, strides), pads)
    if platform() != "cpu":
        return _xla_convolution(images, kernel, (strides, strides), pads)
    if size == 1 and pads == NO_PADS:
        return images[:, ::strides, ::strides] @ kernel[0, 0]
    return convolution_with_pads(images, kernel, (strides, strides), pads)


def pads_of(images: Images, size: int, strides: int, padding: Padding | int) -> Pads:
    """Return the number of zeros before and after the pixels, for height and width."""
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    return tuple(lax.padtype_to_pads(images.shape[1:3], (size, size), (strides, strides), padding))


def _xla_convolution(
    images: Images,
    kernel: Kernel,
    strides: Pair,
    pads: Pads,
    dilation: Pair = (1, 1),
    precision: Any = None,
) -> Outputs:
    # A negative padding is cut off here: XLA's CPU backend reads beyond the images where a negative
    # padding before the pixels meets a positive one behind them (openxla/xla#48713).
    if min(min(pads)) < 0:
        starts, ends = ([max(-pad, 0) for pad in side] for side in zip(*pads, strict=True))
        images = images[
            :, starts[0] : images.shape[1] - ends[0], starts[1] : images.shape[2] - ends[1]
        ]
        pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution_of_few_channels(
    images: Images, kernel: Kernel, strides: Pair, pads: Pads
) -> Outputs:
    """Run XLA's convolution; its kernel gradient is that of images with channels of zeros."""
    return _xla_convolution(images, kernel, strides, pads)


def _few_channels_fwd(images, kernel, strides, pads):
    # Attacks need no kernel gradient, which JAX cannot batch along two axes, that of the examples
    # and that of several cotangents. Residuals are arrays: the structure says which are needed.
    needs_kernel = jnp.zeros(()) if kernel.perturbed else None
    outputs = _xla_convolution(images.value, kernel.value, strides, pads)
    return outputs, (images.value, kernel.value, needs_kernel)


def _few_channels_bwd(strides, pads, residuals, gradient):
    images, kernel, needs_kernel = residuals
    _, images_vjp = jax.vjp(lambda x: _xla_convolution(x, kernel, strides, pads), images)
    if needs_kernel is None:
        return *images_vjp(gradient), None
    channels = images.shape[-1]
    missing = (0, _MIN_TPU_CHANNELS - channels)
    # The barrier keeps XLA from removing the zeros.
    wide = lax.optimization_barrier(jnp.pad(images, (*NO_PADS, (0, 0), missing)))
    _, kernel_vjp = jax.vjp(
        lambda kernel: _xla_convolution(wide, kernel, strides, pads),
        jnp.pad(kernel, (*NO_PADS, missing, (0, 0))),
    )
    return *images_vjp(gradient), kernel_vjp(gradient)[0][:, :, :channels]


_convolution_of_few_channels.defvjp(_few_channels_fwd, _few_channels_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolution_with_pads(
    images: Images,
    kernel: Kernel,
    strides: Pair,
    pads: Pads,
    dilation: Pair = (1, 1),
    precision: Any = None,
) -> Outputs:
    """Run XLA's convolution; its input gradient consists of ordinary forward convolutions.

    Differentiable in reverse mode. Derivatives of its gradients are those of XLA, which are slower.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[kernel_height, kernel_width, in_channels, out_channels]`.
      strides: for height and width; static.
      pads: zeros before and after the pixels, for height and width; static.
      dilation: of the kernel, for height and width; 1 if any stride is larger than 1; static.
      precision: as in `lax.conv_general_dilated`; static.
    """
    return _xla_convolution(images, kernel, strides, pads, dilation, precision)


def _convolution_fwd(images, kernel, strides, pads, dilation, precision):
    outputs = _xla_convolution(images.value, kernel.value, strides, pads, dilation, precision)
    # An attack needs no kernel gradient. Under vmap over noisy kernels JAX cannot even trace one.
    learned = (kernel.value,) if kernel.perturbed else ()
    return outputs, (images.value, kernel.value, learned)


def _convolution_bwd(strides, pads, dilation, precision, residuals, gradient):
    images, kernel, learned = residuals
    if strides == (1, 1):
        images_gradient = _mirrored_convolution(gradient, kernel, pads, dilation, precision)
    else:
        _, images_vjp = jax.vjp(
            lambda images: _space_to_depth_convolution(images, kernel, strides, pads, precision),
            images,
        )
        (images_gradient,) = images_vjp(gradient)
    if not learned:
        return images_gradient, jnp.zeros_like(kernel)
    if dilation != (1, 1):
        _, kernel_vjp = jax.vjp(
            lambda kernel: _xla_convolution(images, kernel, strides, pads, dilation, precision),
            kernel,
        )
        return images_gradient, *kernel_vjp(gradient)
    kernel_gradient = _kernel_gradient(images, gradient, kernel.shape[:2], strides, pads, precision)
    return images_gradient, kernel_gradient


convolution_with_pads.defvjp(_convolution_fwd, _convolution_bwd, symbolic_zeros=True)


def _mirrored_convolution(
    gradient: Outputs, kernel: Kernel, pads: Pads, dilation: Pair, precision: Any
) -> Images:
    """Return the input gradient of a convolution of stride 1, given its output gradient."""
    # The barrier keeps XLA from folding the mirror back into its slow transposed convolution.
    mirrored = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    margins = [step * (size - 1) for size, step in zip(kernel.shape[:2], dilation, strict=True)]
    pads = tuple(
        (margin - low, margin - high) for margin, (low, high) in zip(margins, pads, strict=True)
    )
    return _xla_convolution(gradient, mirrored, (1, 1), pads, dilation, precision)


def _kernel_gradient(
    images: Images, gradient: Outputs, sizes: Pair, strides: Pair, pads: Pads, precision: Any
) -> Kernel:
    """Return the kernel gradient of a convolution, given its output gradient.

    It is a convolution with the channels as the batch, the images as the channels and the output
    gradient as the kernel. Measured: chunks of images are up to ten times as fast as all images at
    once. In a loop over chunks only the layout of a forward convolution is fast. Without YNNPACK
    chunks of 16 are up to 1.7 times as fast as chunks of 4; larger ones gain nothing.
    """
    chunk_size = math.gcd(len(images), _IMAGES_PER_CHUNK)
    out_pads = tuple(
        (low, size + (out - 1) * stride - length - low)
        for length, out, size, stride, (low, _) in zip(
            images.shape[1:3], gradient.shape[1:3], sizes, strides, pads, strict=True
        )
    )

    def add(total: Kernel, chunk: tuple[Images, Outputs]) -> tuple[Kernel, None]:
        chunk_images, chunk_gradient = chunk
        # The barriers keep XLA from folding the transpositions back into its own form.
        kernel_gradient = _xla_convolution(
            lax.optimization_barrier(chunk_images.transpose(3, 1, 2, 0)),
            lax.optimization_barrier(chunk_gradient.transpose(1, 2, 0, 3)),
            (1, 1),
            out_pads,
            strides,
            precision,
        )
        return total + kernel_gradient.transpose(1, 2, 0, 3), None

    chunks = jax.tree.map(
        lambda array: array.reshape(-1, chunk_size, *array.shape[1:]), (images, gradient)
    )
    zeros = jnp.zeros((*sizes, images.shape[-1], gradient.shape[-1]), gradient.dtype)
    return lax.scan(add, zeros, chunks)[0]


def _space_to_depth_convolution(
    images: Images, kernel: Kernel, strides: Pair, pads: Pads, precision: Any
) -> Outputs:
    """Compute a strided convolution as a convolution of stride 1 on blocks of pixels.

    The input gradient then has sub-pixel form: each position in a block is a channel, and the
    output gradient is not dilated with zeros.
    """
    image_pads, margins = [], []
    for length, size, stride, (low, high) in zip(
        images.shape[1:3], kernel.shape[:2], strides, pads, strict=True
    ):
        blocked_size = -(-size // stride)
        num_blocks = (length + low + high - size) // stride + blocked_size
        image_pads.append((low, num_blocks * stride - low - length, 0))
        margins.append((0, blocked_size * stride - size))
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *image_pads, (0, 0, 0)])
    wide = jnp.pad(kernel, (*margins, *NO_PADS)).transpose(3, 0, 1, 2)
    blocked_kernel = _space_to_depth(wide, strides).transpose(1, 2, 3, 0)
    return convolution_with_pads(
        _space_to_depth(padded, strides), blocked_kernel, (1, 1), NO_PADS, (1, 1), precision
    )


def _space_to_depth(images: Images, block: Pair) -> Outputs:
    batch, height, width, channels = images.shape
    rows, columns = block
    return (
        images.reshape(batch, height // rows, rows, width // columns, columns, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height // rows, width // columns, rows * columns * channels)
    )


def grouped_convolution(
    images: Images,
    kernel: Kernel,
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    num_groups: int,
    precision: Any = None,
) -> Outputs:
    """Compute a grouped convolution, with all gradients in forms that are fast on a CPU.

    With one channel per group it is a sum of shifted images. Else it is computed by dense
    convolutions, each of the fewest groups that have 32 input channels together. Differentiable
    once, in reverse mode.

    Args:
      images: `[batch, height, width, in_channels]`.
      kernel: `[kernel_height, kernel_width, in_channels / num_groups, out_channels]`.
      strides: for height and width; static.
      pads: zeros before and after the pixels, for height and width; static.
      dilation: of the kernel, for height and width; 1 if any stride is larger than 1, unless there
        is one channel per group; static.
      num_groups: number of groups; static.
      precision: as in `lax.conv_general_dilated`; static. Sums of shifted images ignore it.
    """
    *sizes, group_size, out_channels = kernel.shape
    if group_size == 1:
        repeated = jnp.repeat(images, out_channels // num_groups, axis=-1)
        return _depthwise_convolution(repeated, kernel, strides, pads, dilation)
    divisors = (count for count in range(1, num_groups + 1) if num_groups % count == 0)
    per_part = next((n for n in divisors if n * group_size >= _MIN_CHANNELS), num_groups)
    num_parts = num_groups // per_part
    blocks = kernel.reshape(*sizes, 1, group_size, num_groups, out_channels // num_groups)
    own_group = jnp.tile(jnp.eye(per_part, dtype=bool), num_parts)[:, None, :, None]
    dense = jnp.where(own_group, blocks, 0).reshape(*sizes, per_part * group_size, out_channels)
    parts = [jnp.split(array, num_parts, axis=-1) for array in (images, dense)]
    outputs = [
        convolution_with_pads(*part, strides, pads, dilation, precision)
        for part in zip(*parts, strict=True)
    ]
    return jnp.concatenate(outputs, axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise_convolution(
    images: Images, kernel: Kernel, strides: Pair, pads: Pads, dilation: Pair
) -> Outputs:
    """Sum shifted images. XLA's depthwise convolution took 12 to 35 times as long on a CPU."""
    return _sum_of_shifts(images, kernel, strides, pads, dilation)


def _sum_of_shifts(
    images: Images,
    kernel: Kernel,
    strides: Pair,
    pads: Pads,
    dilation: Pair,
    image_dilation: Pair = (1, 1),
) -> Outputs:
    edges = [(low, high, step - 1) for (low, high), step in zip(pads, image_dilation, strict=True)]
    # Sums of half precision are accumulated in single precision, as in XLA's convolution.
    precise = jnp.promote_types(images.dtype, jnp.float32)
    images, kernel, dtype = images.astype(precise), kernel.astype(precise), images.dtype
    padded = lax.pad(images, jnp.zeros((), precise), [(0, 0, 0), *edges, (0, 0, 0)])
    rows, columns = (
        range(0, step * size, step) for size, step in zip(kernel.shape, dilation, strict=False)
    )
    height, width = padded.shape[1] - rows[-1], padded.shape[2] - columns[-1]
    shifted = (
        padded[:, row : row + height : strides[0], column : column + width : strides[1]]
        * kernel[i, j, 0]
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    )
    return sum(shifted, start=jnp.zeros((), precise)).astype(dtype)


def _depthwise_fwd(images, kernel, strides, pads, dilation):
    outputs = _sum_of_shifts(images.value, kernel.value, strides, pads, dilation)
    learned = (images.value,) if kernel.perturbed else ()
    no_images = images.value[:0]  # their shape
    return outputs, (no_images, kernel.value, learned)


def _depthwise_bwd(strides, pads, dilation, residuals, gradient):
    no_images, kernel, learned = residuals
    lengths, sizes = zip(no_images.shape[1:3], gradient.shape[1:3], strict=True), kernel.shape[:2]
    mirrored_pads = []
    for (length, out), size, stride, step, (low, _) in zip(
        lengths, sizes, strides, dilation, pads, strict=True
    ):
        mirrored_pads.append((step * (size - 1) - low, length + low - (out - 1) * stride - 1))
    images_gradient = _sum_of_shifts(
        gradient, kernel[::-1, ::-1], (1, 1), tuple(mirrored_pads), dilation, strides
    )
    if not learned:
        return images_gradient, jnp.zeros_like(kernel)
    _, kernel_vjp = jax.vjp(
        lambda kernel: _sum_of_shifts(learned[0], kernel, strides, pads, dilation), kernel
    )
    return images_gradient, *kernel_vjp(gradient)


_depthwise_convolution.defvjp(_depthwise_fwd, _depthwise_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(
    images: Float[Array, "*shape"], window: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> Float[Array, "*pooled_shape"]:
    """Return the maximum of each window, as `lax.reduce_window` does.

    The first maximum of a window gets its gradient, as in XLA, whose gradient took 3 to 8 times as
    long on a CPU. Differentiable once, in reverse mode.

    Args:
      images: with any axes.
      window: size along each axis; static.
      strides: along each axis; static.
      pads: number of elements before and after each axis, not negative; static.
    """
    return lax.reduce_window(images, -jnp.inf, lax.max, window, strides, pads)


def _max_pool_fwd(images, window, strides, pads):
    maximum = max_pool(images, window, strides, pads)
    return maximum, (images, maximum)


def _max_pool_bwd(window, strides, pads, residuals, gradient):
    images, maximum = residuals
    padded = lax.pad(
        images, jnp.array(-jnp.inf, images.dtype), [(low, high, 0) for low, high in pads]
    )
    offsets = list(itertools.product(*map(range, window)))
    first = jnp.full(maximum.shape, -1)  # number of the first maximum of each window
    for number, offset in reversed(list(enumerate(offsets))):
        ends = [
            start + (out - 1) * stride + 1
            for start, out, stride in zip(offset, maximum.shape, strides, strict=True)
        ]
        # Not `==`, so that a NaN gets the gradient.
        is_maximum = ~(lax.slice(padded, offset, ends, strides) < maximum)
        first = jnp.where(is_maximum, number, first)
    # Pixels at the same position in blocks of `strides` pixels belong to windows at the same
    # offsets: their gradient is a sum of shifted output gradients.
    lengths = [-(-n // stride) for n, stride in zip(padded.shape, strides, strict=True)]
    reach = [(size - 1) // stride for size, stride in zip(window, strides, strict=True)]
    edges = [(n, m - k, 0) for n, m, k in zip(reach, lengths, maximum.shape, strict=True)]
    first = lax.pad(lax.optimization_barrier(first), jnp.array(-1, first.dtype), edges)
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), edges)
    positions = []
    for position in itertools.product(*map(range, strides)):
        total = jnp.zeros(lengths, gradient.dtype)
        for number, offset in enumerate(offsets):
            blocks, remainders = zip(*map(divmod, offset, strides), strict=True)
            if remainders == position:
                starts = [n - block for n, block in zip(reach, blocks, strict=True)]
                ends = [start + length for start, length in zip(starts, lengths, strict=True)]
                is_first = lax.slice(first, starts, ends) == number
                total += jnp.where(is_first, lax.slice(gradient, starts, ends), 0)
        positions.append(total)
    order = [axis for i in range(images.ndim) for axis in (images.ndim + i, i)]
    spread = jnp.stack(positions).reshape(*strides, *lengths).transpose(order)
    spread = spread.reshape([n * stride for n, stride in zip(lengths, strides, strict=True)])
    ends = [low + n for (low, _), n in zip(pads, images.shape, strict=True)]
    return (lax.slice(spread, [low for low, _ in pads], ends),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
