"""The classes that targeted attacks try, one after another."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxadv.attacks.expectation import Noise, expected_logits
from jaxadv.attacks.queries import Queried
from jaxadv.types import Images, Labels, Logits, LogitsFn, PRNGKey


def choose_targets(
    found: Queried, key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels, noise: Noise
) -> Queried:
    """Returns what was found, with `memory.targets` filled in where the search has not begun."""
    memory = found.memory
    number = memory.targets.shape[1]
    fresh = found.steps == 0
    if not number:
        return found

    def choose() -> Int[Array, "batch targets"]:
        logits = expected_logits(key, logits_fn, images, noise)
        targets = likeliest_others(logits, labels, number)
        return jnp.where(fresh[:, None], targets, memory.targets)

    targets = lax.cond(fresh.any(), choose, lambda: memory.targets)
    return found._replace(memory=memory._replace(targets=targets))


def likeliest_others(logits: Logits, labels: Labels, number: int) -> Int[Array, "batch targets"]:
    """Returns so many other classes of each image, that of the largest logit first."""
    is_label = jnp.arange(logits.shape[1], dtype=labels.dtype) == labels[:, None]
    return lax.top_k(jnp.where(is_label, -jnp.inf, logits), number)[1].astype(jnp.int32)
