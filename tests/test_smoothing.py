"""Smoothing, against a classifier whose smoothed version is known in closed form: a linear one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, norm

from jaxadv.smoothing import (
    ABSTAIN,
    Certificate,
    certified,
    certify,
    count_predictions,
    lower_bound,
    predict,
    with_input_noise,
)

SIGMA = 0.25
WEIGHTS = np.random.default_rng(0).normal(size=12).astype(np.float32)
# Distances to the boundary in units of sigma; the smoothed class is 1 where they are positive.
DISTANCES = np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 9.0])


def logits_fn(key, images):
    score = images.reshape(len(images), -1) @ WEIGHTS
    return jnp.stack([jnp.zeros_like(score), score], axis=-1)


IMAGES = jnp.asarray(
    (SIGMA * DISTANCES[:, None] * WEIGHTS / np.linalg.norm(WEIGHTS)).reshape(-1, 2, 2, 3),
    jnp.float32,
)
NOISY = with_input_noise(logits_fn, SIGMA)


def counts_fn(stage, num_samples):
    key = jax.random.fold_in(jax.random.key(0), stage)
    return np.asarray(count_predictions(key, NOISY, IMAGES, num_samples))


def test_counts_have_the_known_probabilities():
    counts = counts_fn(0, 20_000)
    assert (counts.sum(axis=1) == 20_000).all()
    np.testing.assert_allclose(counts[:, 1] / 20_000, norm.cdf(DISTANCES), atol=0.012)
    assert len(np.unique(counts_fn(1, 20_000)[:-1] - counts[:-1])) > 1  # other noise


def test_counts_of_parts_add_up():
    key = jax.random.key(0)
    parts = [count_predictions(key, NOISY, IMAGES, 50, first) for first in (0, 50)]
    np.testing.assert_array_equal(sum(parts), count_predictions(key, NOISY, IMAGES, 100))


def test_the_radius_is_the_distance_to_the_boundary():
    certificate = certify(counts_fn, SIGMA, num_estimation=20_000)
    decided = np.abs(DISTANCES) > 0.1
    np.testing.assert_array_equal(certificate.predictions[decided], DISTANCES[decided] > 0)
    assert certificate.predictions[~decided] == ABSTAIN
    assert certificate.radii[~decided] == 0
    distances = SIGMA * np.abs(DISTANCES)
    assert (certificate.radii <= distances).all()  # a certificate fails once in a thousand
    np.testing.assert_allclose(certificate.radii[:-1], distances[:-1], atol=0.02)


def test_no_radius_is_larger_than_the_samples_allow():
    # Cohen et al. 2019: about 3.8 sigma for 100,000 samples and alpha .001 that all agree.
    everything = certify(lambda stage, n: np.array([[0, n]]), 1.0)
    assert everything.radii[0] == pytest.approx(3.8, abs=0.02)
    assert everything.radii[0] == pytest.approx(norm.ppf(0.001 ** (1 / 100_000)))


@pytest.mark.parametrize("n", [10, 1000])
def test_the_bound_is_that_of_scipy(n):
    successes = np.array([0, 1, n // 2, n - 1, n])
    expected = [
        binomtest(int(k), n, alternative="greater").proportion_ci(0.999, "exact").low
        for k in successes
    ]
    np.testing.assert_allclose(lower_bound(successes, n, 0.001), expected, rtol=1e-6)


def test_the_bound_is_the_published_one():
    # Clopper & Pearson 1934: of 10 trials with no failure, the lower 95 % limit (one-sided
    # 97.5 %) is 0.692.
    assert lower_bound(np.array([10]), 10, 0.025)[0] == pytest.approx(0.692, abs=5e-4)


def test_predict_abstains_where_two_classes_are_alike():
    predictions = predict(counts_fn, 2000)
    expected = np.where(np.abs(DISTANCES) < 0.1, ABSTAIN, DISTANCES > 0)
    np.testing.assert_array_equal(predictions, expected)


def test_certified_is_right_and_far_enough():
    certificate = Certificate(np.array([1, 1, 0, ABSTAIN]), np.array([0.2, 0.1, 0.3, 0.0]))
    labels = np.array([1, 1, 1, 1])
    np.testing.assert_array_equal(certified(certificate, labels, 0.0), [1, 1, 0, 0])
    np.testing.assert_array_equal(certified(certificate, labels, 0.15), [1, 0, 0, 0])
