"""Backward pass differentiable approximation (BPDA; Athalye et al., 2018)."""

from collections.abc import Callable

import jax
from jaxtyping import Array


def identity(array: Array) -> Array:
    """Return the array: the approximation of operations that hardly change it."""
    return array


def bpda(
    fn: Callable[[Array], Array], backward: Callable[[Array], Array] = identity
) -> Callable[[Array], Array]:
    """Return a function with the values of one function and the derivative of another.

    An operation that rounds, quantises or compresses its input has a derivative of zero, which
    hides the gradient of the whole model from attacks. Replace it in the model by
    `bpda(operation)`, and attack the model as usual. The predictions stay the same.

    Args:
      fn: JAX function of one array.
      backward: differentiable function that is close to `fn`, with a result of the same shape and
        type; by default the identity (the straight-through estimator).

    Returns:
      The function. Its derivative is that of `backward`, at the same input.

    Raises:
      ValueError: at the first derivative, if the results differ in shape or type.

    >>> import jax.numpy as jnp
    >>> quantise = bpda(lambda images: jnp.round(images * 8) / 8)
    >>> quantise(jnp.array([0.3, 0.9]))
    Array([0.25 , 0.875], dtype=float32)
    >>> jax.grad(lambda images: quantise(images).sum())(jnp.array([0.3, 0.9]))
    Array([1., 1.], dtype=float32)
    """

    @jax.custom_jvp
    def approximated(array: Array) -> Array:
        return fn(array)

    @approximated.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        result = fn(*primals)
        approximation, tangent = jax.jvp(backward, primals, tangents)
        if (result.shape, result.dtype) != (approximation.shape, approximation.dtype):
            raise ValueError(
                f"backward returns {approximation.dtype} of shape {approximation.shape}, but fn "
                f"{result.dtype} of shape {result.shape}: pass a backward function whose results "
                "have the same shape and type"
            )
        return result, tangent

    # Otherwise a snapshot of a model would take it for an unchanging operation of this package.
    approximated.__module__ = "__main__"
    return approximated
