"""MI-FGSM beside NumPy implementations of its papers' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from jaxadv.attacks import mean_logits, mi_fgsm, pgd
from jaxadv.attacks.mi_fgsm import _resize, _smooth

KEY = jax.random.key(0)
MATRIX = np.asarray(jax.random.normal(jax.random.key(1), (12, 2)))
IMAGES = jax.random.uniform(jax.random.key(2), (3, 2, 2, 3))
LABELS = jnp.array([0, 1, 0])
EPS, STEP_SIZE, NUM_STEPS = 0.3, 0.04, 6
BUDGET = {"eps": EPS, "step_size": STEP_SIZE, "num_steps": NUM_STEPS}


def curved(key, images):
    """Logits whose gradient changes sign along the path of the attack."""
    return jnp.sin(6 * images.reshape(len(images), 12)) @ MATRIX


def gradient_of_curved(images):
    flat = images.reshape(len(images), 12)
    logits = np.sin(6 * flat) @ MATRIX
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(p)), LABELS] -= 1
    return (6 * np.cos(6 * flat) * (p @ MATRIX.T)).reshape(images.shape)


def reference(decay, nesterov):
    """Algorithm 1 of Dong et al. (2018), with the look-ahead of Lin et al. (2020)."""
    clean = np.asarray(IMAGES, np.float64)
    images, accumulated = clean, np.zeros(clean.shape)
    for _ in range(NUM_STEPS):
        point = images + STEP_SIZE * decay * accumulated if nesterov else images
        gradient = gradient_of_curved(point)
        gradient /= np.abs(gradient).mean((1, 2, 3), keepdims=True)
        accumulated = decay * accumulated + gradient
        images = images + STEP_SIZE * np.sign(accumulated)
        images = np.clip(np.clip(images, clean - EPS, clean + EPS), 0, 1)
    return images


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_steps_follow_the_accumulated_gradient(decay, nesterov):
    found = mi_fgsm(KEY, curved, IMAGES, LABELS, **BUDGET, decay=decay, nesterov=nesterov)
    np.testing.assert_allclose(found, reference(decay, nesterov), atol=1e-5)


def test_the_options_change_the_result():
    """So the comparisons above would notice an option without effect."""
    results = [reference(0.0, False), reference(1.0, False), reference(1.0, True)]
    assert np.abs(results[0] - results[1]).max() > 0.05
    assert np.abs(results[1] - results[2]).max() > 0.05


def test_without_momentum_it_is_the_basic_iterative_method():
    found = mi_fgsm(KEY, curved, IMAGES, LABELS, **BUDGET, decay=0.0)
    expected = pgd(KEY, curved, IMAGES, LABELS, **BUDGET, random_start=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_l2_steps_are_normalised():
    budget = {"eps": 0.5, "step_size": 0.1, "num_steps": 1}
    moved = np.asarray(mi_fgsm(KEY, curved, IMAGES, LABELS, **budget, norm="l2")) - IMAGES
    gradient = gradient_of_curved(np.asarray(IMAGES, np.float64))
    expected = 0.1 * gradient / np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True))
    expected = np.clip(IMAGES + expected, 0, 1) - IMAGES
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_every_gradient_has_the_same_weight(scale):
    def scaled(key, images):
        return scale * curved(key, images)

    found = mi_fgsm(KEY, scaled, IMAGES, LABELS, **BUDGET, loss="margin")
    expected = mi_fgsm(KEY, curved, IMAGES, LABELS, **BUDGET, loss="margin")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_look_ahead_in_l2_is_refused():
    with pytest.raises(ValueError, match="nesterov is True, but norm is 'l2'"):
        mi_fgsm(KEY, curved, IMAGES, LABELS, **BUDGET, norm="l2", nesterov=True)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_gradients_are_smoothed_by_a_gaussian_kernel(size):
    gradient = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype(np.float32)
    offsets = np.linspace(-3, 3, size) if size > 1 else np.zeros(1)
    kernel = np.exp(-(offsets**2) / 2)
    kernel /= kernel.sum()
    expected = correlate1d(gradient, kernel, axis=1, mode="constant")
    expected = correlate1d(expected, kernel, axis=2, mode="constant")
    np.testing.assert_allclose(_smooth(jnp.asarray(gradient), size), expected, atol=1e-5)


def test_resized_images_are_smaller_copies_on_black():
    white = jnp.ones((20, 20, 3))
    resized = np.stack([_resize(jax.random.key(i), white, 1.0) for i in range(100)])
    assert resized.min() >= 0
    assert resized.max() <= 1 + 1e-6
    areas = resized.mean((1, 2, 3))
    assert 0.9**2 - 0.02 < areas.min() < 0.86
    assert 0.95 < areas.max() <= 1
    corners = resized[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert ((corners < 0.99).any(axis=0)).all()  # the place is random
    unchanged = _resize(jax.random.key(0), white, 0.0)
    np.testing.assert_array_equal(unchanged, white)
    half = np.stack([_resize(jax.random.key(i), white, 0.5) for i in range(100)])
    assert 35 <= (half != 1).any((1, 2, 3)).sum() <= 65


def test_input_diversity_changes_the_gradients():
    def found(diversity):
        large = jax.random.uniform(KEY, (4, 16, 16, 1))
        weights = np.random.default_rng(1).normal(size=(256, 2)).astype(np.float32)

        def logits_fn(key, images):
            return jnp.sin(9 * images.reshape(len(images), 256)) @ weights

        return mi_fgsm(KEY, logits_fn, large, jnp.zeros(4, int), **BUDGET, diversity=diversity)

    assert float(jnp.abs(found(1.0) - found(0.0)).max()) > 0.05


def test_an_ensemble_has_the_mean_logits():
    one, other = curved, lambda key, images: 3 * curved(key, images)
    ensemble = mean_logits(one, other)
    np.testing.assert_allclose(ensemble(KEY, IMAGES), 2 * curved(KEY, IMAGES), rtol=1e-5)
    found = mi_fgsm(KEY, ensemble, IMAGES, LABELS, **BUDGET)
    expected = mi_fgsm(KEY, lambda key, x: 2 * curved(key, x), IMAGES, LABELS, **BUDGET)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_images_transfer_to_another_model():
    """Attacks on one linear model fool another whose weights are similar."""
    generator = np.random.default_rng(0)
    victim_matrix = MATRIX + 0.3 * generator.normal(size=MATRIX.shape).astype(np.float32)

    def linear(matrix):
        return lambda key, images: images.reshape(len(images), 12) @ matrix

    images = jnp.asarray(generator.uniform(0.3, 0.7, (64, 2, 2, 3)), jnp.float32)
    labels = linear(victim_matrix)(KEY, images).argmax(1)
    moved = mi_fgsm(KEY, linear(MATRIX), images, labels, **BUDGET)
    assert (linear(victim_matrix)(KEY, moved).argmax(1) == labels).mean() < 0.3
