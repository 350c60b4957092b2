"""Signs that AutoAttack is not the right judge of a model (Croce et al., automatic checks)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxadv.logits import finite_logits
from jaxadv.losses import make_objective
from jaxadv.types import Images, Labels, Logits, LogitsFn, PRNGKey

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
      nonfinite_gradient: whether it is not finite.
      depends_on_batch: whether the outputs change with the other images of the batch.
    """

    varies: Bool[Array, "batch"]
    is_distribution: Bool[Array, "batch"]
    zero_gradient: Bool[Array, "batch"]
    nonfinite_gradient: Bool[Array, "batch"]
    depends_on_batch: Bool[Array, "batch"]


def probe(key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels) -> Probed:
    """Returns what five passes over clean images and a gradient show."""
    keys = jax.random.split(key, _PASSES)
    outputs = jax.lax.map(lambda key: finite_logits(logits_fn(key, images)), keys)
    inside = (outputs[0] >= -_SAME_SUM) & (outputs[0] <= 1 + _SAME_SUM)
    sums = jnp.abs(outputs[0].sum(axis=-1) - 1) < _SAME_SUM
    objective = make_objective("dlr", labels, None)
    gradient = jax.grad(lambda images: objective(logits_fn(keys[0], images)).sum())(images)
    return Probed(
        varies=_differ(outputs),
        is_distribution=inside.all(axis=-1) & sums,
        zero_gradient=(gradient == 0).all(axis=(1, 2, 3)),
        nonfinite_gradient=~jnp.isfinite(gradient).all(axis=(1, 2, 3)),
        depends_on_batch=_differ(
            jnp.stack([outputs[0], _in_another_batch(keys[0], logits_fn, images)])
        ),
    )


def _in_another_batch(key: PRNGKey, logits_fn: LogitsFn, images: Images) -> Logits:
    """Returns the logits of each image in a batch whose other half is grey, at the same places."""
    even = jnp.arange(len(images)) % 2 == 0

    def with_grey(rows: Bool[Array, "batch"]) -> Logits:
        return finite_logits(logits_fn(key, jnp.where(rows[:, None, None, None], images, 0.5)))

    return jnp.where(even[:, None], with_grey(even), with_grey(~even))


def _differ(outputs: Float[Array, "passes batch classes"]) -> Bool[Array, "batch"]:
    """Returns whether the normalised outputs of an image differ between passes."""
    normalised = outputs / (jnp.linalg.norm(outputs, axis=-1, keepdims=True) + 1e-10)
    spread = normalised.max(axis=0) - normalised.min(axis=0)
    return (spread > _SAME_OUTPUT).any(axis=-1)


def raise_flags(
    probed: Probed,
    num_classes: int,
    version: str,
    accuracies: Mapping[str, float],
    nonfinite_logits: Bool[np.ndarray, "n"],
    nonfinite_gradients: Int[np.ndarray, "n"],
) -> dict[str, str]:
    """Returns the name of each flag that is raised, with a sentence that says why.

    Args:
      probed: of all examples that the model gets right, in numpy arrays.
      num_classes: of the model.
      version: of AutoAttack.
      accuracies: after each attack, in their order.
      nonfinite_logits: for each example whether the logits of its final image are not finite.
      nonfinite_gradients: for each example how many gradients of the attacks were not finite.
    """
    flags = {}
    if nonfinite_logits.any():
        flags["nonfinite_logits"] = (
            f"The logits of {_count(nonfinite_logits)} images are NaN or infinite, clean or "
            "attacked: these count as misclassified. Find where the model overflows."
        )
    if (nonfinite_gradients > 0).any() or probed.nonfinite_gradient.any():
        flags["nonfinite_gradient"] = (
            f"{int(nonfinite_gradients.sum()):,} gradients of {_count(nonfinite_gradients > 0)} "
            "images were NaN or infinite and counted as zero, so that attacks that follow them get "
            "nowhere there. Find the operation (a root or a division at 0), and make it smooth."
        )
    if probed.depends_on_batch.any():
        flags["depends_on_batch"] = (
            f"The logits of {_count(probed.depends_on_batch)} images change with the rest of their "
            "batch, so that no accuracy is that of the model: call it in evaluation mode, with "
            "running statistics of batch norm."
        )
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
