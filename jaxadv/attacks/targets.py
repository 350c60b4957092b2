"""The clean image's logits: what is misclassified already, and which classes are tried first."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxadv.attacks.expectation import Noise, expected_logits
from jaxadv.attacks.inputs import Inputs
from jaxadv.attacks.queries import Queried, select
from jaxadv.attacks.tracing import TracedModel
from jaxadv.losses import margin
from jaxadv.types import Labels, Logits, PRNGKey


def rank_classes(
    found: Queried,
    key: PRNGKey,
    model: TracedModel,
    inputs: Inputs,
    noise: Noise,
    num_queries: Int[Array, ""],
) -> Queried:
    """Returns the state of a search, with `memory.targets` filled in where it has not begun.

    The pass that ranks the classes shows which images are misclassified without a perturbation.
    These are successes, and only there is the pass counted.
    """
    fresh = found.queries == 0

    def rank() -> Queried:
        logits = expected_logits(key, model, inputs.images, noise)
        margins = margin(logits, inputs.labels).astype(found.margins.dtype)
        number = found.memory.targets.shape[1]
        targets = _likeliest_others(logits, inputs.labels, number)
        ranked = found._replace(memory=found.memory._replace(targets=targets))
        wrong = ranked._replace(
            success=jnp.ones_like(found.success),
            queries=jnp.zeros_like(found.queries) + noise.num_samples,
            margins=margins,
        )
        affordable = num_queries >= noise.num_samples
        return select(fresh, select((margins > 0) & affordable, wrong, ranked), found)

    return lax.cond(fresh.any(), rank, lambda: found)


def _likeliest_others(logits: Logits, labels: Labels, number: int) -> Int[Array, "batch targets"]:
    """Returns so many other classes of each image, that of the largest logit first."""
    is_label = jnp.arange(logits.shape[1], dtype=labels.dtype) == labels[:, None]
    return lax.top_k(jnp.where(is_label, -jnp.inf, logits), number)[1].astype(jnp.int32)
