"""Attack suites on models with NaN or infinite logits or gradients."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linear_classifier import Linear, NoisyLinear, make_problem, run_suite

from jaxadv.adapters.trained import noise_models
from jaxadv.configs import default
from jaxadv.core.types import UserError
from jaxadv.evaluation.attack_runner import score_images
from jaxadv.training.setup import make_training_setup
from jaxadv.training.train import _validate

pytestmark = pytest.mark.slow  # compiles much

PGD = {"attack": "pgd", "step_size": 0.02, "num_steps": 8, "eps": (0.06,)}
SQUARE = {"attack": "square", "num_queries": 20, "eps": (0.06,)}


class Overflows(Linear):
    """NaN logits on every image that is darker than grey."""

    @nn.compact
    def __call__(self, images, train=False):
        logits = super().__call__(images, train)
        dark = images.mean(axis=(1, 2, 3)) < 0.5
        return jnp.where(dark[:, None], jnp.nan, logits)


class HiddenRoot(Linear):
    """The same logits as `Linear`, with NaN gradients on images that have a pixel below 0.5."""

    @nn.compact
    def __call__(self, images, train=False):
        hidden = 0 * jnp.sqrt(jnp.maximum(images - 0.5, 0)).sum(axis=(1, 2, 3))
        return super().__call__(images, train) + hidden[:, None]


class NoisyOverflows(NoisyLinear):
    @nn.compact
    def __call__(self, images, train=False):
        return super().__call__(images, train) + jnp.inf


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def test_images_with_nonfinite_logits_count_as_misclassified(problem):
    weights, split, margins = problem
    dark = (split.images / 255).mean(axis=(1, 2, 3)) < 0.5
    results, entries, examples = run_suite(Overflows(), weights, split, pgd=PGD, square=SQUARE)
    assert results.clean.nonfinite_logits == dark.sum()
    np.testing.assert_array_equal(examples.predictions == -1, dark)
    assert results.clean.accuracy == np.mean((margins > 0) & ~dark)
    for key, entry in entries.items():
        assert not examples.attacks[key].robust[dark].any()
        assert entry.nonfinite_logits >= dark.sum()
    first = results.warnings[0]
    assert first.startswith(f"The logits of {dark.sum()} of 50 clean images are NaN or infinite")
    most = max(entry.nonfinite_logits for entry in entries.values())
    assert (f"of {most} images under" in first) == (most > dark.sum())


def test_nonfinite_gradients_are_counted(problem):
    weights, split, margins = problem
    results, entries, examples = run_suite(HiddenRoot(), weights, split, pgd=PGD)
    entry = entries["pgd/0.06"]
    assert entry.nonfinite_gradients == 8 * entry.nonfinite_gradient_images > 0
    assert any("computed" in one and "NaN or infinite" in one for one in results.warnings)
    assert np.isfinite(examples.attacks["pgd/0.06"].sample_images).all()
    assert entry.accuracy <= np.mean(margins > 0)


def test_no_nonfinite_forward_pass_of_a_random_model_counts_as_correct(problem):
    weights, split, _ = problem
    results, entries, _ = run_suite(NoisyOverflows(), weights, split, pgd=PGD)
    for entry in (results.clean, entries["pgd/0.06"]):
        assert entry.accuracy == entry.single_pass.mean == 0
        assert entry.majority.accuracy == 0
        assert entry.nonfinite_logits == 50


def test_float_images_give_the_results_of_their_bytes(problem):
    weights, split, _ = problem
    as_floats = split._replace(images=np.asarray(split.images, np.float32) / np.float32(255))
    one, other = (
        run_suite(Linear(), weights, part, pgd=PGD)[2].attacks["pgd/0.06"].robust
        for part in (split, as_floats)
    )
    np.testing.assert_array_equal(one, other)
    too_large = split._replace(images=np.asarray(split.images, np.float32))
    with pytest.raises(UserError, match="values from"):
        run_suite(Linear(), weights, too_large, pgd=PGD)


def test_validation_with_nonfinite_logits_stops_the_training(problem):
    weights, split, _ = problem
    config = default.get_config()
    config.evaluation.batch_size = 16

    setup = make_training_setup(config, 2, steps_per_epoch=1)._replace(model=Overflows())
    with pytest.raises(UserError, match=r"the logits of \d+ of 50 held-out images are NaN"):
        _validate(setup, weights, split, config)


def test_scores_mark_nonfinite_logits(problem):
    weights, split, _ = problem
    on = noise_models(Overflows(), weights, seed=0)["on"]
    found = score_images(on, split, None, np.arange(50), 16, 0)
    np.testing.assert_array_equal(found.nonfinite, found.predictions == -1)
    np.testing.assert_array_equal(np.isposinf(found.margins), found.nonfinite)
