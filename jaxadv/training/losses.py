"""Training losses of the logits of clean and adversarial images: means over a batch."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxadv.core.devices import AXIS
from jaxadv.core.logits import at_least_float32
from jaxadv.core.losses import cross_entropy, kl_divergence, soft_cross_entropy
from jaxadv.core.types import Labels

_IKL_TEMPERATURE = 4.0  # of the class means, as in the authors' code
Targets = Float[Array, "batch classes"]
CleanLogits = Float[Array, "clean classes"]
AdversarialLogits = Float[Array, "attacked classes"]
LossFn = Callable[[CleanLogits, AdversarialLogits, Labels, Targets], Float[Array, ""]]


class TrainingLoss(NamedTuple):
    """A training loss.

    Attributes:
      loss_fn: `(clean, adversarial, labels, targets) -> loss`. `adversarial` has the logits of the
        attacked examples, which come first in the batch. `clean` has the logits of all examples
        before the attack, or of those that are not attacked. `targets` are the distributions of the
        labels, shape (batch, classes).
      needs_clean: whether `clean` has the logits of all examples.
    """

    loss_fn: LossFn
    needs_clean: bool


def mixed_cross_entropy(
    clean: CleanLogits, adversarial: AdversarialLogits, labels: Labels, targets: Targets
) -> Float[Array, ""]:
    """Return the mean cross entropy of the batch, attacked examples in their adversarial version.

    Args:
      clean: logits of the examples that are not attacked.
      adversarial: logits of the others, which come first in the batch.
      labels: not used.
      targets: distributions of the labels.
    """
    del labels
    return soft_cross_entropy(jnp.concatenate([adversarial, clean]), targets).mean()


def trades(
    clean: CleanLogits,
    adversarial: AdversarialLogits,
    labels: Labels,
    targets: Targets,
    *,
    beta: float,
) -> Float[Array, ""]:
    """Return the loss of TRADES (Zhang et al., 2019, eq. 5).

    It is CE(clean) + beta KL(clean || adversarial).

    Args:
      clean: logits of all examples.
      adversarial: logits of the attacked ones; the divergence of the others is 0.
      labels: not used.
      targets: distributions of the labels.
      beta: weight of the divergence.
    """
    del labels
    divergences = kl_divergence(clean[: len(adversarial)], adversarial)
    return soft_cross_entropy(clean, targets).mean() + beta * divergences.sum() / len(clean)


def mart(
    clean: CleanLogits,
    adversarial: AdversarialLogits,
    labels: Labels,
    targets: Targets,
    *,
    weight: float,
) -> Float[Array, ""]:
    """Return the loss of MART (Wang et al., 2020, eq. 10 and 11).

    It is BCE(adversarial) + weight KL(clean || adversarial) (1 - p_label(clean)). The boosted cross
    entropy BCE is -log p_label - log(1 - p_other), with the most probable other class.

    Args:
      clean: logits of all examples.
      adversarial: logits of all examples.
      labels: classes.
      targets: not used.
      weight: lambda of the paper.
    """
    del targets
    num_classes = adversarial.shape[-1]
    log_probabilities = jax.nn.log_softmax(at_least_float32(adversarial))
    is_label = jax.nn.one_hot(labels, num_classes, dtype=bool)
    others = jnp.where(is_label, -jnp.inf, log_probabilities)
    is_other = jax.nn.one_hot(others.argmax(axis=-1), num_classes, dtype=bool)
    # log(1 - p_other) as the sum of all other probabilities: finite also where p_other is 1.
    margin = jax.nn.logsumexp(jnp.where(is_other, -jnp.inf, log_probabilities), axis=-1)
    boosted = cross_entropy(adversarial, labels) - margin
    misclassified = 1 - jnp.exp(-cross_entropy(clean, labels))
    return (boosted + weight * kl_divergence(clean, adversarial) * misclassified).mean()


def ikl(
    clean: CleanLogits,
    adversarial: AdversarialLogits,
    labels: Labels,
    targets: Targets,
    *,
    alpha: float,
    beta: float,
) -> Float[Array, ""]:
    """Return the loss of the improved KL divergence (IKL-AT; Cui et al., 2024, eq. 7).

    It is CE(clean) + beta wMSE + alpha CE(p(clean), adversarial), where no gradient flows through
    p(clean). The weighted mean squared error wMSE is 1/4 of the sum of w_j w_k (d_j - d_k)^2 over
    all pairs of classes, with d the clean minus the adversarial logits, and w the mean prediction
    for the clean images of the same class. The paper takes these means over the epoch before; here
    they are over the batch, which should have several images of each class. With one of each, w is
    the prediction for the image itself, as in the plain decomposition of the KL divergence (DKL).

    Args:
      clean: logits of all examples.
      adversarial: logits of the attacked ones; the divergence of the others is 0.
      labels: classes.
      targets: distributions of the labels.
      alpha: weight of the cross entropy with the clean predictions.
      beta: weight of the weighted mean squared error.
    """
    n = len(adversarial)
    weights = _class_means(clean, labels)[labels[:n]]
    difference = at_least_float32(clean[:n]) - at_least_float32(adversarial)
    # The sum over pairs is twice the variance of d under w, because the weights sum to 1.
    centred = difference - (weights * difference).sum(axis=-1, keepdims=True)
    squared_error = (weights * centred**2).sum(axis=-1) / 2
    predictions = lax.stop_gradient(jax.nn.softmax(at_least_float32(clean[:n])))
    divergence = beta * squared_error + alpha * soft_cross_entropy(adversarial, predictions)
    return soft_cross_entropy(clean, targets).mean() + divergence.sum() / len(clean)


def _class_means(clean: CleanLogits, labels: Labels) -> Float[Array, "classes classes"]:
    """Return the mean prediction for the examples of each class in the batch of all devices."""
    predictions = jax.nn.softmax(at_least_float32(clean) / _IKL_TEMPERATURE)
    is_class = jax.nn.one_hot(labels, clean.shape[-1], dtype=predictions.dtype)
    totals = lax.psum((is_class.T @ predictions, is_class.sum(axis=0)[:, None]), AXIS)
    return lax.stop_gradient(totals[0] / jnp.maximum(totals[1], 1))


def make_loss(train: ConfigDict) -> TrainingLoss:
    """Return the loss that `config.train.loss` names; see configs/default.py."""
    return LOSSES[train.loss](train)


LOSSES: dict[str, Callable[[ConfigDict], TrainingLoss]] = {
    "cross_entropy": lambda train: TrainingLoss(mixed_cross_entropy, needs_clean=False),
    "trades": lambda train: TrainingLoss(partial(trades, beta=train.trades_beta), needs_clean=True),
    "mart": lambda train: TrainingLoss(partial(mart, weight=train.mart_weight), needs_clean=True),
    "ikl": lambda train: TrainingLoss(
        partial(ikl, alpha=train.ikl_alpha, beta=train.ikl_beta), needs_clean=True
    ),
}
