import numpy as np
import pytest

from jaxadv.data.pca import effective_rank, principal_components


def images_of_rank(rank, n=60, low=0, high=255):
    """Return images of `rank` independent blocks of pixels with equal variances."""
    signs = np.array([[(i >> bit) & 1 for bit in range(rank)] for i in range(n)])
    pixels = np.where(signs, high, low).repeat(12 // rank, axis=1)
    return pixels.reshape(n, 2, 2, 3).astype(np.uint8)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_effective_rank_counts_directions_of_equal_variance(rank):
    # All 2^rank combinations occur equally often, so the directions are orthogonal.
    assert effective_rank(images_of_rank(rank, n=64)) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_is_below_the_rank_if_variances_differ():
    images = images_of_rank(4, n=64).astype(int)
    images[..., 0, :, :] = images[..., 0, :, :] // 8
    assert 2 < effective_rank(images.astype(np.uint8)) < 4


def test_effective_rank_is_invariant_to_mean_and_scale():
    scaled = images_of_rank(4, n=64, low=100, high=130)
    assert effective_rank(scaled) == pytest.approx(4, rel=1e-4)


def test_principal_components_reconstruct_images_of_their_rank():
    images = images_of_rank(4)
    mean, components = principal_components(images, 4)
    flat = images.reshape(60, -1) / 255
    np.testing.assert_allclose(components @ components.T, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(mean + (flat - mean) @ components.T @ components, flat, atol=1e-5)
    mean, components = principal_components(images, 2)
    assert np.abs(mean + (flat - mean) @ components.T @ components - flat).max() > 0.1


def test_float_and_uint8_images_give_the_same_result():
    images = images_of_rank(4)[..., :1]
    floats = (images / 255).astype(np.float32)
    assert effective_rank(floats) == pytest.approx(effective_rank(images), rel=1e-5)
    (mean, _), (expected, _) = principal_components(floats, 1), principal_components(images, 1)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
