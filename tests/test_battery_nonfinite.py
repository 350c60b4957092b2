"""A model whose logits or gradients are not finite, through the whole suite of an evaluation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linear_classifier import Linear, NoisyLinear, battery, make_problem

from configs import default
from jaxadv.battery import run_battery
from jaxadv.outcomes import attack_examples
from jaxadv.recipe import make_recipe
from jaxadv.train import _validate
from jaxadv.types import UserError

PGD = {"attack": "pgd", "step_size": 0.02, "num_steps": 8, "eps": (0.06,)}
SQUARE = {"attack": "square", "num_queries": 20, "eps": (0.06,)}


class Overflows(Linear):
    """NaN logits on every image that is darker than the mean."""

    @nn.compact
    def __call__(self, images, train=False):
        logits = super().__call__(images, train)
        dark = images.mean(axis=(1, 2, 3)) < 0.5
        return jnp.where(dark[:, None], jnp.nan, logits)


class HiddenRoot(Linear):
    """The same logits, with a NaN gradient on images that have a pixel below a half."""

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


def test_images_without_finite_logits_are_wrong_and_counted(problem):
    weights, split, margins = problem
    dark = (split.images / 255).mean(axis=(1, 2, 3)) < 0.5
    results, examples = run_battery(
        Overflows(), weights, split, battery(pgd=PGD, square=SQUARE), seed=0, progress=False
    )
    assert results["clean"]["nonfinite_logits"] == dark.sum()
    np.testing.assert_array_equal(examples["predictions/clean"] == -1, dark)
    assert results["clean"]["accuracy"] == np.mean((margins > 0) & ~dark)
    for name in ("pgd/0.06", "square/0.06"):
        assert not examples[f"survived/{name}"][dark].any()
        assert results["attacks"][name]["nonfinite_logits"] >= dark.sum()
    first = results["warnings"][0]
    assert first.startswith(f"The logits of {dark.sum()} of 50 clean images are NaN or infinite")
    most = max(results["attacks"][name]["nonfinite_logits"] for name in results["attacks"])
    assert (f" of {most}. They count" in first) == (most > dark.sum())


def test_gradients_that_are_not_finite_are_counted(problem):
    weights, split, margins = problem
    results, examples = run_battery(
        HiddenRoot(), weights, split, battery(pgd=PGD), seed=0, progress=False
    )
    entry = results["attacks"]["pgd/0.06"]
    assert entry["nonfinite_gradients"] == 8 * entry["nonfinite_gradient_images"] > 0
    assert any("met" in sign and "NaN or infinite" in sign for sign in results["warnings"])
    assert np.isfinite(examples["sample/adversarial/pgd/0.06"]).all()
    assert entry["accuracy"] <= np.mean(margins > 0)


def test_no_pass_of_a_random_model_is_right_by_accident(problem):
    weights, split, _ = problem
    results, _ = run_battery(
        NoisyOverflows(), weights, split, battery(pgd=PGD), seed=0, progress=False
    )
    for entry in (results["clean"], results["attacks"]["pgd/0.06"]):
        assert entry["accuracy"] == entry["single_pass"]["mean"] == 0
        assert entry["majority"]["accuracy"] == 0
        assert entry["nonfinite_logits"] == 50


def test_float_images_are_attacked_as_their_bytes(problem):
    weights, split, _ = problem
    as_floats = split._replace(images=np.asarray(split.images, np.float32) / np.float32(255))
    one, other = (
        run_battery(Linear(), weights, part, battery(pgd=PGD), seed=0, progress=False)[1]
        for part in (split, as_floats)
    )
    np.testing.assert_array_equal(one["survived/pgd/0.06"], other["survived/pgd/0.06"])
    too_large = split._replace(images=np.asarray(split.images, np.float32))
    with pytest.raises(UserError, match="values from"):
        run_battery(Linear(), weights, too_large, battery(pgd=PGD), seed=0, progress=False)


def test_a_training_stops_when_its_logits_are_not_finite(problem):
    weights, split, _ = problem
    config = default.get_config()
    config.evaluation.batch_size = 16

    recipe = make_recipe(config, 2, lambda step: 0.1)._replace(model=Overflows())
    with pytest.raises(UserError, match=r"the logits of \d+ of 50 held-out images are NaN"):
        _validate(recipe, weights, split, config)


def test_the_outcome_says_which_logits_are_not_finite(problem):
    weights, split, _ = problem
    found = attack_examples(Overflows(), weights, split, {}, np.arange(50), 16, 0)
    np.testing.assert_array_equal(found.nonfinite, found.predictions == -1)
    np.testing.assert_array_equal(np.isposinf(found.margins), found.nonfinite)
