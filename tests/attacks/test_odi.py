"""Steps of ODI, before the loss: on a linear model their end has a closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, WEIGHTS, examples, flat, length

from jaxadv.attacks import apgd, pgd
from jaxadv.attacks.odi import odi_objective

KEY = jax.random.key(0)
IDS = jnp.arange(7, 407)
EPS = {"linf": 0.01, "l2": 0.1}  # the box of the images does not matter
CLASSES = 5


def weights_of(key, ids):
    """The weights of an objective: its values for logits that are 1 for one class."""
    value = odi_objective(key, ids, CLASSES, lambda logits: logits[:, 0], jnp.bool_(True))
    return np.stack([value(jnp.ones((len(ids), 1)) * row) for row in jnp.eye(CLASSES)], axis=1)


def test_weights_are_uniform_and_belong_to_the_key_and_the_example():
    weights = weights_of(KEY, IDS)
    quantiles = np.quantile(weights, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-1, -0.5, 0, 0.5, 1], atol=0.06)
    assert np.abs(np.corrcoef(weights.T) - np.eye(CLASSES)).max() < 0.2
    np.testing.assert_array_equal(weights_of(KEY, IDS[::-1][:9]), weights[::-1][:9])
    assert np.abs(weights_of(jax.random.key(1), IDS) - weights).min(axis=1).max() > 0.1


def test_other_steps_have_the_objective_of_the_attack():
    logits = jax.random.normal(KEY, (len(IDS), CLASSES))
    value = odi_objective(KEY, IDS, CLASSES, lambda logits: logits[:, 2] * 3, jnp.bool_(False))
    np.testing.assert_array_equal(value(logits), 3 * logits[:, 2])


def record_iterates(attack, norm, **options):
    """Run an attack on a linear model; return the images that the model saw, and the result."""
    seen = []

    def logits_fn(key, images):
        jax.debug.callback(lambda images: seen.append(np.array(images)), images)
        return LOGITS_FN(key, images)

    images, labels = examples(low=0.3, high=0.7)
    result = attack(KEY, logits_fn, images, labels, eps=EPS[norm], norm=norm, **options)
    jax.effects_barrier()
    return [flat(iterate - images) for iterate in seen], result


def explained(delta, norm):
    """How well weighted logits explain each perturbation: the share of signs, or the cosine."""
    # In L2 the end is in the span of the model's weights. In L-inf it is the sign of a vector in
    # the span, which linear regression approximates.
    coefficients = np.linalg.lstsq(WEIGHTS, delta.T, rcond=None)[0]
    fitted = (WEIGHTS @ coefficients).T
    if norm == "linf":
        return (np.sign(fitted) == np.sign(delta)).mean(axis=1)
    return (fitted * delta).sum(axis=1) / np.linalg.norm(fitted, axis=1) / length(delta, "l2")


@pytest.mark.parametrize("norm", EPS)
def test_starts_of_pgd_end_on_the_ball_where_weighted_logits_ascend(norm):
    steps = {"step_size": 0.0, "num_steps": 1, "num_odi_steps": 3}
    iterates, _ = record_iterates(pgd, norm, **steps)
    assert len(iterates) == 4
    np.testing.assert_allclose(length(iterates[-1], norm), EPS[norm], rtol=1e-4)
    assert explained(iterates[0], norm).mean() < 0.75
    assert explained(iterates[-1], norm).min() > 0.85


def test_restarts_of_pgd_have_other_weights():
    steps = {"step_size": 0.0, "num_steps": 1, "num_odi_steps": 2, "num_restarts": 2}
    iterates, _ = record_iterates(pgd, "linf", **steps)
    signs = [np.sign(iterates[i]) for i in (2, 6)]  # 3 gradients and a margin for each restart
    assert len(iterates) == 8
    assert 0.2 < (signs[0] != signs[1]).mean() < 0.8


@pytest.mark.parametrize("num_steps", [0, 4])
def test_gradients_of_the_start_are_counted(num_steps):
    images, labels = examples()
    result = pgd.__wrapped__(
        KEY, LOGITS_FN, images, labels, eps=0.1, step_size=0.02, num_steps=num_steps,
        num_odi_steps=2, num_restarts=3,
    )  # fmt: skip
    np.testing.assert_array_equal(result.gradients, 3 * (num_steps + 2) if num_steps else 0)
    np.testing.assert_array_equal(result.queries, result.gradients)


@pytest.mark.parametrize("norm", EPS)
def test_starts_of_apgd_end_on_the_ball_where_weighted_logits_ascend(norm):
    images, labels = examples(low=0.3, high=0.7)

    def safe(key, images):
        return LOGITS_FN(key, images) + 100 * jax.nn.one_hot(labels, CLASSES)

    run = partial(apgd, KEY, safe, images, labels, norm=norm, eps=EPS[norm], num_steps=5)
    random, diversified = (
        flat(run(num_odi_steps=3, num_queries=n).extras.state.iterate - images) for n in (1, 4)
    )
    np.testing.assert_allclose(length(diversified, norm), EPS[norm], rtol=1e-4)
    assert explained(random, norm).mean() < 0.75
    assert explained(diversified, norm).min() > 0.85
    assert (run(num_odi_steps=3).queries == 9).all()
