"""Steps of ODI, compared one by one with those that known weights of the logits give."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, WEIGHTS, examples, flat

from jaxadv.attacks import apgd, pgd
from jaxadv.attacks.odi import odi_objective
from jaxadv.attacks.pgd import PGD

KEY = jax.random.key(0)
CLASSES = 5
IMAGES, LABELS = examples(n=8)
IDS = jnp.arange(8)
EPS = {
    "linf": ("linf", jnp.float32(0.1)),
    "l2": ("l2", jnp.float32(0.5)),
    "linf, for each image": ("linf", jnp.linspace(0.01, 0.2, 8)),
    "l2, for each image": ("l2", jnp.linspace(0.01, 1, 8)),
    "linf, for each value": ("linf", jnp.abs(IMAGES[:1] - 0.5)),
}


def weights_of(key, ids, average="loss"):
    """The weights of an objective: its values for logits that are 1 for one class."""
    value = odi_objective(key, ids, CLASSES, average, lambda logits: logits[:, 0], jnp.bool_(True))
    return np.stack([value(jnp.ones((len(ids), 1)) * row) for row in jnp.eye(CLASSES)], axis=1)


def test_weights_are_uniform_and_belong_to_the_key_and_the_example():
    ids = jnp.arange(7, 407)
    weights = weights_of(KEY, ids)
    quantiles = np.quantile(weights, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-1, -0.5, 0, 0.5, 1], atol=0.06)
    assert np.abs(np.corrcoef(weights.T) - np.eye(CLASSES)).max() < 0.2
    np.testing.assert_array_equal(weights_of(KEY, ids[::-1][:9]), weights[::-1][:9])
    assert np.abs(weights_of(jax.random.key(1), ids) - weights).min(axis=1).max() > 0.1


def test_log_probabilities_have_the_sum_of_their_logits():
    logits = jax.random.normal(KEY, (8, CLASSES))
    first_logit = partial(jnp.take, indices=0, axis=1)
    value = odi_objective(KEY, IDS, CLASSES, "softmax", first_logit, jnp.bool_(True))
    np.testing.assert_allclose(value(jax.nn.log_softmax(logits)), value(logits), atol=1e-5)
    weights = weights_of(KEY, IDS)
    np.testing.assert_allclose(
        weights_of(KEY, IDS, "softmax"), weights - weights.mean(axis=1, keepdims=True), atol=1e-6
    )


def test_other_steps_have_the_objective_of_the_attack():
    logits = jax.random.normal(KEY, (8, CLASSES))
    third_logit = partial(jnp.take, indices=2, axis=1)
    value = odi_objective(KEY, IDS, CLASSES, "loss", third_logit, jnp.bool_(False))
    np.testing.assert_array_equal(value(logits), logits[:, 2])


def check_steps(iterates, weights, norm, eps):
    """Check that each iterate follows from the one before, by a step of length eps."""
    eps = np.asarray(eps if eps.ndim == 4 else eps.reshape(-1, 1, 1, 1))
    direction = (weights @ WEIGHTS.T).reshape(IMAGES.shape)

    def norms(delta):
        return np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))

    for before, after in pairwise(iterates):
        if norm == "linf":
            delta = np.clip(before + eps * np.sign(direction) - IMAGES, -eps, eps)
        else:
            delta = before + eps * direction / norms(direction) - IMAGES
            delta = delta * np.minimum(1, eps / norms(delta))
        np.testing.assert_allclose(after, np.clip(IMAGES + delta, 0, 1), atol=1e-5)
        assert np.abs(after - before).max() > 1e-3


averages = pytest.mark.parametrize("average", ["loss", "softmax"])


def iterates_of_pgd(norm, eps, **options):
    """The images that a model gets from PGD, whose own steps have length 0."""
    seen = []

    def logits_fn(key, images):
        jax.debug.callback(lambda images: seen.append(np.array(images)), images)
        return LOGITS_FN(key, images)

    attack = partial(pgd, eps=eps, norm=norm, step_size=0.0, num_steps=1, **options)
    attack(KEY, logits_fn, IMAGES, LABELS)
    jax.effects_barrier()
    return seen


@averages
@pytest.mark.parametrize(("norm", "eps"), EPS.values(), ids=EPS)
def test_steps_of_pgd(norm, eps, average):
    seen = iterates_of_pgd(norm, eps, num_odi_steps=2, noise_average=average)
    calls = {"loss": 1, "softmax": 2}[average]  # of the model for each gradient
    assert len(seen) == 3 * calls
    key = jax.random.fold_in(jax.random.split(KEY)[0], 0)
    weights = weights_of(jax.random.split(key, 3)[2], IDS, average)
    check_steps(seen[::calls], weights, norm, eps)


def test_restarts_of_pgd_have_other_weights():
    iterates = iterates_of_pgd(*EPS["linf"], num_odi_steps=2, num_restarts=2)
    signs = [np.sign(iterates[i] - IMAGES) for i in (2, 6)]  # 3 gradients and a margin for each
    assert len(iterates) == 8
    assert 0.2 < (signs[0] != signs[1]).mean() < 0.8


@pytest.mark.parametrize("num_steps", [0, 4])
def test_gradients_of_the_start_are_counted(num_steps):
    budget = {"eps": 0.1, "step_size": 0.02, "num_steps": num_steps}
    restarts = {"num_odi_steps": 2, "num_restarts": 3}
    result = pgd.__wrapped__(KEY, LOGITS_FN, IMAGES, LABELS, **budget, **restarts)
    np.testing.assert_array_equal(result.gradients, 3 * (num_steps + 2) if num_steps else 0)
    np.testing.assert_array_equal(result.queries, result.gradients)
    assert PGD.max_queries({**budget, **restarts}) == result.queries[0]


@pytest.mark.parametrize(
    ("norm", "eps", "average"),
    [*((*case, "loss") for case in EPS.values()), (*EPS["linf"], "softmax")],
    ids=[*EPS, "softmax"],
)
def test_steps_of_apgd(norm, eps, average):
    def safe(key, images):  # no run ends early
        return LOGITS_FN(key, images) + 1000 * jax.nn.one_hot(LABELS, CLASSES)

    attack = partial(apgd, KEY, safe, IMAGES, LABELS, norm=norm, eps=eps, num_steps=3)
    restarts = {"num_targets": 2, "num_restarts": 2, "noise_average": average}
    run = partial(attack, num_odi_steps=2, **restarts)
    odi_key = jax.random.split(KEY, 4)[3]
    for number in range(4):  # each takes a gradient at its start, for 2 steps of ODI and 3 others
        results = [run(num_queries=6 * number + n) for n in (1, 2, 3)]
        iterates = [result.extras.state.iterate for result in results]
        weights = weights_of(jax.random.fold_in(odi_key, number), IDS, average)
        check_steps([np.asarray(iterate) for iterate in iterates], weights, norm, eps)
    assert (run().queries == 24).all()
    assert flat(run().images - IMAGES).any()
