"""Random numbers as many models and attacks need them, several times as fast on a CPU.

Noise is most of what a stochastic model or a random search direction costs on a CPU, where JAX
rolls up the rounds of its generator in a loop that XLA does not vectorise. Here the same generator
is written out, and both words of each of its blocks are used.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt32

from jaxadv.types import PRNGKey

# Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

_ONE = np.uint32(0x3F800000)  # bits of the float 1
_SIGN = np.uint32(0x80000000)


@partial(jax.jit, static_argnames="shape")
def normal(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns float32 draws from N(0, 1), by the transform of Box & Muller (1958)."""
    size = math.prod(shape)
    # Behind a barrier, XLA draws the words once, not for each number and term that needs one, and
    # the concatenation keeps it from running along the few channels of an image.
    first, second = lax.optimization_barrier(jnp.stack(_words(key, (size + 1) // 2)))
    radius = jnp.sqrt(-jnp.log(2 - _one_to_two(first)))  # that of the pair over sqrt(2)
    # The angle is a sign for each axis and 45 degrees +- x; Taylor series to the last bit.
    x = (_one_to_two(second) - 1.5) * np.float32(math.pi / 2)
    square = x * x
    sine = x * (1 + square * (-1 / 6 + square * (1 / 120 - square / 5040)))
    cosine = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square / 40320)))
    one = radius * (cosine - sine) * _sign(second << 31)
    other = radius * (cosine + sine) * _sign(second << 30)
    return jnp.concatenate([one, other])[:size].reshape(shape)


@partial(jax.jit, static_argnames="shape")
def uniform(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns float32 draws, uniform in [-1, 1)."""
    size = math.prod(shape)
    words = jnp.concatenate(_words(key, (size + 1) // 2))  # see `normal`
    return (2 * _one_to_two(words) - 3)[:size].reshape(shape)


def rademacher(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns 1 or -1 with equal probability, 32 of them from each word that is drawn."""
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 31) // 32, 1), dtype=jnp.uint32)
    return _sign(words << jnp.arange(32, dtype=jnp.uint32)).reshape(-1)[:size].reshape(shape)


def _words(
    key: PRNGKey, num_blocks: int
) -> tuple[UInt32[Array, "blocks"], UInt32[Array, "blocks"]]:
    """Returns the two words of each Threefry block, counted from 0 to below 2^32.

    A key of another generator is left to JAX.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        first, second = jax.random.bits(key, (2, num_blocks), dtype=jnp.uint32)
        return first, second
    first, second = jax.random.key_data(key)
    schedule = (first, second, first ^ second ^ _PARITY)
    x = jnp.full(num_blocks, schedule[0])
    y = jnp.arange(num_blocks, dtype=jnp.uint32) + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _one_to_two(word: UInt32[Array, "blocks"]) -> Float[Array, "blocks"]:
    """Returns the upper 23 bits as the mantissa of a number in [1, 2)."""
    return lax.bitcast_convert_type((word >> 9) | _ONE, jnp.float32)


def _sign(word: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Returns 1 or -1, as the highest bit says."""
    return lax.bitcast_convert_type((word & _SIGN) | _ONE, jnp.float32)
