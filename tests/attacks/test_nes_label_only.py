"""Label-only NES on a linear model whose distances to the decision boundary are known."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, WEIGHTS, examples, length, radii

from jaxadv.attacks import nes_label_only

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
EPS = {"linf": 0.1, "l2": 0.6}
STEP = {"linf": 0.02, "l2": 0.2}
IMAGES, _ = examples(n=16)
LABELS = LOGITS_FN(None, IMAGES).argmax(axis=1)


def attack(norm="linf", logits_fn=LOGITS_FN, num_queries=5000, **changes):
    arguments = {
        "eps": EPS[norm], "step_size": STEP[norm], "samples_per_gradient": 20,
        "label_samples": 10, "label_radius": 0.01, "sigma": 0.01, **changes,
    }  # fmt: skip
    return nes_label_only(
        KEY, logits_fn, IMAGES, LABELS, num_queries=num_queries, norm=norm, **arguments
    )


found = cache(attack)


@pytest.mark.parametrize("norm", EPS)
def test_reaches_the_boundary_and_no_smaller_radius(norm):
    result, distances = found(norm), radii(WEIGHTS, IMAGES, LABELS, norm)
    wrong = LOGITS_FN(None, result.images).argmax(axis=1) != LABELS
    np.testing.assert_array_equal(result.success, wrong)
    assert result.success.sum() >= 12
    np.testing.assert_array_equal(result.margins, np.where(wrong, 1, -1))
    assert (length(result.images - IMAGES, norm) <= EPS[norm] * (1 + 1e-5)).all()
    impossible = attack(norm, eps=float(distances.min() * 0.9))
    assert not impossible.success.any()
    np.testing.assert_array_equal(impossible.images, IMAGES)
    predictions = LOGITS_FN(None, impossible.extras.iterate).argmax(axis=1)
    assert (predictions != LABELS)[jnp.isfinite(impossible.extras.radius)].all()
    assert (impossible.extras.radius >= distances * 0.99).all()


def test_only_the_predicted_class_matters():
    def one_hot(key, images):
        return 5.0 * jax.nn.one_hot(LOGITS_FN(key, images).argmax(axis=1), 5)

    np.testing.assert_array_equal(attack(logits_fn=one_hot).queries, found("linf").queries)


def test_momentum_averages_over_earlier_gradients():
    starts = jnp.roll(IMAGES, 1, axis=0)
    budget = 2 + 20 * 10 + 1  # the clean image, the start, a gradient, a step
    without, with_momentum = (
        attack(starts=starts, num_queries=budget, momentum=momentum).extras.velocity
        for momentum in (0.0, 0.6)
    )
    assert np.abs(without).max() > 0
    np.testing.assert_allclose(with_momentum, 0.4 * without, rtol=1e-4, atol=1e-6)


def test_begins_at_the_given_starts():
    starts = jnp.roll(IMAGES, 1, axis=0)
    wrong = LOGITS_FN(None, starts).argmax(axis=1) != LABELS
    result = attack(starts=starts, num_queries=2)  # the clean image and the start
    np.testing.assert_array_equal(jnp.isfinite(result.extras.radius), wrong)
    np.testing.assert_array_equal(result.extras.iterate[wrong], starts[wrong])


def test_targets_are_reached_from_images_of_their_class():
    targets = (LABELS + 1) % 5
    indices = [int(jnp.flatnonzero(target == LABELS)[0]) for target in targets]
    result = attack(targets=targets, starts=IMAGES[jnp.array(indices)], eps=0.25)
    reached = LOGITS_FN(None, result.images).argmax(axis=1) == targets
    np.testing.assert_array_equal(result.success, reached)
    assert reached.mean() > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_gradient": 7}, "samples_per_gradient is 7: it must be an even integer"),
        ({"label_samples": 0}, "label_samples is 0"),
        ({"label_radius": -1.0}, "label_radius is -1.0"),
        ({"starts": IMAGES[:3]}, "starts have shape"),
    ],
)
def test_invalid_arguments_raise_an_error_with_their_name(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(**changes)
