"""Steps of FAB on models whose nearest decision boundaries have a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SHAPE, SIZE, WEIGHTS, examples, length, radii

from jaxadv.attacks import fab

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
ETA, BETA = 1.05, 0.9  # of Croce & Hein (2020)
NORMS = ["linf", "l2", "l1"]


def sparsity_weights():
    """Margins of class 0 that depend on 4, 48 and 1 pixels: the dual norm decides the nearest."""
    weights = np.zeros((SIZE, 4))
    weights[:4, 1] = 2.5  # L1 norm 10, L2 norm 5, L-inf norm 2.5
    weights[:, 2] = 0.5  # 24, 3.5, 0.5
    weights[7, 3] = 6.0  # 6, 6, 6
    return weights


# Margins of class 0 on a grey image: the nearest boundary in logits is that of class 1, in L-inf
# that of class 2, and in L2 and L1 that of class 3.
MARGINS = np.array([0.0, 0.9, 1.0, 1.0])
SPARSITY_WEIGHTS = sparsity_weights()
BIAS = -MARGINS - 0.5 * SPARSITY_WEIGHTS.sum(axis=0)
NEAREST = {"linf": 2, "l2": 3, "l1": 3}
DUAL_NORMS = {"linf": 24.0, "l2": 6.0, "l1": 6.0}


def sparse_model(key, images):
    return images.reshape(-1, SIZE) @ jnp.asarray(SPARSITY_WEIGHTS, images.dtype) + BIAS


GREY = jnp.full((2, *SHAPE), 0.5)
ZEROS = jnp.zeros(2, jnp.int32)


@pytest.mark.parametrize("norm", NORMS)
def test_untargeted_steps_cross_the_boundary_that_is_nearest_in_the_dual_norm(norm):
    found = fab(KEY, sparse_model, GREY, ZEROS, norm=norm, num_targets=0, num_steps=1)
    # At the clean image both projections are the same.
    distance = ETA * 1.0 / DUAL_NORMS[norm]
    np.testing.assert_allclose(found.extras.distance, distance, rtol=1e-4)
    np.testing.assert_allclose(length(found.images - GREY, norm), distance, rtol=1e-4)
    logits = np.asarray(sparse_model(None, found.images))
    assert (logits.argmax(axis=1) == NEAREST[norm]).all()
    assert found.success.all()
    # Two forward passes, one of them with the gradients of all other classes.
    assert (found.queries == 2).all()
    assert (found.gradients == 3).all()


@pytest.mark.parametrize("norm", NORMS)
def test_untargeted_fab_finds_the_distance_to_the_nearest_class(norm):
    images, _ = examples(n=24, low=0.3, high=0.7)
    labels = LOGITS_FN(None, images).argmax(axis=1)
    distances = radii(WEIGHTS, images, labels, norm)
    arguments = {"norm": norm, "num_targets": 0, "num_steps": 20}
    found = fab(KEY, LOGITS_FN, images, labels, early_stop=False, **arguments)
    assert found.success.all()
    assert (found.extras.distance > distances).all()
    np.testing.assert_allclose(found.extras.distance, distances, rtol=0.02)
    eps = float(np.median(distances))
    within = fab(KEY, LOGITS_FN, images, labels, eps=eps, **arguments)
    is_clear = np.abs(distances / eps - 1) > 0.02
    np.testing.assert_array_equal(within.success[is_clear], (distances < eps)[is_clear])


@pytest.mark.parametrize("norm", NORMS)
def test_backward_steps_return_a_tenth_of_the_way(norm):
    images, _ = examples(n=8, low=0.4, high=0.6)
    labels = LOGITS_FN(None, images).argmax(axis=1)
    distances = radii(WEIGHTS, images, labels, norm)
    found = fab(
        KEY, LOGITS_FN, images, labels, norm=norm, num_targets=0, num_steps=1, early_stop=False
    )
    np.testing.assert_allclose(found.extras.distance, ETA * distances, rtol=1e-3)
    remaining = length(found.extras.iterate - images, norm)
    np.testing.assert_allclose(remaining, BETA * ETA * distances, rtol=1e-3)


def one_pixel(key, images):
    """Two classes that depend on the first value alone; the boundary is at 0.6."""
    logit = 10 * (images[:, 0, 0, 0] - 0.6)
    return jnp.stack([jnp.zeros_like(logit), logit], axis=1)


@pytest.mark.parametrize(
    ("eps", "radius"),
    [
        (None, ETA * 0.1 / 2),  # half the distance that the first run found
        (0.2, ETA * 0.1 / 2),
        (0.05, 0.05 / 2),  # the distance found is beyond eps
    ],
)
def test_restarts_begin_at_half_of_the_found_distance_or_of_eps(eps, radius):
    """The pixels that the model ignores show where a run began.

    The first run changes the first value only. The second begins on a sphere around the clean
    image. Its step, with weight 0.1 on the clean image, and the backward step each keep 0.9 of the
    change of the other pixels.
    """
    images, labels = jnp.full((12, *SHAPE), 0.5), jnp.zeros(12, jnp.int32)
    arguments = {"num_targets": 1, "num_steps": 1, "early_stop": False, "eps": eps}
    first = fab(KEY, one_pixel, images, labels, num_restarts=1, **arguments)
    np.testing.assert_allclose(first.extras.distance, ETA * 0.1, rtol=1e-4)

    def ignored_pixels(found):
        return np.asarray(found.extras.iterate - images).reshape(12, -1)[:, 1:]

    np.testing.assert_allclose(ignored_pixels(first), 0, atol=1e-7)
    second = fab(KEY, one_pixel, images, labels, num_restarts=2, **arguments)
    farthest = np.abs(ignored_pixels(second)).max(axis=1)
    expected = 0.9 * BETA * radius
    assert farthest.max() <= expected * (1 + 1e-4)
    # The farthest of the 48 values is the one that the model uses in one case of 48.
    assert np.isclose(farthest, expected, rtol=1e-4).sum() >= 10


def test_total_cost_is_two_forward_passes_per_step_and_run():
    def safe(key, images):
        zero = jnp.zeros(len(images))
        return jnp.stack([zero + 1, 1e-3 * images.mean((1, 2, 3)), zero, zero], axis=1)

    for num_targets, num_runs in ((0, 2), (3, 6)):
        found = fab(
            KEY, safe, GREY, ZEROS, num_targets=num_targets, num_restarts=2, num_steps=5, eps=0.1
        )
        assert not found.success.any()
        assert (found.queries == 2 * 5 * num_runs).all()
        assert (found.images == GREY).all()
