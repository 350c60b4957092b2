"""Results of FGSM and PGD: known answers, the ball and the box, an undefended network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import (
    LOGITS_FN,
    ORDERS,
    WEIGHTS,
    disjoint_weights,
    examples,
    length,
    linear,
    numpy_pgd,
    radii,
    random_weights,
)

from jaxadv.attacks import fgsm, n_fgsm, pgd

KEY = jax.random.key(0)
MODELS = {"binary": random_weights(2), "multiclass": disjoint_weights(6)}
ATTACKS = {
    "fgsm": fgsm,
    "pgd": lambda *args, eps, **options: pgd(
        *args, eps=eps, step_size=eps / 4, num_steps=6, random_start=False, **options
    ),
}
BUDGETS = {
    "linf": {"eps": 0.1, "step_size": 0.03},
    "l2": {"eps": 0.5, "step_size": 0.15},
    "l1": {"eps": 2.0, "step_size": 0.7},
}

all_norms = pytest.mark.parametrize("norm", ORDERS)
both_losses = pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
both_models = pytest.mark.parametrize("weights", MODELS.values(), ids=MODELS)
with_and_without_restarts = pytest.mark.parametrize("num_restarts", [1, 3])


def num_correct(logits_fn, images, labels):
    return int((logits_fn(KEY, images).argmax(axis=1) == labels).sum())


def eps_with_survivors(num_survivors, weights, images, labels, norm):
    """A radius between the distances of two images, so that rounding errors do not matter."""
    distances = np.sort(radii(weights, images, labels, norm))
    eps = float(distances[-num_survivors - 1 :][:2].mean())
    assert 0 < eps < 0.4, "the faces of the box would interfere"
    return eps


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@both_models
@all_norms
def test_accuracy_on_a_linear_model_has_the_closed_form(attack, weights, norm):
    logits_fn = linear(weights)
    images, labels = examples(weights.shape[1], n=64, low=0.4, high=0.6)
    for num_survivors in (1, 2, 4):
        eps = eps_with_survivors(num_survivors, weights, images, labels, norm)
        adversarial = attack(KEY, logits_fn, images, labels, eps=eps, norm=norm, loss="margin")
        assert num_correct(logits_fn, adversarial, labels) == num_survivors


@both_models
def test_cross_entropy_raises_all_other_classes_at_once(weights):
    # This is possible in L-inf, because the classes of the model use different pixels.
    images, labels = examples(weights.shape[1], n=64, low=0.4, high=0.6)
    eps = eps_with_survivors(4, weights, images, labels, "linf")
    adversarial = fgsm(KEY, linear(weights), images, labels, eps=eps)
    assert num_correct(linear(weights), adversarial, labels) == 4


@all_norms
@both_losses
def test_targets_are_reached_where_they_are_in_the_ball(norm, loss):
    weights = random_weights(2)
    images, labels = examples(2, n=64, low=0.4, high=0.6)
    eps = eps_with_survivors(4, weights, images, labels, norm)
    adversarial = fgsm(
        KEY, linear(weights), images, labels, eps=eps, norm=norm, loss=loss, targets=1 - labels
    )
    assert num_correct(linear(weights), adversarial, 1 - labels) == 60


@both_losses
def test_targets_differ_from_other_wrong_classes(loss):
    logits_fn = linear(disjoint_weights(6))
    images, labels = examples(6, n=64, low=0.4, high=0.6)
    targets = (labels + 2) % 6
    attack = partial(ATTACKS["pgd"], KEY, logits_fn, images, labels, eps=0.3, loss=loss)
    assert num_correct(logits_fn, attack(targets=targets), targets) == 64
    assert num_correct(logits_fn, attack(), targets) < 32


def test_margin_has_a_gradient_where_cross_entropy_is_saturated():
    logits_fn = linear(1e4 * random_weights(2))
    images, _ = examples(2)
    labels = logits_fn(KEY, images).argmax(axis=1)
    attack = partial(fgsm, KEY, logits_fn, images, labels, eps=0.3)
    np.testing.assert_array_equal(attack(), images)
    assert num_correct(logits_fn, attack(loss="margin"), labels) == 0


@all_norms
@both_losses
def test_matches_numpy_after_every_step(norm, loss):
    images, labels = examples()
    for num_steps in range(1, 9):
        options = {"num_steps": num_steps, "norm": norm, "loss": loss, **BUDGETS[norm]}
        found = pgd(KEY, LOGITS_FN, images, labels, random_start=False, **options)
        expected = numpy_pgd(WEIGHTS, images, images, labels, **options)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@all_norms
def test_matches_numpy_from_a_random_start(norm):
    images, labels = examples()
    options = {"norm": norm, "loss": "cross_entropy", **BUDGETS[norm]}
    attack = partial(pgd, KEY, LOGITS_FN, images, labels)
    start = attack(**options | {"num_steps": 1, "step_size": 0})
    assert length(start - images, norm).min() > options["eps"] / 2
    found = attack(num_steps=5, **options)
    expected = numpy_pgd(WEIGHTS, start, images, labels, num_steps=5, **options)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@all_norms
@with_and_without_restarts
@pytest.mark.parametrize("seed", range(3))
def test_results_are_in_the_ball_and_the_box(norm, num_restarts, seed):
    images, labels = examples(seed=seed)
    eps = {"linf": 0.3, "l2": 2.0, "l1": 6.0}[norm]
    adversarial = pgd(
        jax.random.key(seed), LOGITS_FN, images, labels, eps=eps, step_size=eps, num_steps=3,
        norm=norm, num_restarts=num_restarts,
    )  # fmt: skip
    assert adversarial.min() == 0
    assert adversarial.max() == 1
    lengths = length(adversarial - images, norm)
    assert lengths.min() > eps / 2
    assert lengths.max() <= eps * (1 + 3e-6)


@all_norms
@with_and_without_restarts
@pytest.mark.parametrize("zero", [{"eps": 0}, {"num_steps": 0}])
def test_zero_budget_returns_the_clean_images(norm, num_restarts, zero):
    images, labels = examples()
    budget = {"eps": 0.3, "step_size": 0.1, "num_steps": 3} | zero
    adversarial = pgd(
        KEY, LOGITS_FN, images, labels, norm=norm, num_restarts=num_restarts, **budget
    )
    np.testing.assert_array_equal(adversarial, images)


@all_norms
@with_and_without_restarts
@pytest.mark.parametrize(
    ("dtype", "logits_dtype"), [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float16)]
)
def test_half_precision_is_cast_to_single(norm, num_restarts, dtype, logits_dtype):
    images, labels = examples()

    def logits_fn(key, images):
        return LOGITS_FN(key, images).astype(logits_dtype)

    def attack(images):
        return pgd(
            KEY, logits_fn, images, labels, eps=0.1, step_size=0.1, num_steps=2, norm=norm,
            num_restarts=num_restarts,
        )  # fmt: skip

    adversarial = jax.eval_shape(attack, images.astype(dtype))
    assert (adversarial.shape, adversarial.dtype) == (images.shape, jnp.float32)


@pytest.fixture
def num_survivors(digits_net):
    """The number of images that an attack leaves correctly classified."""
    logits_fn, images, labels = digits_net

    def count(attack, **options):
        return num_correct(logits_fn, attack(KEY, logits_fn, images, labels, **options), labels)

    return count


def test_undefended_networks_have_no_robust_accuracy(digits_net, num_survivors):
    num_clean = num_correct(*digits_net)
    assert num_clean > 0.8 * len(digits_net.labels)
    attack = partial(num_survivors, ATTACKS["pgd"])
    assert attack(eps=0.3) == 0
    assert attack(eps=0.3, loss="margin") == 0
    assert attack(eps=10, norm="l2") == 0
    assert num_survivors(fgsm, eps=0.3) < num_clean / 2


def test_accuracy_decreases_with_eps(digits_net, num_survivors):
    counts = [num_survivors(ATTACKS["pgd"], eps=eps) for eps in (0, 0.02, 0.05, 0.1, 0.15, 0.2)]
    assert counts[0] == num_correct(*digits_net)
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3


def test_accuracy_decreases_with_steps(num_survivors):
    counts = [
        num_survivors(pgd, eps=0.1, step_size=0.02, num_steps=num_steps, random_start=False)
        for num_steps in (0, 1, 2, 5, 20)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[1] > counts[-1]


def test_accuracy_decreases_with_restarts(num_survivors):
    once, restarted = (
        num_survivors(pgd, eps=0.1, step_size=0.05, num_steps=1, num_restarts=num_restarts)
        for num_restarts in (1, 4)
    )
    assert restarted < once


def test_kl_loss_ignores_the_labels():
    images, labels = jnp.full((4, 2, 2, 1), 0.5), jnp.array([0, 1, 0, 1])

    def logits_fn(key, images):
        return 3 * images.sum((1, 2, 3))[:, None] * jnp.array([1.0, -1.0])

    def attack(labels, **changes):
        budget = {"eps": 0.1, "step_size": 0.05, "num_steps": 5, **changes}
        return pgd(jax.random.key(0), logits_fn, images, labels, loss="kl", **budget)

    adversarial = attack(labels)
    np.testing.assert_array_equal(adversarial, attack(1 - labels))
    np.testing.assert_allclose(np.abs(adversarial - images), 0.1, rtol=1e-5)
    with pytest.raises(ValueError, match="set random_start to True"):
        attack(labels, random_start=False)
    with pytest.raises(ValueError, match="ignores targets"):
        attack(labels, targets=labels)


def test_n_fgsm_takes_one_full_step_from_noise_of_twice_the_radius():
    weights = random_weights(2)
    images, labels = examples(2, n=64, low=0.4, high=0.6)
    run = partial(n_fgsm, KEY, linear(weights), images, labels, eps=0.05)
    noise = run(step_size=0.0) - images
    assert 0.099 < np.abs(noise).max() <= 0.1 + 1e-6
    assert abs(float(noise.mean())) < 0.002
    sides = np.where(labels == 0, 1.0, -1.0)[:, None, None, None]
    towards = sides * np.sign(weights[:, 1] - weights[:, 0]).reshape(images.shape[1:])
    step = run(step_size=0.05) - images - noise  # not projected onto a ball
    np.testing.assert_allclose(step, 0.05 * towards, atol=1e-6)


def test_n_fgsm_results_are_in_the_box():
    images, labels = examples(2, n=64, low=0.0, high=1.0)
    adversarial = n_fgsm(KEY, LOGITS_FN, images, labels, eps=0.3, step_size=0.3)
    assert (adversarial.min(), adversarial.max()) == (0, 1)
