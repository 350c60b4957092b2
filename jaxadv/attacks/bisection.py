"""Bisection, for thresholds of batches of examples."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Threshold = Float[Array, "batch *ones"]


def bisect(
    holds: Callable[[Threshold], Bool[Array, "batch *ones"]], low: Threshold, high: Threshold
) -> tuple[Threshold, Threshold]:
    """Find the thresholds between which a condition ceases to hold.

    Non-negative floats are ordered like the integers of their bit patterns, so that halving the
    distance of these integers ends at neighbouring floats, whatever their scale.

    Args:
      holds: a condition that, once false, is false for all larger thresholds.
      low: thresholds where it holds, 0 or more.
      high: thresholds where it does not hold.

    Returns:
      The largest thresholds where it holds, and the next larger floats.
    """
    dtype = low.dtype
    num_bits = 8 * dtype.itemsize
    integer = jnp.dtype(f"int{num_bits}")

    def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        is_low = holds(lax.bitcast_convert_type(middle, dtype))
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    ends = tuple(lax.bitcast_convert_type(end, integer) for end in (low, high))
    low, high = lax.fori_loop(0, num_bits - 1, halve, ends)
    return lax.bitcast_convert_type(low, dtype), lax.bitcast_convert_type(high, dtype)
