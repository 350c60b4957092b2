"""Output-diversified initialisation of attacks (ODI, Tashiro et al., 2020).

The random starts of an attack differ in their images, but the model's outputs for them are often
much alike. ODI ascends randomly weighted logits before the loss, so that the outputs differ too.
"""

from functools import partial

import jax
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxadv.attacks.checks import Arguments
from jaxadv.attacks.eot import Objective
from jaxadv.core.rng import example_keys, uniform
from jaxadv.core.types import Logits, PerExample, PRNGKey


def check_odi(arguments: Arguments) -> None:
    """Raise a ValueError if an attack has steps of ODI in a norm that the paper does not treat."""
    num_odi_steps, norm = arguments.get("num_odi_steps", 0), arguments.get("norm", "linf")
    if num_odi_steps and norm not in ("linf", "l2"):
        raise ValueError(
            f"num_odi_steps is {num_odi_steps}, but norm is {norm!r}: set num_odi_steps to 0 or "
            "norm to 'linf' or 'l2'"
        )


def odi_objective(
    key: PRNGKey,
    example_ids: Int[Array, "batch"],
    num_classes: int,
    noise_average: str,
    objective: Objective,
    is_odi_step: Bool[Array, ""],
) -> Objective:
    """Return the objective of ODI in its steps, and the given one in all others.

    ODI ascends the sum of the logits, each with a weight from the uniform distribution on [-1, 1].
    If noise is averaged as "softmax", an objective sees log probabilities. Their weights are
    centred, so that the normalisation of the softmax cancels.

    Args:
      key: of the weights.
      example_ids: the weights of an example depend on the key and its id alone.
      num_classes: number of logits.
      noise_average: "loss" or "softmax".
      objective: of the attack.
      is_odi_step: whether the step is one of ODI.
    """

    def value(logits: Logits) -> PerExample:
        def weighted_logits() -> PerExample:
            keys = example_keys(key, example_ids)
            weights = jax.vmap(partial(uniform, shape=(num_classes,)))(keys)
            if noise_average == "softmax":
                weights -= weights.mean(axis=1, keepdims=True)
            return (weights.astype(logits.dtype) * logits).sum(axis=1)

        return lax.cond(is_odi_step, weighted_logits, lambda: objective(logits))

    return value
