"""Losses per example, shape (batch,). Callers take means."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxadv.core.logits import at_least_float32, finite_logits
from jaxadv.core.types import Labels, Logits, PerExample

_TINY = 1e-12


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Return the cross entropy -log p(label), in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels)


def margin(logits: Logits, labels: Labels) -> PerExample:
    """Return the largest other logit minus that of the label (Carlini & Wagner, 2017, eq. 6).

    Positive means misclassified; logits that are not finite give infinity. A tie gives 0 and counts
    as correct, whereas `argmax` depends on the order of the classes.
    """
    logits = finite_logits(logits)
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    is_label = jnp.arange(logits.shape[-1], dtype=labels.dtype) == labels[:, None]
    ahead = jnp.where(is_label, -jnp.inf, logits).max(axis=-1) - label_logit
    return jnp.where(jnp.isnan(ahead), jnp.inf, ahead)


def probability(logits: Logits, labels: Labels) -> PerExample:
    """Return -p(label), the loss of the study's black-box attack."""
    return -jnp.exp(-cross_entropy(logits, labels))


def probability_margin(logits: Logits, labels: Labels) -> PerExample:
    """Return the largest other probability minus that of the label (PMA; Xie et al., 2025)."""
    return margin(jax.nn.softmax(at_least_float32(logits)), labels)


def dlr(logits: Logits, labels: Labels) -> PerExample:
    """Return the difference of logits ratio (DLR; Croce & Hein, 2020, eq. 6).

    It is the margin divided by the difference between the largest and the third largest logit,
    which makes it invariant to their scale. With two classes it is the margin.
    """
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    logits = finite_logits(logits)
    largest, _ = lax.top_k(logits, 3)
    return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + _TINY)


def soft_cross_entropy(logits: Logits, targets: Float[Array, "batch classes"]) -> PerExample:
    """Return the cross entropy -sum(targets * log p) of target distributions, in nats."""
    return optax.softmax_cross_entropy(at_least_float32(logits), targets)


def kl_divergence(reference: Logits, logits: Logits) -> PerExample:
    """Return the Kullback-Leibler divergence KL(reference || prediction), in nats."""
    expected = jax.nn.log_softmax(at_least_float32(reference))
    actual = jax.nn.log_softmax(at_least_float32(logits))
    return (jnp.exp(expected) * (expected - actual)).sum(axis=-1)


LOSSES = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "probability": probability,
    "probability_margin": probability_margin,
    "dlr": dlr,
}


def make_targeted_objective(
    loss: str, labels: Labels, targets: Labels
) -> Callable[[Logits], PerExample]:
    """Return the objective that AutoAttack's targeted attacks maximise.

    For the margin it is the target's logit minus the label's. The DLR divides this difference by
    that between the largest logit and the mean of the third and fourth largest (Croce & Hein, 2020,
    eq. 7). With three classes it is the margin. For other losses it is the negative loss of the
    targets.
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
    """Return the objective of an attack: the loss of the labels, or minus that of the targets."""
    loss_fn = LOSSES[loss]
    if targets is None:
        return lambda logits: loss_fn(logits, labels)
    return lambda logits: -loss_fn(logits, targets)
