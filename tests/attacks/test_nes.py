"""NES on linear models, where the moments of the estimate and the steps are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SIZE, WEIGHTS, examples, flat, numpy_pgd

from jaxadv.attacks import BlackBox, nes
from jaxadv.attacks.black_box import make_query_fn
from jaxadv.attacks.nes import (
    GradientSampling,
    _halve_on_plateau,
    choose_chunk_size,
    estimate_gradient,
)
from jaxadv.core.devices import traced_for
from jaxadv.core.losses import make_objective, margin

KEY = jax.random.key(0)
BATCH = 400
IMAGES = jnp.full((BATCH, 4, 4, 3), 0.5)
LABELS = jnp.zeros(BATCH, jnp.int32)
TWO_CLASSES = jnp.stack([jnp.zeros(SIZE), jnp.asarray(WEIGHTS[:, 0], jnp.float32)], axis=1)


def two_classes(key, images):
    return images.reshape(-1, SIZE) @ TWO_CLASSES


def estimate(directions="normal", num_samples=20, logits_fn=two_classes, loss="margin", **changes):
    sampling = GradientSampling(
        **{"num_samples": num_samples, "chunk_size": 2, "sigma": jnp.float32(1e-3), **changes},
        directions=directions,
    )
    return estimate_gradient(
        KEY,
        make_query_fn(logits_fn),
        make_objective(loss, LABELS, None),
        IMAGES,
        jnp.arange(BATCH),
        jnp.ones(BATCH, bool),
        sampling,
    )[:2]


@pytest.mark.parametrize("num_samples", [20, 200])
@pytest.mark.parametrize(("directions", "extra"), [("normal", SIZE + 1), ("rademacher", SIZE - 1)])
def test_the_estimate_has_the_theoretical_mean_and_variance(directions, extra, num_samples):
    gradient = flat(estimate(directions, num_samples, sigma=jnp.float32(0.1))[0])
    w = WEIGHTS[:, 0]
    num_pairs = num_samples // 2
    # The mean of 400 estimates of one gradient: each coordinate within five standard errors.
    error = np.sqrt((w**2 + (w**2).sum()) / num_pairs / BATCH)
    assert (np.abs(gradient.mean(axis=0) - w) < 5 * error).all()
    squared_norm = (gradient**2).sum(axis=1) / (w**2).sum()
    assert squared_norm.mean() == pytest.approx(1 + extra / num_pairs, rel=0.05)
    cosine = gradient @ w / np.linalg.norm(gradient, axis=1) / np.linalg.norm(w)
    assert cosine.mean() == pytest.approx((1 + extra / num_pairs) ** -0.5, rel=0.05)


def test_the_mean_objective_is_that_of_the_queries():
    _, value = estimate(logits_fn=lambda key, x: two_classes(key, x) + jnp.array([0, 3]))
    np.testing.assert_allclose(value, 3, rtol=1e-3)


def noisy(key, images):
    return two_classes(key, images) + jax.random.normal(key, (len(images), 2))


@pytest.mark.parametrize("logits_fn", [two_classes, noisy])
def test_chunk_size_does_not_change_the_estimate(logits_fn):
    changes = {"logits_fn": logits_fn, "sigma": jnp.float32(0.1)}
    expected, _ = estimate(chunk_size=2, **changes)
    for chunk_size in (4, 20):
        gradient, _ = estimate(chunk_size=chunk_size, **changes)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_every_query_has_its_own_noise():
    gradient, _ = estimate(logits_fn=lambda key, x: noisy(key, x) * jnp.array([0, 1]), sigma=1.0)
    # Equal noise on both sides of a pair would cancel and not change the estimate.
    spread = flat(gradient - estimate(sigma=1.0)[0]).std()
    assert spread == pytest.approx(np.sqrt(2 / 10) / 2, rel=0.1)


@pytest.mark.parametrize("loss", ["probability", "cross_entropy", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_many_samples_it_matches_pgd(loss, norm):
    images, _ = examples(n=4, low=0.3, high=0.7)
    labels = LOGITS_FN(None, images).argmax(axis=1)
    budget = {"eps": 0.2, "step_size": 0.1, "norm": norm}
    found = nes(
        KEY, LOGITS_FN, images, labels, loss=loss, samples_per_gradient=20_000, sigma=1e-2,
        num_queries=40_001, early_stop=False, chunk_size=2000, **budget,
    )  # fmt: skip
    assert (found.steps == 2).all()
    assert (found.queries == 40_001).all()
    # The probability has the direction of the cross entropy.
    loss = "cross_entropy" if loss == "probability" else loss
    expected = numpy_pgd(WEIGHTS, images, images, labels, num_steps=2, loss=loss, **budget)
    moves, reference = flat(found.images - images), flat(expected - images)
    norms = np.linalg.norm(moves, axis=1) * np.linalg.norm(reference, axis=1)
    cosine = (moves * reference).sum(1) / norms
    assert cosine.min() > 0.9


def test_without_early_stop_it_spends_the_budget_and_checks_once():
    images, labels = examples(n=6)
    for num_queries, steps in ((0, 0), (1, 0), (40, 0), (41, 1), (80, 1), (81, 2)):
        found = nes(
            KEY, LOGITS_FN, images, labels, eps=0.1, step_size=0.02, num_queries=num_queries,
            samples_per_gradient=40, early_stop=False,
        )  # fmt: skip
        assert (found.steps == steps).all()
        assert (found.queries == steps * 40 + (num_queries > 0)).all()
        if num_queries:
            margins = margin(LOGITS_FN(None, found.images), labels)
            np.testing.assert_allclose(found.margins, margins, atol=1e-5)
            np.testing.assert_array_equal(found.success, margins > 0)


def test_momentum_averages_over_earlier_gradients():
    images, labels = examples(n=6)
    budget = {"eps": 0.5, "step_size": 0.01, "samples_per_gradient": 10, "early_stop": False}

    def run(num_queries, momentum):
        return nes(
            KEY, LOGITS_FN, images, labels, num_queries=num_queries, momentum=momentum,
            loss="margin", **budget,
        )  # fmt: skip

    # The first step without momentum shows the first gradient; the second is estimated here.
    first, once = flat(run(11, 0.0).extras.velocity), run(11, 0.6)
    np.testing.assert_allclose(flat(once.extras.velocity), 0.4 * first, rtol=1e-5)
    gradient_key, _ = jax.random.split(KEY)
    second = estimate_gradient(
        jax.random.fold_in(gradient_key, 1),
        make_query_fn(LOGITS_FN),
        make_objective("margin", labels, None),
        once.images,
        jnp.arange(6),
        jnp.ones(6, bool),
        GradientSampling(10, 2, "normal", jnp.float32(1e-3)),
    )
    expected = 0.6 * 0.4 * first + 0.4 * flat(second.gradient)
    np.testing.assert_allclose(flat(run(21, 0.6).extras.velocity), expected, atol=0.02)
    assert np.abs(flat(second.gradient) - first).max() > 1


def test_step_size_is_halved_where_the_loss_has_fallen():
    step_size, losses = jnp.array([0.04, 0.04, 0.04, 3e-5]), jnp.full((4, 3), -jnp.inf)
    least = jnp.float32(0.015)
    for loss in ([1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 9.0, 2.0]):
        step_size, losses = _halve_on_plateau(step_size, losses, jnp.array(loss), least)
        np.testing.assert_allclose(step_size, [0.04, 0.04, 0.04, 3e-5])  # too few losses so far
    step_size, losses = _halve_on_plateau(step_size, losses, jnp.array([3.0, 1.0, 1.0, 1.0]), least)
    np.testing.assert_allclose(step_size, [0.04, 0.02, 0.04, 3e-5])
    assert np.isneginf(losses[1]).all()
    np.testing.assert_allclose(losses[0], [1, 2, 3])
    for loss in (3.0, 2.0, 1.0):
        step_size, losses = _halve_on_plateau(step_size, losses, jnp.full(4, loss), least)
    np.testing.assert_allclose(step_size[1], 0.015)


def test_chunk_size_divides_the_number_of_samples():
    assert choose_chunk_size(LOGITS_FN, 100, None, 512) == 2
    assert choose_chunk_size(LOGITS_FN, 100, 7, 512) == 4
    assert choose_chunk_size(LOGITS_FN, 100, 1000, 512) == 100
    assert choose_chunk_size(BlackBox(len), 100, None, 20) == 100
    assert choose_chunk_size(BlackBox(len), 100, None, 128) == 10  # 2048 images, 16 each
    with traced_for("gpu"):
        assert choose_chunk_size(LOGITS_FN, 100, None, 512) == 10  # 16 fit, 10 divide
        assert choose_chunk_size(LOGITS_FN, 100, None, 10**6) == 2


def test_results_without_early_stop_cannot_be_resumed():
    arguments = {"eps": 0.1, "step_size": 0.1, "num_queries": 10, "samples_per_gradient": 4}
    found = nes(KEY, LOGITS_FN, *examples(n=4), **arguments)
    with pytest.raises(ValueError, match="resume needs early_stop"):
        nes(KEY, LOGITS_FN, *examples(n=4), **arguments, resume=found, early_stop=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_gradient": 5}, "samples_per_gradient is 5: it must be an even"),
        ({"samples_per_gradient": 0}, "samples_per_gradient is 0: it must be an even"),
        ({"sigma": 0.0}, "sigma is 0.0: it must be above 0"),
        ({"directions": "uniform"}, "directions is 'uniform': it must be one of normal"),
        ({"loss": "hinge"}, "loss is 'hinge': it must be one of"),
        ({"chunk_size": -2}, "chunk_size is -2"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"momentum": 1.0}, "momentum is 1.0: it must be from 0 to below 1"),
        ({"chunk_size": 1}, "chunk_size is 1"),
    ],
)
def test_invalid_arguments_raise_an_error_with_their_name(changes, message):
    arguments = {"eps": 0.1, "step_size": 0.1, "num_queries": 10, **changes}
    with pytest.raises(ValueError, match=message):
        nes(KEY, LOGITS_FN, *examples(n=4), **arguments)
