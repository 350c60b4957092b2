"""Gradients and scores averaged over noise, compared with one-dimensional integrals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import SIZE, apply, examples, random_weights

from jaxadv.attacks import pgd
from jaxadv.attacks.eot import (
    Noise,
    expected_logits,
    expected_score,
    expected_value_and_gradient,
)
from jaxadv.core.losses import LOSSES

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
WEIGHTS = random_weights(2)
SIGMA = 0.3
NODES, DENSITIES = np.polynomial.hermite_e.hermegauss(64)
DENSITIES = DENSITIES / DENSITIES.sum()


def noisy(key, images):
    """Two classes with Gaussian input noise: the margin is Gaussian with known moments."""
    noise = SIGMA * jax.random.normal(key, images.shape)
    return apply(WEIGHTS, key, images + noise)


def labelled():
    images, _ = examples(n=8, low=0.4, high=0.6)
    return images, jnp.zeros(8, jnp.int32)


def margins(images):
    """The margin of class 0 at each quadrature node of the noise, and its gradient."""
    slope = WEIGHTS[:, 0] - WEIGHTS[:, 1]
    means = np.asarray(images, np.float64).reshape(-1, SIZE) @ slope
    return means[:, None] + SIGMA * np.linalg.norm(slope) * NODES, slope


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def exact_gradient(images, average):
    z, slope = margins(images)
    if average == "loss":  # of E[log(1 + exp(-z))]
        factor = -(sigmoid(-z) @ DENSITIES)
    else:  # of -log E[sigmoid(z)]
        factor = -(sigmoid(z) * sigmoid(-z) @ DENSITIES) / (sigmoid(z) @ DENSITIES)
    return factor[:, None] * slope


def exact_score(images, average):
    z, _ = margins(images)
    return -np.log(sigmoid(z)) @ DENSITIES if average == "loss" else -np.log(sigmoid(z) @ DENSITIES)


def objective(labels):
    return lambda logits: LOSSES["cross_entropy"](logits, labels)


def expected_gradient(key, logits_fn, objective, images, noise):
    return expected_value_and_gradient(key, logits_fn, objective, objective, images, noise).gradient


@pytest.mark.parametrize("chunk_size", [1, 100])
@pytest.mark.parametrize("average", ["loss", "softmax"])
def test_estimates_converge_to_the_exact_gradient_and_score(average, chunk_size):
    images, labels = labelled()

    @partial(jax.jit, static_argnums=0)
    def estimates(num_samples):
        noise = Noise(num_samples, chunk_size, average)
        arguments = (KEY, noisy, objective(labels), images, noise)
        return expected_gradient(*arguments).reshape(8, -1), expected_score(*arguments)

    expected = exact_gradient(images, average)
    errors = []
    for num_samples in (100, 10_000):
        gradient, score = estimates(num_samples)
        errors.append(np.abs(gradient - expected).max() / np.abs(expected).max())
    assert (
        errors[1] < 0.03 < errors[0]
    )  # a tenth, because errors decrease like 1 / sqrt(num_samples)
    np.testing.assert_allclose(score, exact_score(images, average), atol=0.02)


def test_loss_and_softmax_averages_differ():
    images, _ = labelled()
    ratio = exact_gradient(images, "loss") / exact_gradient(images, "softmax")
    assert ratio.min() > 1.2


@pytest.mark.parametrize("average", ["loss", "softmax"])
@pytest.mark.parametrize("num_samples", [1, 5, 7])
def test_chunk_size_does_not_change_the_result(average, num_samples):
    images, labels = labelled()
    results = [
        expected_gradient(
            KEY, noisy, objective(labels), images, Noise(num_samples, chunk_size, average)
        )
        for chunk_size in (1, 2, 10)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-6)


def test_one_sample_gives_the_plain_gradient():
    images, labels = labelled()
    key = jax.random.fold_in(KEY, 0)
    plain = jax.grad(lambda images: objective(labels)(noisy(key, images)).sum())(images)
    for average in ("loss", "softmax"):
        gradient = expected_gradient(KEY, noisy, objective(labels), images, Noise(1, 1, average))
        np.testing.assert_allclose(gradient, plain, rtol=1e-4, atol=1e-6)


def test_mean_softmax_has_gradients_where_probabilities_underflow():
    scale = jnp.array([1000.0, 2000.0])

    def confident(key, images):
        return apply(WEIGHTS, key, images) * scale[jax.random.bernoulli(key).astype(int)]

    images, labels = labelled()
    logits = expected_logits(KEY, confident, images, Noise(8, 1, "softmax"))
    assert np.isfinite(logits).all()
    gradient = expected_gradient(KEY, confident, objective(labels), images, Noise(8, 1, "softmax"))
    assert np.isfinite(gradient).all()
    wrong = logits[:, 0] < -100  # where a softmax underflows to 0
    assert wrong.any()
    assert (jnp.abs(gradient[wrong]).max(axis=(1, 2, 3)) > 1).all()


def test_memory_grows_with_the_chunk_size_not_with_the_samples():
    images, labels = labelled()

    def memory(num_samples, chunk_size):
        def attack(images, labels):
            return pgd(
                KEY, noisy, images, labels, eps=0.1, step_size=0.1, num_steps=2,
                num_noise_samples=num_samples, noise_chunk_size=chunk_size,
            )  # fmt: skip

        compiled = jax.jit(attack).lower(images, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(64, 4) < 1.2 * memory(4, 4)
    assert memory(64, 64) > 4 * memory(64, 4)


def test_unknown_averages_raise_an_error():
    with pytest.raises(ValueError, match="noise_average is 'mean': it must be one of loss"):
        pgd(KEY, noisy, *labelled(), eps=0.1, step_size=0.1, num_steps=1, noise_average="mean")
