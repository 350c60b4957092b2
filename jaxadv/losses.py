"""Losses of one example each, shape (batch,); a mean is taken where it is known over what."""

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


LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
