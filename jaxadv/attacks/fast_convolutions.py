"""Fast forms of the convolutions and max pools of any model, on a CPU.

XLA's CPU backend computes the input gradients of convolutions and max pools slowly inside loops,
and attacks are loops over input gradients. A traced model is therefore rewritten: its convolutions
and max pools become those of `jaxadv.core.convolution`. Logits and gradients are the same up to
rounding. Operations with a custom derivative are left alone.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Array

from jaxadv.core.convolution import (
    NO_PADS,
    convolution_with_pads,
    grouped_convolution,
    max_pool,
)
from jaxadv.core.devices import platform

# Primitives whose inner operations are rewritten: jitted functions, rematerialisation and loops.
_WITH_OPERATIONS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "scan", "while", "cond")
# Larger windows, kernels and numbers of groups would make programs too long.
_MAX_WINDOW, _MAX_DEPTHWISE_KERNEL, _MAX_GROUPED_CHANNELS = 25, 64, 2048

# Part of JAX's own cache keys, so that compiled attacks are traced again when it changes.
_is_on = jax.make_user_context(default_value=True)


def plain_convolutions() -> AbstractContextManager[None]:
    """Return a context in which attacks leave the convolutions and max pools of models alone.

    It matters on a CPU only, where attacks replace them by faster forms.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxadv.attacks import pgd
      >>> from jaxadv.attacks.fast_convolutions import plain_convolutions
      >>> def logits_fn(key, images):
      ...     kernel = jnp.ones((3, 3, 1, 2))
      ...     maps = jax.lax.conv_general_dilated(
      ...         images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      ...     )
      ...     return maps.sum((1, 2))
      >>> images, labels = jnp.full((2, 8, 8, 1), 0.5), jnp.array([0, 1])
      >>> with plain_convolutions():
      ...     adversarial = pgd(
      ...         jax.random.key(0), logits_fn, images, labels, eps=0.1, step_size=0.05, num_steps=2
      ...     )
      >>> adversarial.shape
      (2, 8, 8, 1)
    """
    return _is_on(False)


def uses_fast_convolutions() -> bool:
    """Return whether models that are traced now get fast convolutions and max pools."""
    return _is_on.value and platform() == "cpu"


def with_fast_convolutions(operations: ClosedJaxpr) -> ClosedJaxpr:
    """Replace convolutions and max pools by forms whose input gradients are fast on a CPU.

    Known are 2-D convolutions with any layout, strides, padding, kernel dilation and number of
    groups, except with strides and dilation together, and max pools of up to 25 elements.
    On other backends, and in `plain_convolutions`, nothing is replaced. The result is
    differentiable once, in reverse mode.
    """
    if not uses_fast_convolutions():
        return operations
    return ClosedJaxpr(_with_fast_equations(operations.jaxpr), operations.consts)


def _with_fast_equations(jaxpr: Jaxpr) -> Jaxpr:
    return jaxpr.replace(eqns=[_fast_equation(equation) for equation in jaxpr.eqns])


def _fast_equation(equation: JaxprEqn) -> JaxprEqn:
    name = equation.primitive.name
    if name in _WITH_OPERATIONS:
        params = {key: _with_fast_operations(value) for key, value in equation.params.items()}
        return equation.replace(params=params)
    if name not in _FAST_FORMS:
        return equation
    try:
        fast_form = _FAST_FORMS[name](equation)
        if fast_form is None:
            return equation
        with jax.disable_jit(False):
            traced = jax.make_jaxpr(jax.jit(fast_form))(*_avals(equation.invars))
            jax.make_jaxpr(partial(_input_gradient, fast_form))(*_avals(equation.invars))
    except Exception:  # in a case that no rule foresees, the operation stays as it is
        return equation
    (call,) = traced.eqns
    if traced.out_avals != _avals(equation.outvars):
        return equation
    return equation.replace(primitive=call.primitive, params=call.params)


def _input_gradient(fast_form: Callable, images: Array, *kernel: Array) -> Array:
    outputs, pull = jax.vjp(lambda images: fast_form(images, *kernel), images)
    return pull(jnp.ones_like(outputs))[0]


def _with_fast_operations(parameter: Any) -> Any:
    if isinstance(parameter, ClosedJaxpr):
        return with_fast_convolutions(parameter)
    if isinstance(parameter, Jaxpr):
        return _with_fast_equations(parameter)
    if isinstance(parameter, tuple) and any(isinstance(p, ClosedJaxpr) for p in parameter):
        return tuple(map(_with_fast_operations, parameter))
    return parameter


def _fast_convolution(equation: JaxprEqn) -> Callable[[Array, Array], Array] | None:
    """Return a function of the images and the kernel, or None if no fast form is known."""
    params = equation.params
    images, kernel, outputs = _avals((*equation.invars, *equation.outvars))
    is_known = (
        images.ndim == 4
        and tuple(params["lhs_dilation"]) == (1, 1)
        and params["batch_group_count"] == 1
        and images.dtype == kernel.dtype == outputs.dtype
        and jnp.issubdtype(images.dtype, jnp.floating)
        and images.size * kernel.size * outputs.size > 0
    )
    if not is_known:
        return None
    strides, dilation = tuple(params["window_strides"]), tuple(params["rhs_dilation"])
    pads, precision = tuple(map(tuple, params["padding"])), params["precision"]
    num_groups = params["feature_group_count"]
    to_nhwc, to_hwio, from_nhwc = _layouts(params["dimension_numbers"])
    *sizes, group_size, _ = (kernel.shape[axis] for axis in to_hwio)
    if num_groups > 1 and group_size == 1:
        is_fast = math.prod(sizes) <= _MAX_DEPTHWISE_KERNEL
    else:
        is_fast = 1 in (max(strides), max(dilation))
        is_fast &= num_groups == 1 or num_groups * group_size <= _MAX_GROUPED_CHANNELS
    if not is_fast:
        return None

    def convolve(images: Array, kernel: Array) -> Array:
        images, kernel = images.transpose(to_nhwc), kernel.transpose(to_hwio)
        if num_groups > 1:
            outputs = grouped_convolution(
                images, kernel, strides, pads, dilation, num_groups, precision
            )
        elif sizes == [1, 1] and pads == NO_PADS:
            strided = images[:, :: strides[0], :: strides[1]]
            outputs = jnp.matmul(strided, kernel[0, 0], precision=precision)
        else:
            outputs = convolution_with_pads(images, kernel, strides, pads, dilation, precision)
        return outputs.transpose(from_nhwc)

    return convolve


def _avals(variables: Iterable[Any]) -> list[Any]:
    return [variable.aval for variable in variables]


def _layouts(dimensions: Any) -> tuple[tuple[int, ...], ...]:
    """Return the transpositions of images to NHWC, of kernels to HWIO, and of outputs from NHWC."""
    batch, channels, *space = dimensions.lhs_spec
    out_channels, in_channels, *kernel_space = dimensions.rhs_spec
    out_batch, out_features, *out_space = dimensions.out_spec
    from_nhwc = np.argsort([out_batch, *out_space, out_features]).tolist()
    return (
        (batch, *space, channels),
        (*kernel_space, in_channels, out_channels),
        tuple(from_nhwc),
    )


def _fast_max_pool(equation: JaxprEqn) -> Callable[[Array], Array] | None:
    """Return a function of the images, or None if no fast form is known."""
    params, (images, outputs) = equation.params, _avals((*equation.invars, *equation.outvars))
    window, strides = tuple(params["window_dimensions"]), tuple(params["window_strides"])
    pads = tuple(map(tuple, params["padding"]))
    is_known = (
        set(params["base_dilation"]) == set(params["window_dilation"]) == {1}
        and min(map(min, pads)) >= 0
        and jnp.issubdtype(images.dtype, jnp.floating)
        and outputs.size > 0
    )
    is_fast = max(math.prod(window), math.prod(strides)) <= _MAX_WINDOW
    return (
        (lambda images: max_pool(images, window, strides, pads)) if is_known and is_fast else None
    )


_FAST_FORMS: dict[str, Callable[[JaxprEqn], Callable | None]] = {
    "conv_general_dilated": _fast_convolution,
    "reduce_window_max": _fast_max_pool,
}
