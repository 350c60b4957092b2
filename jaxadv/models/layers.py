"""Layers shared by the models: a convolution and a pooling that are fast on CPU too.

An attack differentiates the model with respect to its images, over and over, inside a loop.
There XLA's CPU backend is slow at two things: the input gradient that autodiff makes of a
convolution (inside a loop it falls to generic code), and convolutions of few channels (they
fill no vector register) with a max pool after them. In training the kernel gradient of many images
is slow as well. `convolution` and `pooled_convolution` rewrite all three; on other backends they
leave the convolution to XLA.
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

from jaxadv.types import Images

Activation = Literal["relu", "gelu"]
Padding = Literal["SAME", "VALID"]
Pads = tuple[tuple[int, int], ...]
Outputs = Float[Array, "batch out_height out_width out_channels"]
Kernel = Float[Array, "size size in_channels out_channels"]
# The windows of a max pool: whole, or where the pixels lie.
Windows = (
    Float[Array, "batch rows columns 4 out_channels"]
    | Float[Array, "batch rows 2 columns 2 out_channels"]
)

_NO_PADS: Pads = ((0, 0), (0, 0))
_FEW = 4  # images whose share of a kernel's gradient is taken at a time


def gelu(inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU (Hendrycks & Gimpel 2016, equation 2)."""
    # By erf: Flax takes erfc, for digits far below those of the sum, and twice the time on a CPU.
    return 0.5 * inputs * (1 + lax.erf(inputs * math.sqrt(0.5)))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"relu": nn.relu, "gelu": gelu}


class Conv(nn.Module):
    """Convolution with a bias; every convolution of every model is one of these.

    The kernel starts He normal (He et al. 2015), the bias at zero. It computes in the type of its
    input, whatever that of its parameters.

    Attributes:
      features: number of output channels.
      size: side of the square kernel.
      strides: step between two outputs, in both directions.
      padding: `SAME` or `VALID`.
      pooled: name of an activation after which comes a 2x2 max pool, at stride 1; None: neither of
        them.
    """

    features: int
    size: int
    strides: int = 1
    padding: Padding = "SAME"
    pooled: Activation | None = None

    @nn.compact
    def __call__(self, images: Images) -> Outputs:
        """Maps `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        kernel, bias = kernel.astype(images.dtype), bias.astype(images.dtype)
        if self.pooled:
            assert self.strides == 1, "a pooled convolution has a stride of 1"
            return pooled_convolution(images, kernel, bias, self.pooled, padding=self.padding)
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
    size = kernel.shape[0]
    pads = _pads(images, size, strides, padding)
    if jax.default_backend() != "cpu":
        return _xla_convolution(images, kernel, strides, pads)
    if size == 1:
        return images[:, ::strides, ::strides] @ kernel[0, 0]
    return _convolution(images, kernel, strides, pads)


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
        outputs = _windows(images, kernel, _pads(images, size, 1, padding))
    else:
        outputs = _as_windows(convolution(images, kernel, padding=padding))
    picked = _greatest_of_windows(outputs, bias, activation)
    if on_cpu:  # XLA would fuse what follows into the slow loop of the maximum
        picked = lax.optimization_barrier(picked)
    return ACTIVATIONS[activation](picked + bias)


def _pads(images: Images, size: int, strides: int, padding: Padding) -> Pads:
    return tuple(lax.padtype_to_pads(images.shape[1:3], (size, size), (strides, strides), padding))


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
        _, images_vjp = jax.vjp(lambda images: _phases(images, kernel, strides, pads), images)
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


def _windows(images: Images, kernel: Kernel, pads: Pads) -> Windows:
    """Returns the outputs of a convolution of stride 1 as the windows of a 2x2 max pool.

    They are the channels of a convolution of stride 2, whose kernel is wider by one pixel and has
    the kernel at each of its four places.
    """
    shifts = [((row, 1 - row), (column, 1 - column)) for row in range(2) for column in range(2)]
    wide = jnp.stack([jnp.pad(kernel, (*shift, *_NO_PADS)) for shift in shifts], axis=3)
    outputs = _convolution(images, wide.reshape(*wide.shape[:3], -1), 2, pads)
    return outputs.reshape(*outputs.shape[:3], 4, -1)


def _phases(images: Images, kernel: Kernel, strides: int, pads: Pads) -> Outputs:
    """The same convolution on blocks of pixels: space to depth, then one of stride 1.

    It puts the input gradient of a strided convolution in sub-pixel form: each phase of the pixels
    is a channel, and no zeros stand between those of the gradient.
    """
    size = kernel.shape[0]
    blocked_size = -(-size // strides)
    image_pads = []
    for length, (low, high) in zip(images.shape[1:3], pads, strict=True):
        num_blocks = (length + low + high - size) // strides + blocked_size
        image_pads.append((low, num_blocks * strides - low - length, 0))
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *image_pads, (0, 0, 0)])
    margin = (0, blocked_size * strides - size)
    wide = jnp.pad(kernel, (margin, margin, *_NO_PADS)).transpose(3, 0, 1, 2)
    blocked_kernel = _space_to_depth(wide, strides).transpose(1, 2, 3, 0)
    return _convolution(_space_to_depth(padded, strides), blocked_kernel, 1, _NO_PADS)


def _space_to_depth(images: Images, block: int) -> Outputs:
    batch, height, width, channels = images.shape
    return (
        images.reshape(batch, height // block, block, width // block, block, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, height // block, width // block, block**2 * channels)
    )


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
