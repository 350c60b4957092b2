"""Random number generation: named key streams, keys per example, and random arrays.

All random numbers of a run follow from (seed, name of a stream, step). `normal`, `uniform` and
`rademacher` generate large arrays faster on CPUs than `jax.random`.
"""

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from jaxadv.core.devices import platform
from jaxadv.core.types import PRNGKey

Stream = Literal[
    "init", "shuffle", "augment", "attack", "noise", "score", "latent", "smoothing", "sample",
    "synthetic", "cutmix", "gradient_alignment",
]  # fmt: skip
_STREAMS = get_args(Stream)


def stream(seed: int | Int[Array, ""], name: Stream, step: int | Int[Array, ""] = 0) -> PRNGKey:
    """Return the key of a named stream at a step.

    No key is stored: a resumed run computes the same keys from the same names and steps.

    Args:
      seed: seed of the run; may be traced.
      name: name of the stream.
      step: counter of the stream, such as a global step, an epoch or a number of a sample; may be
        traced.
    """
    key = jax.random.fold_in(jax.random.key(seed), _STREAMS.index(name))
    return jax.random.fold_in(key, step)


def example_keys(key: PRNGKey, example_ids: Int[Array, "batch"]) -> Key[Array, "batch"]:
    """Return one key per example. It does not depend on the example's batch or device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_ids)


@partial(jax.jit, static_argnames="shape")
def normal(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Sample float32 values from N(0, 1), by the transform of Box & Muller (1958)."""
    size = math.prod(shape)
    first, second = _random_bits(key, (size + 1) // 2)
    if platform() == "cpu":
        # Without the barrier, XLA computes the bits again for each value and term that uses them.
        first, second = lax.optimization_barrier(jnp.stack([first, second]))
    radius = jnp.sqrt(-jnp.log(2 - _float_in_1_2(first)))  # of the pair, divided by sqrt(2)
    # The angle is 45 degrees + x, with a random sign for each axis. Its sine and cosine are Taylor
    # series that are exact to float32 rounding.
    x = (_float_in_1_2(second) - 1.5) * np.float32(math.pi / 2)
    square = x * x
    sine = x * (1 + square * (-1 / 6 + square * (1 / 120 - square / 5040)))
    cosine = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square / 40320)))
    one = radius * (cosine - sine) * _sign(second << 31)
    other = radius * (cosine + sine) * _sign(second << 30)
    # The concatenation keeps XLA from vectorising over the few channels of an image.
    return jnp.concatenate([one, other])[:size].reshape(shape)


@partial(jax.jit, static_argnames="shape")
def uniform(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Sample float32 values uniformly from [-1, 1)."""
    size = math.prod(shape)
    words = jnp.concatenate(_random_bits(key, (size + 1) // 2))
    return (2 * _float_in_1_2(words) - 3)[:size].reshape(shape)


def rademacher(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Sample float32 values from {-1, 1}, 32 of them from each random word."""
    size = math.prod(shape)
    words = jax.random.bits(key, ((size + 31) // 32, 1), dtype=jnp.uint32)
    return _sign(words << jnp.arange(32, dtype=jnp.uint32)).reshape(-1)[:size].reshape(shape)


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def _random_bits(
    key: PRNGKey, num_blocks: int
) -> tuple[UInt32[Array, "blocks"], UInt32[Array, "blocks"]]:
    """Return the two output words of Threefry-2x32 for the counters 0, 1, ..., num_blocks - 1.

    Threefry with 20 rounds (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3").
    For keys of other generators, `jax.random.bits` is used.
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


_BITS_OF_ONE = np.uint32(0x3F800000)  # float32
_SIGN_BIT = np.uint32(0x80000000)


def _float_in_1_2(word: UInt32[Array, "blocks"]) -> Float[Array, "blocks"]:
    """Return a float in [1, 2) whose mantissa is the upper 23 bits."""
    return lax.bitcast_convert_type((word >> 9) | _BITS_OF_ONE, jnp.float32)


def _sign(word: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Return 1 or -1 according to the highest bit."""
    return lax.bitcast_convert_type((word & _SIGN_BIT) | _BITS_OF_ONE, jnp.float32)
