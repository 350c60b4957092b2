"""Randomness of FGSM and PGD: starts, restarts and the noise of the model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import (
    LOGITS_FN,
    ORDERS,
    SHAPE,
    SIZE,
    apply,
    examples,
    flat,
    length,
    random_weights,
)

from jaxadv.attacks import fgsm, pgd
from jaxadv.core.losses import margin

KEY = jax.random.key(0)
BUDGET = {"eps": 0.1, "step_size": 0.02, "num_steps": 2}

all_norms = pytest.mark.parametrize("norm", ORDERS)


def test_default_ids_are_positions_and_give_different_starts():
    images, labels = jnp.full((32, *SHAPE), 0.5), jnp.zeros(32, jnp.int32)
    by_default = pgd(KEY, LOGITS_FN, images, labels, **BUDGET)
    numbered = pgd(KEY, LOGITS_FN, images, labels, example_ids=jnp.arange(32), **BUDGET)
    np.testing.assert_array_equal(by_default, numbered)
    assert len(np.unique(flat(by_default), axis=0)) == 32


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_starts_depend_on_the_key(num_restarts):
    images, labels = examples()

    def attack(seed):
        key = jax.random.key(seed)
        return pgd(key, LOGITS_FN, images, labels, num_restarts=num_restarts, **BUDGET)

    np.testing.assert_array_equal(attack(0), attack(0))
    assert length(attack(0) - attack(1), "linf").min() > 0.01


def test_clean_starts_ignore_the_key():
    images, labels = examples()
    first, other = (
        pgd(jax.random.key(seed), LOGITS_FN, images, labels, random_start=False, **BUDGET)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, other)


def recorded(calls, record):
    """A model that appends `record(key, images)` to `calls` at each forward pass."""

    def logits_fn(key, images):
        jax.debug.callback(lambda seen: calls.append(np.array(seen)), record(key, images))
        return LOGITS_FN(key, images)

    return logits_fn


@pytest.mark.parametrize("num_noise_samples", [1, 2])
@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_every_noise_sample_has_its_own_key(num_noise_samples, loss):
    # All restarts are compared under equal noise samples, which no restart has seen. The reference
    # prediction of the KL divergence has its own samples too.
    calls = []
    logits_fn = recorded(calls, lambda key, images: jax.random.key_data(key))
    pgd(
        KEY, logits_fn, *examples(), eps=0.1, step_size=0.02, num_steps=4, loss=loss,
        num_restarts=3, num_noise_samples=num_noise_samples,
    )  # fmt: skip
    jax.effects_barrier()
    references = loss == "kl"
    assert len(calls) == (references + 3 * (4 + 1)) * num_noise_samples
    assert len(np.unique(calls, axis=0)) == (references + 3 * 4 + 1) * num_noise_samples


@pytest.mark.parametrize("targeted", [False, True])
def test_each_example_keeps_its_restart_with_the_largest_margin(targeted):
    calls = []
    images, labels = examples()
    targets = (labels + 1) % 5
    # With steps of length 0 every restart is its start, which the model evaluates before the step
    # and again for its margin.
    worst = pgd(
        KEY, recorded(calls, lambda key, images: images), images, labels,
        eps=0.1, step_size=0, num_steps=1, num_restarts=4, targets=targets if targeted else None,
    )  # fmt: skip
    jax.effects_barrier()
    restarts = np.unique(calls, axis=0)
    assert len(restarts) == 4
    logits = [LOGITS_FN(KEY, jnp.asarray(restart)) for restart in restarts]
    scores = [-margin(each, targets) if targeted else margin(each, labels) for each in logits]
    chosen = np.argmax(scores, axis=0)
    assert len(set(chosen.tolist())) == 4
    np.testing.assert_array_equal(worst, restarts[chosen, np.arange(32)])


def test_more_restarts_never_decrease_a_margin():
    images, labels = examples()
    once, restarted = (
        margin(
            LOGITS_FN(KEY, pgd(KEY, LOGITS_FN, images, labels, num_restarts=n, **BUDGET)), labels
        )
        for n in (1, 3)
    )
    assert (restarted >= once - 1e-5).all()
    assert (restarted > once + 0.01).any()


def noisy_logits_fn(key, images):
    """A linear model of two classes with new noise on its weights in every forward pass."""
    noise = 2 * jax.random.normal(key, (SIZE, 2))
    return apply(random_weights(2) + noise, key, images)


@all_norms
def test_averaging_does_not_change_deterministic_models(norm):
    attack = partial(pgd, KEY, LOGITS_FN, *examples(), norm=norm, random_start=False, **BUDGET)
    np.testing.assert_allclose(attack(num_noise_samples=8), attack(), atol=1e-6)


def test_averaging_approximates_the_mean_gradient():
    images, _ = examples(low=0.4, high=0.6)
    labels = jnp.zeros(32, jnp.int32)
    mean_weights = random_weights(2)
    direction = np.sign(mean_weights[:, 1] - mean_weights[:, 0])

    def agreement(num_noise_samples):
        adversarial = fgsm(
            KEY, noisy_logits_fn, images, labels, eps=0.1, loss="margin",
            num_noise_samples=num_noise_samples,
        )  # fmt: skip
        return (np.sign(flat(adversarial - images)) == direction).mean()

    assert agreement(1) < 0.75
    assert agreement(256) > 0.9


def test_every_step_samples_new_noise():
    images, labels = jnp.full((1, *SHAPE), 0.5), jnp.zeros(1, jnp.int32)
    attack = partial(
        pgd, KEY, noisy_logits_fn, images, labels, eps=0.5, step_size=0.01, random_start=False
    )
    path = [flat(attack(num_steps=num_steps))[0] for num_steps in range(6)]
    directions = np.sign(np.diff(path, axis=0))
    assert len(np.unique(directions, axis=0)) == 5
