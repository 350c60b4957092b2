"""All attacks on non-square images with 1, 2 or 4 channels, on linear models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import BLACK_BOX, FUNCTIONS, shorten_stages, skip_other_norms
from linear_model import DUAL_ORDERS, flat, length

from jaxadv.attacks import ATTACKS
from jaxadv.attacks.square import _bump_change, _covered_share, _linf_start

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
HEIGHT, WIDTH = 6, 10
shapes = pytest.mark.parametrize(("channels", "norm"), [(1, "linf"), (2, "l2"), (4, "l1")])
N = 12
# Each succeeds on all images whose boundary is well within eps, and on no other.
WITH_GRADIENTS = {
    "fgsm": {},
    "pgd": {"num_steps": 30},
    "mi_fgsm": {"num_steps": 30},
    "apgd": {"num_steps": 20},
    "fab": {"num_steps": 10, "num_targets": 1},
    "fmn": {"num_steps": 100},
    "ddn": {"num_steps": 400},
    "cw": {"num_steps": 200, "num_searches": 9},
    "deepfool": {"num_steps": 10},
    "autoattack": {"batch_size": 32},
}
# Options with which a black-box attack reaches a boundary at eps / `reach`.
SEARCHES = {
    "nes": {"num_queries": 1500, "samples_per_gradient": 60, "loss": "margin", "reach": 2.5},
    "square": {"num_queries": 400, "reach": 1.15},
    "hop_skip_jump": {"num_queries": 2000, "initial_samples": 20, "reach": 1.3},
    "rays": {"num_queries": 400, "reach": 1.05},
    "random_search": {"num_queries": 50, "reach": None},
    "sparse_rs": {"num_queries": 50, "reach": None},
    "nes_label_only": {
        "num_queries": 60, "samples_per_gradient": 4, "label_samples": 2, "reach": None
    },
}  # fmt: skip


def problem(weights):
    """A linear model of two classes, with images, their labels (the last is wrong) and margins."""
    generator = np.random.default_rng(0)
    shape = weights.shape
    images = generator.uniform(0.4, 0.6, (N, *shape)).astype(np.float32)
    bias = -0.5 * weights.sum()

    def logits_fn(key, images):
        gap = (images * jnp.asarray(weights, images.dtype)).sum((1, 2, 3)) + bias
        return jnp.stack([jnp.zeros_like(gap), gap], axis=1)

    images = jnp.asarray(images)
    gaps = flat(images) @ weights.ravel() + bias
    labels = (gaps > 0).astype(np.int32)
    labels[-1] = 1 - labels[-1]
    return logits_fn, images, jnp.asarray(labels), np.abs(gaps)


def attack(name, weights, eps, norm, **changes):
    logits_fn, images, labels, gaps = problem(weights)
    arguments = {"eps": eps, "norm": norm, **changes}
    if name in ("pgd", "mi_fgsm", "nes"):
        arguments["step_size"] = eps / 5
    found = FUNCTIONS[name](KEY, logits_fn, images, labels, **arguments)
    adversarial = getattr(found, "images", found)
    assert adversarial.shape == images.shape
    assert np.isfinite(adversarial).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (length(np.asarray(adversarial) - np.asarray(images), norm) <= eps * (1 + 1e-5)).all()
    wrong = logits_fn(None, jnp.asarray(adversarial)).argmax(axis=1) != labels
    distances = gaps / np.linalg.norm(weights.ravel(), DUAL_ORDERS[norm])
    return found, np.asarray(wrong), distances


@shapes
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradient_attacks_succeed_where_the_boundary_is_within_eps(
    name, channels, norm, monkeypatch
):
    """All pixels have different weights, so that a permutation would be noticed."""
    skip_other_norms(name, norm)
    shorten_stages(monkeypatch, num_steps=10, num_queries=20)
    weights = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, channels))
    dual = np.linalg.norm(weights.ravel(), DUAL_ORDERS[norm])
    distances = problem(weights)[3] / dual
    eps = float(np.median(distances[:-1])) * 1.01
    _, wrong, distances = attack(name, weights, eps, norm, **WITH_GRADIENTS[name])
    is_clear = np.abs(distances / eps - 1) > 0.06
    is_clear[-1] = False
    assert is_clear.sum() >= N - 4
    np.testing.assert_array_equal(wrong[is_clear], (distances < eps)[is_clear])
    assert wrong[-1]  # without a perturbation


@shapes
@pytest.mark.parametrize("name", SEARCHES)
def test_black_box_attacks_reach_boundaries_and_stay_in_the_ball(name, channels, norm):
    """The model depends on channel means, so squares of equal sign lead to its boundary."""
    skip_other_norms(name, norm)
    by_channel = np.array([1.0, -0.5, 2.0, 1.5])[:channels]
    weights = np.broadcast_to(by_channel, (HEIGHT, WIDTH, channels)).copy()
    arguments = dict(SEARCHES[name])
    reach = arguments.pop("reach")
    dual = np.linalg.norm(weights.ravel(), DUAL_ORDERS[norm])
    farthest = (problem(weights)[3] / dual).max()
    if norm == "l2":
        reach = reach and max(reach, 4)  # half of each bump has the other sign
    eps = float(farthest * (reach or 0.5))
    found, wrong, distances = attack(name, weights, eps, norm, **arguments)
    np.testing.assert_array_equal(found.success, wrong)
    assert not wrong[:-1][distances[:-1] > eps].any()
    assert found.queries[-1] == 1
    assert wrong[-1]
    if reach:
        assert wrong.all()


def test_all_attacks_are_tested():
    assert {*WITH_GRADIENTS, *SEARCHES} == set(ATTACKS)
    assert set(SEARCHES) == set(BLACK_BOX)


@pytest.mark.parametrize("channels", [1, 4])
def test_l2_changes_use_the_full_norm(channels):
    """Pixels outside the two squares keep their values; the remaining norm is used inside."""
    shape, eps = (HEIGHT, WIDTH, channels), jnp.ones((1, 1, 1))
    delta = jax.random.normal(KEY, shape)
    delta *= 0.5 / jnp.linalg.norm(delta)
    for key in jax.random.split(KEY, 5):
        changed = _bump_change(key, eps, delta, share=jnp.float32(0.1), order=2)
        assert jnp.linalg.norm(changed) == pytest.approx(1, rel=1e-5)
        same = np.isclose(changed, delta, rtol=1e-4, atol=1e-6).all(axis=2)
        assert HEIGHT * WIDTH - 18 <= same.sum() < HEIGHT * WIDTH  # all but two squares of side 3


@pytest.mark.parametrize("channels", [1, 4])
def test_the_stripes_of_the_square_attack_are_vertical(channels):
    eps = jnp.full((1, 1, 1), 0.1)
    start = np.asarray(_linf_start(KEY, eps, shape=(HEIGHT, WIDTH, channels)))
    np.testing.assert_allclose(np.abs(start), 0.1)
    assert (start == start[0]).all()
    assert (start != start[:, :1]).any()


def test_the_covered_share_is_halved_after_the_squares_of_the_paper():
    """Andriushchenko et al. (2020), for 10,000 queries; images and budget do not matter."""
    numbers = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for halvings, number in enumerate(numbers):
        for square, times in ((number, halvings), (number + 1, halvings + 1)):
            covered = _covered_share(jnp.float32(0.8), jnp.int32(square))
            assert covered == pytest.approx(0.8 / 2**times)
