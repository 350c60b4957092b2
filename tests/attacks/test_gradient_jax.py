"""FGSM and PGD inside of JAX's transformations."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import apply, examples, random_weights

from jaxadv.attacks import fgsm, pgd

KEY = jax.random.key(0)
WEIGHTS = jnp.asarray(random_weights(5), jnp.float32)
BUDGET = {"eps": 0.1, "step_size": 0.02, "num_steps": 3}


def attack(weights, images, labels, **options):
    return pgd(KEY, partial(apply, weights), images, labels, **BUDGET | options)


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_one_compilation_serves_every_budget(num_restarts):
    # Each compilation runs the model's Python code once for the step, once for the score;
    # the check of the inputs runs it once more.
    @chex.assert_max_traces(n=1 + num_restarts)
    def logits_fn(key, images):
        return apply(WEIGHTS, key, images)

    images, labels = examples(5)
    results = [
        pgd(
            KEY, logits_fn, images, labels, num_restarts=num_restarts,
            eps=eps, step_size=eps / 3, num_steps=num_steps,
        )
        for eps, num_steps in [(0, 0), (0.1, 1), (0.1, 7), (0.2, 7), (jnp.float32(0.3), jnp.int32(3))]
    ]  # fmt: skip
    assert len(np.unique(results, axis=0)) == 5


def test_budget_may_be_traced():
    images, labels = examples(5)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def attacked(eps, step_size, num_steps):
        return attack(WEIGHTS, images, labels, eps=eps, step_size=step_size, num_steps=num_steps)

    for budget in ((0.0, 0.0, 0), (0.1, 0.05, 1), (0.1, 0.02, 5), (0.3, 0.1, 2), (0.2, 0.1, 9)):
        eager = attack(
            WEIGHTS,
            images,
            labels,
            **dict(zip(("eps", "step_size", "num_steps"), budget, strict=True)),
        )
        np.testing.assert_allclose(attacked(*budget), eager, atol=1e-6)


def test_jit_over_parameters():
    images, labels = examples(5)
    jitted = jax.jit(lambda weights: attack(weights, images, labels))
    for weights in (WEIGHTS, -WEIGHTS):
        np.testing.assert_allclose(jitted(weights), attack(weights, images, labels), atol=1e-6)


def test_pmap_over_devices():
    images, labels = examples(5, n=8)
    ids = jnp.arange(8)

    def split(batch):
        return batch.reshape(2, 4, *batch.shape[1:])

    mapped = jax.pmap(
        lambda weights, images, labels, ids: attack(weights, images, labels, example_ids=ids),
        in_axes=(None, 0, 0, 0),
    )
    shares = mapped(WEIGHTS, split(images), split(labels), split(ids))
    np.testing.assert_allclose(
        shares.reshape(images.shape), attack(WEIGHTS, images, labels), atol=1e-6
    )


@pytest.mark.parametrize(
    "attack", [attack, lambda *args: fgsm(KEY, partial(apply, args[0]), *args[1:], eps=0.1)]
)
def test_nothing_differentiates_through_an_attack(attack):
    images, labels = examples(5)
    gradient = jax.grad(lambda weights: attack(weights, images, labels).sum())(WEIGHTS)
    np.testing.assert_array_equal(gradient, 0)


def test_double_precision_elsewhere_changes_nothing():
    images, labels = examples(5)
    with jax.enable_x64(True):
        for num_restarts in (1, 2):
            assert attack(WEIGHTS, images, labels, num_restarts=num_restarts).dtype == jnp.float32
