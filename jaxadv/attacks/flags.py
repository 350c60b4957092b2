"""Signs that AutoAttack is not the right judge of a model (Croce et al., automatic checks)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxadv.losses import make_objective
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey

_PASSES = 5
_SAME_OUTPUT = 1e-4  # largest difference of normalised outputs between passes of one model
_SAME_SUM = 1e-5  # of a softmax, from 1
_SQUARE_GAIN = 0.002  # of accuracy, that Square may take from the attacks before it


class Probed(NamedTuple):
    """What is seen of a model from outside; every array has one row per example.

    Attributes:
      varies: whether passes over the same image differ.
      is_distribution: whether the outputs look like probabilities.
      zero_gradient: whether the gradient of the DLR loss is zero at the image.
    """

    varies: Bool[Array, "batch"]
    is_distribution: Bool[Array, "batch"]
    zero_gradient: Bool[Array, "batch"]


def probe(key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels) -> Probed:
    """Returns what five passes over clean images and a gradient show."""
    keys = jax.random.split(key, _PASSES)
    outputs = jax.lax.map(lambda key: logits_fn(key, images), keys)
    normalised = outputs / (jnp.linalg.norm(outputs, axis=-1, keepdims=True) + 1e-10)
    spread = normalised.max(axis=0) - normalised.min(axis=0)
    inside = (outputs[0] >= -_SAME_SUM) & (outputs[0] <= 1 + _SAME_SUM)
    sums = jnp.abs(outputs[0].sum(axis=-1) - 1) < _SAME_SUM
    objective = make_objective("dlr", labels, None)
    gradient = jax.grad(lambda images: objective(logits_fn(keys[0], images)).sum())(images)
    return Probed(
        varies=(spread > _SAME_OUTPUT).any(axis=-1),
        is_distribution=inside.all(axis=-1) & sums,
        zero_gradient=(gradient == 0).all(axis=(1, 2, 3)),
    )


def raise_flags(
    probed: Probed, num_classes: int, version: str, accuracies: Mapping[str, float]
) -> dict[str, str]:
    """Returns the name of each flag that is raised, with a sentence that says why.

    Args:
      probed: of all examples, in numpy arrays.
      num_classes: of the model.
      version: of AutoAttack.
      accuracies: after each attack, in their order.
    """
    flags = {}
    if probed.varies.any() and version != "rand":
        flags["randomised"] = (
            f"Passes over the same image differ on {_count(probed.varies)} images, so that chance "
            'decides: take version "rand".'
        )
    if len(probed.is_distribution) and probed.is_distribution.all():
        flags["softmax"] = (
            "The outputs are probabilities, not logits: their gradients vanish where the model is "
            "sure. Attack the logits."
        )
    if probed.zero_gradient.any():
        flags["zero_gradient"] = (
            f"The gradient of the DLR loss is zero on {_count(probed.zero_gradient)} images: "
            "attacks that follow it get nowhere there. Attack a smooth stand-in for what hides it."
        )
    if num_classes < 4:
        flags["few_classes"] = (
            f"With {num_classes} classes there is no {'targeted ' if num_classes == 3 else ''}DLR "
            "loss: the margin takes its place, which a model can scale down."
        )
    names = list(accuracies)
    place = names.index("square") if "square" in names else 0
    if place > 1:
        gain = accuracies[names[place - 1]] - accuracies["square"]
        if gain > _SQUARE_GAIN:
            flags["square"] = (
                f"Square, which sees no gradient, takes {gain:.2%} from what the others left: "
                "the gradients mislead. Try more of its queries, and an attack made for this model."
            )
    return flags


def _count(rows: Any) -> str:
    return f"{int(rows.sum())} of {len(rows)}"
