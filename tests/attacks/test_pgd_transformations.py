"""FGSM and PGD inside JAX transformations."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, images_of, run
from linear_model import LOGITS_FN, WEIGHTS, apply, examples

from jaxadv.attacks import pgd
from jaxadv.attacks.pgd import _pgd

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
PARAMS = jnp.asarray(WEIGHTS, jnp.float32)
BUDGETS = [(0.0, 0.0, 0), (0.1, 0.05, 1), (0.1, 0.02, 5), (0.3, 0.1, 2), (0.2, 0.1, 9)]


def attack(params, images, labels, **options):
    options = {"eps": 0.1, "step_size": 0.02, "num_steps": 3, "random_start": False} | options
    return pgd(KEY, partial(apply, params), images, labels, **options)


@pytest.mark.parametrize("options", [{"random_start": False}, {"num_restarts": 2}])
def test_one_compilation_serves_every_budget(options):
    def logits_fn(key, images):
        return LOGITS_FN(key, images)

    before = _pgd.__wrapped__._cache_size()
    results = [
        pgd(
            KEY, logits_fn, *examples(), eps=eps, step_size=step_size, num_steps=num_steps,
            **options,
        )
        for eps, step_size, num_steps in BUDGETS
    ]  # fmt: skip
    assert len(np.unique(results, axis=0)) == 5
    assert _pgd.__wrapped__._cache_size() <= before + 1


def test_budgets_can_be_traced():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def attacked(eps, step_size, num_steps):
        return pgd(
            KEY, LOGITS_FN, *examples(), eps=eps, step_size=step_size, num_steps=num_steps,
            random_start=False,
        )  # fmt: skip

    for budget in BUDGETS:
        np.testing.assert_allclose(attacked(*budget), attacked.__wrapped__(*budget), atol=1e-6)


def test_jit_over_parameters():
    images, labels = examples()
    jitted = jax.jit(lambda params: attack(params, images, labels))
    for params in (PARAMS, -PARAMS):
        eager = attack(params, images, labels)
        np.testing.assert_allclose(jitted(params), eager, atol=1e-6)


def test_pmap_over_devices():
    assert jax.device_count() == 2
    batch = (*examples(), jnp.arange(32))

    def attacked(params, images, labels, ids):
        return attack(params, images, labels, example_ids=ids, random_start=True)

    halves = [array.reshape(2, 16, *array.shape[1:]) for array in batch]
    found = jax.pmap(attacked, in_axes=(None, 0, 0, 0))(PARAMS, *halves)
    np.testing.assert_allclose(found.reshape(batch[0].shape), attacked(PARAMS, *batch), atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_through_an_attack_are_zero(name):
    images, labels = examples()

    def total(params, images):
        return images_of(run(name, partial(apply, params), images, labels)).sum()

    for gradient in jax.grad(total, argnums=(0, 1))(PARAMS, images):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("num_restarts", [1, 2])
def test_single_precision_is_kept_in_64_bit_mode(num_restarts):
    images, labels = examples()
    with jax.enable_x64(True):
        adversarial = jax.eval_shape(
            partial(attack, random_start=True, num_restarts=num_restarts), PARAMS, images, labels
        )
    assert adversarial.dtype == jnp.float32
