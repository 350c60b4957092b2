"""The order in which examples are seen: exact, whatever of it was seen before."""

import jax
import numpy as np
from jaxtyping import Int

from jaxadv.prng import Stream, stream


def epoch_order(seed: int, name: Stream, epoch: int, num_examples: int) -> Int[np.ndarray, "n"]:
    """Returns the order of an epoch: a permutation that follows from the seed and its number."""
    return np.asarray(jax.random.permutation(stream(seed, name, epoch), num_examples))


def endless_order(
    seed: int, name: Stream, start: int, count: int, num_examples: int
) -> Int[np.ndarray, "count"]:
    """Returns a piece of one epoch's order after another, from a place in it on."""
    if not count:
        return np.zeros(0, int)
    first, offset = divmod(start, num_examples)
    last = (start + count - 1) // num_examples
    orders = [epoch_order(seed, name, epoch, num_examples) for epoch in range(first, last + 1)]
    return np.concatenate(orders)[offset : offset + count]
