"""Auto-PGD in L1, compared with the algorithm of the paper for one image at a time."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import (
    LOGITS_FN,
    SIZE,
    WEIGHTS,
    examples,
    flat,
    l1_projection,
    length,
    radii,
)

from jaxadv.attacks import apgd, pgd
from jaxadv.attacks.apgd_l1 import schedule
from jaxadv.core.losses import margin

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
EPS = 1.5
NUM_STEPS = 60  # phases of 18, 18 and 24 steps
HIDDEN, OUT = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(SIZE, 8), (8, 5)]))


def safe(key, images):
    """A nonlinear model of five classes that is robust in the ball: class 0 has a large margin."""
    hidden, out = (jnp.asarray(weights, images.dtype) for weights in (HIDDEN, OUT))
    logits = jnp.tanh(images.reshape(-1, SIZE) @ hidden) @ out
    return logits + 12 * (jnp.arange(5) == 0)


@jax.jit
def evaluate(x):
    return jax.value_and_grad(lambda x: margin(safe(None, x[None]), jnp.zeros(1, int))[0])(x)


def value_and_gradient(x):
    value, gradient = evaluate(x)
    return float(value), np.asarray(gradient)


def project(image, x, radius):
    return image + l1_projection(image[None], (x - image)[None], radius)[0]


def reference(image, start):
    """Yield iterate, step size and best loss after each step of each phase, for one image."""
    best = (-np.inf, start)
    for radius, num_steps in ((3 * EPS, 18), (2 * EPS, 18), (EPS, 24)):
        x = project(image, best[1], radius)
        loss, gradient = value_and_gradient(x)
        best, step_size = (loss, x, gradient), radius
        num_changed = (x != image).sum()
        yield x, step_size, best[0]
        for _ in range(num_steps):
            count = max(math.ceil(num_changed / 1.5), 1)
            sparse = np.zeros(SIZE)
            largest = np.argsort(-np.abs(gradient))[:count]
            sparse[largest] = np.sign(gradient[largest]) / count
            x = project(image, x + step_size * sparse, radius)
            loss, gradient = value_and_gradient(x)
            if loss > best[0]:
                best = (loss, x, gradient)
            # 4 % of the steps of a phase are less than 1, so each step is a checkpoint.
            before, num_changed = num_changed, (best[1] != image).sum()
            if num_changed < 0.95 * before:
                step_size, (_, x, gradient) = radius, best
            else:
                step_size = max(step_size / 1.5, radius / 10)
            yield x, step_size, best[0]


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


def test_matches_the_algorithm_of_the_paper(double_precision):
    images, labels = jnp.asarray(examples(n=3)[0], jnp.float64), jnp.zeros(3, jnp.int32)
    run = partial(
        apgd, KEY, safe, images, labels, eps=EPS, norm="l1", loss="margin", num_steps=NUM_STEPS
    )
    start = run(num_queries=1).extras.state.iterate
    budgets = (2, 3, 5, 19, 20, 30, 38, 39, 50, 63)
    results = {n: run(num_queries=n) for n in budgets}
    for i in range(3):
        steps = reference(flat(images)[i], flat(start)[i])
        for k, (x, step_size, best) in enumerate(steps, start=1):
            if k in results:
                state = results[k].extras.state
                np.testing.assert_allclose(state.iterate[i].ravel(), x, atol=1e-6)
                assert state.step_size[i] == pytest.approx(step_size)
                assert state.best_loss[i] == pytest.approx(best, abs=1e-6)
        assert k == 63
    assert (results[63].queries == 63).all()


def test_phases_shrink_the_ball():
    plan = schedule(100)
    starts = np.flatnonzero(plan.is_start)
    np.testing.assert_array_equal(starts, [0, 31, 62])
    np.testing.assert_array_equal(plan.radius[starts], [3, 2, 1])
    assert len(plan.radius) == 103
    assert not plan.is_checkpoint[starts].any()
    assert schedule(1).radius.tolist() == [3, 3, 2, 1]
    assert np.bincount(schedule(25).radius.astype(int)).tolist() == [0, 10, 9, 9]


def test_checkpoints_are_after_4_percent_of_a_phase():
    checkpoints = np.flatnonzero(schedule(500).is_checkpoint)  # phases of 150, 150 and 200 steps
    expected = [*range(6, 151, 6), *range(151 + 6, 302, 6), *range(302 + 8, 503, 8)]
    assert checkpoints.tolist() == expected


@pytest.mark.parametrize("num_queries", [40, 41, 62, 63])
def test_only_iterates_in_the_ball_count(num_queries):
    """With 60 steps the first 38 iterates lie in larger balls."""
    images, _ = examples(n=32, low=0.3, high=0.7)
    labels = LOGITS_FN(None, images).argmax(1)
    found = apgd(
        KEY, LOGITS_FN, images, labels, eps=0.2, norm="l1", num_steps=60, num_queries=num_queries
    )
    assert (length(found.images - images, "l1") <= 0.2 * (1 + 1e-5)).all()
    assert (np.asarray(found.queries)[np.asarray(found.success)] > 38).all()
    wrong = LOGITS_FN(None, found.images).argmax(1) != labels
    np.testing.assert_array_equal(found.success, wrong)
    assert wrong.any()


def test_finds_the_misclassified_images_of_a_linear_model():
    images, _ = examples(n=64, low=0.3, high=0.7)
    labels = LOGITS_FN(None, images).argmax(1)
    distances = radii(WEIGHTS, images, labels, "l1")
    eps = float(np.quantile(distances, 0.4))
    assert eps < 0.25  # within the box
    found = apgd(KEY, LOGITS_FN, images, labels, eps=eps, norm="l1", num_targets=4, loss="margin")
    is_clear = np.abs(distances / eps - 1) > 0.01
    np.testing.assert_array_equal(found.success[is_clear], distances[is_clear] < eps)


def test_fools_a_network_that_pgd_leaves_robust(digits_net):
    """At equal gradients; steps of PGD change 1 % of the values."""
    options = {"eps": 12.0, "norm": "l1", "loss": "margin"}
    found = apgd(KEY, *digits_net, num_steps=40, **options)
    adversarial = pgd(KEY, *digits_net, num_steps=43, step_size=3.0, random_start=False, **options)
    wrong = digits_net.logits_fn(None, adversarial).argmax(1) != digits_net.labels
    assert found.success.sum() > wrong.sum()
