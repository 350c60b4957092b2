"""The classes that targeted attacks try, one after another."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxadv.attacks.expectation import Noise, expected_logits
from jaxadv.attacks.queries import Queried
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey


def choose_targets(
    found: Queried, key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels, noise: Noise
) -> Queried:
    """Returns what was found with `memory.targets` filled in, unless an earlier call did it."""
    memory = found.memory
    number = memory.targets.shape[1]
    targets = lax.cond(
        (found.steps == 0).all(),
        lambda: _likeliest_others(key, logits_fn, images, labels, noise, number),
        lambda: memory.targets,
    )
    return found._replace(memory=memory._replace(targets=targets))


def _likeliest_others(
    key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels, noise: Noise, number: int
) -> Int[Array, "batch targets"]:
    """Returns so many other classes of each image, that of the largest logit first."""
    if not number:
        return jnp.zeros((len(images), 0), jnp.int32)
    logits = expected_logits(key, logits_fn, images, noise)
    is_label = jnp.arange(logits.shape[1]) == labels[:, None]
    return lax.top_k(jnp.where(is_label, -jnp.inf, logits), number)[1]


def check_targets(number: int, num_classes: int) -> None:
    """Raises a ValueError if there are not so many other classes."""
    if number >= num_classes:
        raise ValueError(f"num_targets is {number}: there are {num_classes - 1} other classes")
