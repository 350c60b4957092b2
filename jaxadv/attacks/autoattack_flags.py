"""Diagnostics of AutoAttack: reasons why it may overestimate the robustness of a model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxadv.core.logits import are_probabilities, finite_logits, outputs_differ
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PRNGKey

_NUM_PROBES = 5
_SQUARE_GAIN = 0.002  # largest loss of accuracy under Square, after attacks with gradients


class Probed(NamedTuple):
    """Properties of a model, from a few forward passes and a gradient; one row per example.

    Attributes:
      varies: whether forward passes over the same image differ.
      is_distribution: whether the outputs are probabilities, that is, in [0, 1] with sum 1.
      zero_gradient: whether the gradient of the DLR loss is zero at the image.
      nonfinite_gradient: whether that gradient is NaN or infinite.
      depends_on_batch: whether the outputs change with the other images of the batch.
    """

    varies: Bool[Array, "batch"]
    is_distribution: Bool[Array, "batch"]
    zero_gradient: Bool[Array, "batch"]
    nonfinite_gradient: Bool[Array, "batch"]
    depends_on_batch: Bool[Array, "batch"]


def probe(key: PRNGKey, logits_fn: LogitsFn, images: Images, labels: Labels) -> Probed:
    """Probe a model with five forward passes and one gradient on clean images."""
    keys = jax.random.split(key, _NUM_PROBES)
    outputs = jax.lax.map(lambda key: finite_logits(logits_fn(key, images)), keys)
    objective = make_objective("dlr", labels, None)
    gradient = jax.grad(lambda images: objective(logits_fn(keys[0], images)).sum())(images)
    return Probed(
        varies=outputs_differ(outputs),
        is_distribution=are_probabilities(outputs[0]),
        zero_gradient=(gradient == 0).all(axis=(1, 2, 3)),
        nonfinite_gradient=~jnp.isfinite(gradient).all(axis=(1, 2, 3)),
        depends_on_batch=outputs_differ(
            jnp.stack([outputs[0], _in_another_batch(keys[0], logits_fn, images)])
        ),
    )


def _in_another_batch(key: PRNGKey, logits_fn: LogitsFn, images: Images) -> Logits:
    """Return the logits of each image in a batch whose other half is replaced by grey images."""
    even = jnp.arange(len(images)) % 2 == 0

    def with_grey(rows: Bool[Array, "batch"]) -> Logits:
        return finite_logits(logits_fn(key, jnp.where(rows[:, None, None, None], images, 0.5)))

    return jnp.where(even[:, None], with_grey(even), with_grey(~even))


def raise_flags(
    probed: Probed,
    num_classes: int,
    averages_noise: bool,
    accuracies: Mapping[str, float],
    nonfinite_logits: Bool[np.ndarray, "n"],
    nonfinite_gradients: Int[np.ndarray, "n"],
    square: str | None,
    has_narrow_squares: bool,
) -> dict[str, str]:
    """Return the flags raised for a model, each with a sentence that says why.

    Args:
      probed: of all examples that the model classifies correctly, in numpy arrays.
      num_classes: of the model.
      averages_noise: whether the attacks average over the noise of a random model.
      accuracies: after each attack, in their order.
      nonfinite_logits: for each example whether the logits of its final image are NaN or infinite.
      nonfinite_gradients: for each example how many gradients of the attacks were NaN or infinite.
      square: name of the Square attack, if it ran after attacks with gradients.
      has_narrow_squares: whether Square ran in L2 or L1 on images of fewer than 3 rows or columns.
    """
    flags = {}
    if nonfinite_logits.any():
        flags["nonfinite_logits"] = (
            f"The logits of {_count(nonfinite_logits)} images are NaN or infinite, clean or "
            "attacked. They count as misclassified. Find where the model overflows."
        )
    if (nonfinite_gradients > 0).any() or probed.nonfinite_gradient.any():
        flags["nonfinite_gradient"] = (
            f"{int(nonfinite_gradients.sum()):,} gradients of {_count(nonfinite_gradients > 0)} "
            "images were NaN or infinite and counted as zero, so gradient attacks make no progress "
            "there. Find the operation (a root or a division at 0), and make it smooth."
        )
    if probed.depends_on_batch.any():
        flags["depends_on_batch"] = (
            f"The logits of {_count(probed.depends_on_batch)} images depend on the rest of "
            "their batch, so accuracies depend on it too. Call the model in evaluation mode, with "
            "the running statistics of batch norm."
        )
    if probed.varies.any() and not averages_noise:
        flags["randomised"] = (
            f"Forward passes over the same image differ on {_count(probed.varies)} images: the "
            'model is random. Use version "rand".'
        )
    if len(probed.is_distribution) and probed.is_distribution.all():
        flags["softmax"] = (
            "The outputs are probabilities, not logits. Their gradients vanish where the model is "
            "confident. Attack the logits."
        )
    if probed.zero_gradient.any():
        flags["zero_gradient"] = (
            f"The gradient of the DLR loss is zero on {_count(probed.zero_gradient)} images: "
            "gradient attacks make no progress there. Attack a smooth approximation of the "
            "operation that hides the gradient (`jaxadv.attacks.bpda`)."
        )
    if num_classes < 4:
        flags["few_classes"] = (
            f"With {num_classes} classes there is no {'targeted ' if num_classes == 3 else ''}DLR "
            "loss. The margin loss replaces it, whose scale depends on the model."
        )
    if has_narrow_squares:
        flags["narrow_squares"] = (
            "The images have fewer than 3 rows or columns, where the squares of Square in L2 and "
            "L1 are single pixels. Trust the attacks with gradients, or evaluate in L-inf."
        )
    if square:
        names = list(accuracies)
        gain = accuracies[names[names.index(square) - 1]] - accuracies[square]
        if gain > _SQUARE_GAIN:
            flags["square"] = (
                f"Square, a black-box attack, fools a further {gain:.1%} of the images after the "
                "attacks with gradients: the gradients mislead. Use more of its queries, and an "
                "adaptive attack for this model."
            )
    return flags


def _count(rows: Any) -> str:
    return f"{int(rows.sum())} of {len(rows)}"
