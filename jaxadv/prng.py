"""Named key streams: every random number of a run follows from (seed, name, step)."""

from typing import Literal, get_args

import jax
from jaxtyping import Array, Int, Key

from jaxadv.types import PRNGKey

Stream = Literal[
    "init", "shuffle", "augment", "attack", "noise", "score", "latent", "smoothing", "sample",
    "synthetic",
]  # fmt: skip
_STREAMS = get_args(Stream)


def stream(seed: int | Int[Array, ""], name: Stream, step: int | Int[Array, ""] = 0) -> PRNGKey:
    """Returns the key of one named stream at one step.

    No key is stored anywhere: a resumed run asks for the same names and steps and gets
    the same keys. The streams are a closed list, so two of them never collide.

    Args:
      seed: seed of the run; may be traced.
      name: one of the streams of this module.
      step: global step, epoch or example index, whatever the stream counts; may be traced.
    """
    key = jax.random.fold_in(jax.random.key(seed), _STREAMS.index(name))
    return jax.random.fold_in(key, step)


def example_keys(key: PRNGKey, example_ids: Int[Array, "batch"]) -> Key[Array, "batch"]:
    """Returns one key for each example, whatever batch or device the example sits in."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_ids)
