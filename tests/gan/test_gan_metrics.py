"""Distances of features, compared with closed forms and direct implementations."""

import numpy as np
import pytest

from jaxadv.gan.metrics import (
    _squared_mmd,
    frechet_distance,
    kernel_distance,
    nearest,
    num_duplicates,
    precision_and_recall,
)

GENERATOR = np.random.default_rng(0)


def features_of(mean, covariance, n=500):
    """Return features with exactly this mean and covariance."""
    samples = np.random.default_rng(len(mean)).normal(size=(n, len(mean)))
    samples -= samples.mean(axis=0)
    samples = samples @ np.linalg.inv(np.linalg.cholesky(np.cov(samples, rowvar=False))).T
    return samples @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_with_the_same_axes():
    rotation, _ = np.linalg.qr(GENERATOR.normal(size=(3, 3)))
    first, second = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    real = features_of(np.zeros(3), rotation * first @ rotation.T)
    fake = features_of(np.array([1.0, 2.0, -2.0]), rotation * second @ rotation.T)
    expected = 9 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_gaussians_with_different_axes_is_symmetric():
    real, fake = (
        features_of(GENERATOR.normal(size=4), np.cov(GENERATOR.normal(size=(4, 9)))) for _ in "ab"
    )
    assert frechet_distance(real, fake) == pytest.approx(frechet_distance(fake, real), rel=1e-6)


def test_kernel_distance_matches_its_definition():
    x, y = GENERATOR.normal(size=(6, 3)), GENERATOR.normal(size=(6, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = [np.mean([kernel(a[i], a[j]) for i, j in pairs if i != j]) for a in (x, y)]
    expected = sum(within) - 2 * np.mean([kernel(x[i], y[j]) for i, j in pairs])
    assert _squared_mmd(x, y) == pytest.approx(expected)


def test_kernel_distance_is_unbiased():
    samples = GENERATOR.normal(size=(2, 3000, 4))
    distance, deviation = kernel_distance(samples[0], samples[1])
    assert abs(distance) < 3 * deviation
    assert kernel_distance(samples[0], samples[1] + 0.5)[0] > 10 * deviation


def test_precision_and_recall_of_a_generator_with_one_of_two_modes():
    real = np.concatenate([GENERATOR.normal(size=(200, 2)), GENERATOR.normal(size=(200, 2)) + 50])
    precision, recall = precision_and_recall(real, GENERATOR.normal(size=(300, 2)))
    assert precision > 0.9
    assert 0.35 < recall <= 0.5
    precision, recall = precision_and_recall(real[:200], real + 25)
    assert precision == recall == 0


def test_precision_and_recall_of_points_on_a_line():
    """The balls of the real points cover -7 to 29; those of the fakes cover all real points."""
    real = np.array([0.0, 1, 3, 7, 15])[:, None]
    fake = np.array([-8.0, -5, 28, 30])[:, None]
    assert precision_and_recall(real, fake) == (0.5, 1)


def test_duplicates_are_compared_by_distance_not_by_its_square():
    points = np.array([0.0, 1.9, 10])[:, None]  # 1.9 squared is more than 2
    assert num_duplicates(points, 2.0) == 1
    assert num_duplicates(points, 1.8) == 0


def test_nearest_and_duplicates():
    others = GENERATOR.normal(size=(700, 3))
    rows, squared = nearest(others[[5, 600]] + 1e-3, others)
    np.testing.assert_array_equal(rows, [5, 600])
    np.testing.assert_allclose(squared, 3e-6, rtol=1e-6)
    repeated = np.concatenate([others, others[:10] + 1e-4])
    assert num_duplicates(repeated, 1e-3) == 10
    assert num_duplicates(others, 1e-3) == 0
