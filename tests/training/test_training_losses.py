"""Training losses beside their equations, written out in NumPy in double precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxadv.core.devices import AXIS
from jaxadv.training.losses import ikl, mart, mixed_cross_entropy, trades

GENERATOR = np.random.default_rng(0)
NUM, CLASSES = 6, 4
CLEAN, ADVERSARIAL = GENERATOR.normal(size=(2, NUM, CLASSES)) * 2
LABELS = np.array([0, 1, 1, 3, 2, 1], np.int32)
TARGETS = np.eye(CLASSES)[LABELS] * 0.9 + 0.1 / CLASSES


def compute(loss_fn, clean, adversarial, targets=TARGETS):
    arrays = [jnp.asarray(array, jnp.float32) for array in (clean, adversarial)]
    return float(loss_fn(*arrays, jnp.asarray(LABELS), jnp.asarray(targets, jnp.float32)))


def on_devices(loss_fn, num_devices):
    """Return the loss of shares of the batch that exchange sums, as a mean over the devices."""

    def loss(*arrays):
        shares = [array.reshape(num_devices, -1, *array.shape[1:]) for array in arrays]
        return jax.vmap(loss_fn, axis_name=AXIS)(*shares).mean()

    return loss


def test_the_mixed_cross_entropy_has_the_attacked_examples_first():
    logits = np.concatenate([ADVERSARIAL[:2], CLEAN[2:]])
    expected = -(TARGETS * log_softmax(logits, -1)).sum(-1).mean()
    found = compute(mixed_cross_entropy, CLEAN[2:], ADVERSARIAL[:2])
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("attacked", [2, NUM])
def test_trades(attacked):
    natural = -(TARGETS * log_softmax(CLEAN, -1)).sum(-1).mean()
    log_p, log_q = log_softmax(CLEAN, -1)[:attacked], log_softmax(ADVERSARIAL, -1)[:attacked]
    divergence = (np.exp(log_p) * (log_p - log_q)).sum() / NUM
    found = compute(partial(trades, beta=6.0), CLEAN, ADVERSARIAL[:attacked])
    assert found == pytest.approx(natural + 6 * divergence, rel=1e-5)


def test_mart():
    p, q = softmax(CLEAN, -1), softmax(ADVERSARIAL, -1)
    each = []
    for i, label in enumerate(LABELS):
        other = max(q[i, k] for k in range(CLASSES) if k != label)
        boosted = -np.log(q[i, label]) - np.log(1 - other)
        divergence = (p[i] * np.log(p[i] / q[i])).sum()
        each.append(boosted + 5 * divergence * (1 - p[i, label]))
    found = compute(partial(mart, weight=5.0), CLEAN, ADVERSARIAL)
    assert found == pytest.approx(np.mean(each), rel=1e-5)


def test_mart_is_finite_for_a_confident_error():
    logits = np.full((NUM, CLASSES), -100.0)
    logits[np.arange(NUM), (LABELS + 1) % CLASSES] = 100.0
    loss_fn = partial(mart, weight=5.0)
    assert np.isfinite(compute(loss_fn, logits, logits))
    arguments = jnp.asarray(LABELS), jnp.asarray(TARGETS)
    gradient = jax.grad(lambda x: loss_fn(x, x, *arguments))(jnp.asarray(logits))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_devices", [1, 2])
def test_ikl_is_a_sum_over_all_pairs_of_classes(num_devices):
    """The class means are over all devices."""
    predictions = softmax(CLEAN / 4, -1)
    means = [predictions[k == LABELS].mean(0) for k in range(CLASSES)]
    each = []
    for i, label in enumerate(LABELS):
        w = means[label]
        pairs = [
            w[j]
            * w[k]
            * ((CLEAN[i, j] - CLEAN[i, k]) - (ADVERSARIAL[i, j] - ADVERSARIAL[i, k])) ** 2
            for j in range(CLASSES)
            for k in range(CLASSES)
        ]
        natural = -(TARGETS[i] * log_softmax(CLEAN[i])).sum()
        soft = -(softmax(CLEAN[i]) * log_softmax(ADVERSARIAL[i])).sum()
        each.append(natural + 20 * sum(pairs) / 4 + 4 * soft)
    loss_fn = on_devices(partial(ikl, alpha=4.0, beta=20.0), num_devices)
    assert compute(loss_fn, CLEAN, ADVERSARIAL) == pytest.approx(np.mean(each), rel=1e-5)


def test_ikl_of_part_of_the_batch():
    """Examples that are not attacked add their cross entropy only, but count in the class means."""
    loss_fn = partial(ikl, alpha=4.0, beta=20.0)
    whole = compute(on_devices(loss_fn, 1), CLEAN, np.concatenate([ADVERSARIAL[:2], CLEAN[2:]]))
    entropies = -(softmax(CLEAN, -1) * log_softmax(CLEAN, -1)).sum(-1)[2:].sum() / NUM
    part = jax.vmap(loss_fn, axis_name=AXIS)
    found = part(*(jnp.asarray(x, jnp.float32)[None] for x in (CLEAN, ADVERSARIAL[:2])),
                 jnp.asarray(LABELS)[None], jnp.asarray(TARGETS, jnp.float32)[None])  # fmt: skip
    assert float(found[0]) == pytest.approx(whole - 4 * entropies, rel=1e-5)


def gradients_of_ikl(alpha, beta):
    def loss(clean, adversarial):
        loss_fn = on_devices(partial(ikl, alpha=alpha, beta=beta), 1)
        return loss_fn(clean, adversarial, jnp.asarray(LABELS), jnp.asarray(TARGETS))

    return jax.grad(loss, (0, 1))(jnp.asarray(CLEAN), jnp.asarray(ADVERSARIAL))


def test_the_soft_labels_of_ikl_are_constant():
    of_clean, of_adversarial = gradients_of_ikl(alpha=4.0, beta=0.0)
    np.testing.assert_allclose(of_clean, (softmax(CLEAN, -1) - TARGETS) / NUM, atol=1e-6)
    expected = 4 * (softmax(ADVERSARIAL, -1) - softmax(CLEAN, -1)) / NUM
    np.testing.assert_allclose(of_adversarial, expected, atol=1e-6)


def test_the_squared_error_of_ikl_moves_both_logits():
    """Its weights are constant."""
    of_clean, of_adversarial = gradients_of_ikl(alpha=0.0, beta=20.0)
    predictions = softmax(CLEAN / 4, -1)
    weights = np.stack([predictions[label == LABELS].mean(0) for label in LABELS])
    difference = CLEAN - ADVERSARIAL
    centred = difference - (weights * difference).sum(-1, keepdims=True)
    expected = 20 * weights * centred / NUM
    np.testing.assert_allclose(of_adversarial, -expected, atol=1e-5)
    natural = (softmax(CLEAN, -1) - TARGETS) / NUM
    np.testing.assert_allclose(of_clean, natural + expected, atol=1e-5)
