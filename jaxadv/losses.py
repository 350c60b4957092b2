"""Losses of one example each, shape (batch,); a mean is taken where it is known over what."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxadv.logits import at_least_single, finite_logits
from jaxadv.types import Labels, Logits, PerExample

_TINY = 1e-12


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Returns -log p(label), in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_single(logits), labels)


def margin(logits: Logits, labels: Labels) -> PerExample:
    """Returns the largest other logit minus the label's (Carlini & Wagner 2017, eq. 6).

    Positive means misclassified, as logits that are not finite do. Ties count for the label, as
    `argmax` would not always.
    """
    logits = finite_logits(logits)
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    is_label = jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[:, None]
    ahead = jnp.where(is_label, -jnp.inf, logits).max(axis=-1) - label_logit
    return jnp.where(jnp.isnan(ahead), jnp.inf, ahead)


def probability(logits: Logits, labels: Labels) -> PerExample:
    """Returns -p(label), which the study's black-box attack climbs."""
    return -jnp.exp(-cross_entropy(logits, labels))


def dlr(logits: Logits, labels: Labels) -> PerExample:
    """Returns the difference of logits ratio (Croce & Hein 2020, eq. 6), at most 1.

    It is the margin over the distance of the largest logit to the third, so that it does not
    change with their scale. With two classes it is the margin itself.
    """
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    logits = finite_logits(logits)
    largest, _ = lax.top_k(logits, 3)
    return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def smoothed_cross_entropy(
    logits: Logits, labels: Labels, smoothing: Float[Array, "batch"]
) -> PerExample:
    """Returns the cross entropy with labels that are mixed with the uniform distribution.

    `smoothing` is the share of the latter, for each example (Szegedy et al. 2016).
    """
    uniform = -jax.nn.log_softmax(at_least_single(logits)).mean(axis=-1)
    return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * uniform


def divergence(reference: Logits, logits: Logits) -> PerExample:
    """Returns the Kullback-Leibler divergence of the second prediction from the first, in nats."""
    expected = jax.nn.log_softmax(at_least_single(reference))
    actual = jax.nn.log_softmax(at_least_single(logits))
    return (jnp.exp(expected) * (expected - actual)).sum(axis=-1)


LOSSES = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "probability": probability,
    "dlr": dlr,
}


def make_targeted_objective(
    loss: str, labels: Labels, targets: Labels
) -> Callable[[Logits], PerExample]:
    """Returns what leads from the labels to the targets.

    It is minus the loss of the targets, but for the margin, which compares the two alone, and for
    the DLR, which does so over the distance of the largest logit to the mean of the third and the
    fourth (Croce & Hein 2020, eq. 7). With three classes that is the margin.
    """
    if loss not in ("margin", "dlr"):
        return make_objective(loss, labels, targets)

    def difference(logits: Logits) -> PerExample:
        logits = finite_logits(logits)
        pair = jnp.take_along_axis(logits, jnp.stack([targets, labels], axis=1), axis=-1)
        ahead = pair[:, 0] - pair[:, 1]
        if loss == "margin" or logits.shape[-1] < 4:
            return ahead
        largest, _ = lax.top_k(logits, 4)
        return ahead / (largest[:, 0] - largest[:, 2:].mean(axis=-1) + _TINY)

    return difference


def make_objective(
    loss: str, labels: Labels, targets: Labels | None
) -> Callable[[Logits], PerExample]:
    """Returns what an attack ascends: the labels' loss, or minus that of the targets."""
    loss_fn = LOSSES[loss]
    if targets is None:
        return lambda logits: loss_fn(logits, labels)
    return lambda logits: -loss_fn(logits, targets)
