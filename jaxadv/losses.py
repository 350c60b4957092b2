"""Losses of one example each, shape (batch,); a mean is taken where it is known over what."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxadv.types import Labels, Logits, PerExample


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Returns -log p(label), in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: Logits, labels: Labels) -> PerExample:
    """Returns the largest other logit minus the label's (Carlini & Wagner 2017, eq. 6).

    Positive means misclassified. Ties count for the label, as `argmax` would not always.
    """
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    is_label = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jnp.where(is_label, -jnp.inf, logits).max(axis=-1) - label_logit


def probability(logits: Logits, labels: Labels) -> PerExample:
    """Returns -p(label), which the study's black-box attack climbs."""
    return -jnp.exp(-cross_entropy(logits, labels))


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "probability": probability}


def make_objective(
    loss: str, labels: Labels, targets: Labels | None
) -> Callable[[Logits], PerExample]:
    """Returns what an attack ascends: the labels' loss, or minus that of the targets."""
    loss_fn = LOSSES[loss]
    if targets is None:
        return lambda logits: loss_fn(logits, labels)
    return lambda logits: -loss_fn(logits, targets)
