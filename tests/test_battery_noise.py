"""The battery on models with noise of their own, and on models that hide their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linear_classifier import Linear, NoisyLinear, battery, make_problem
from scipy.stats import norm

from jaxadv.battery import run_battery
from jaxadv.classifier import noise_keys
from jaxadv.models.defences import InputNoise
from jaxadv.prng import stream


@pytest.fixture(scope="module")
def problem():
    return make_problem()


EOT = {"attack": "pgd", "step_size": 0.02, "num_steps": 5, "num_noise_samples": 5, "eps": (0.02,)}


@pytest.fixture(scope="module")
def noisy(problem):
    weights, split, _ = problem
    evaluation = battery(on=EOT, off={**EOT, "noise": "off"}, fixed={**EOT, "noise": "fixed"})
    return run_battery(NoisyLinear(), weights, split, evaluation, seed=0, progress=False)


def test_a_stochastic_model_is_scored_over_its_passes(problem, noisy):
    weights, _, margins = problem
    w = weights["params"]["w"]
    results, examples = noisy
    single_deviation = 0.05 * np.linalg.norm(w)
    for name, distance in (("clean", 0), ("on/0.02", 0.02 * np.abs(w).sum())):
        entry = results["clean"] if name == "clean" else results["attacks"][name]
        expected = norm.cdf((margins - distance) / single_deviation)
        assert entry["single_pass"]["mean"] == pytest.approx(expected.mean(), abs=0.02)
        deviation = np.sqrt((expected * (1 - expected)).sum()) / 50
        assert entry["single_pass"]["std"] == pytest.approx(deviation, rel=0.6)
        # Of many passes the noise is gone: what a vote decides is the sign of the margin, but for
        # the few examples that are close to it.
        assert entry["majority"]["accuracy"] == pytest.approx((expected > 0.5).mean(), abs=0.07)
        assert entry["accuracy"] == pytest.approx((expected > 0.5).mean(), abs=0.07)
    assert results["stochastic"]
    assert results["num_passes"] == 20
    assert results["warnings"] == []
    assert results["worst_case"]["linf/0.02"]["attacks"] == ["on/0.02"]
    np.testing.assert_array_equal(
        examples["survived/on/0.02"].mean(), results["attacks"]["on/0.02"]["accuracy"]
    )


def test_noise_off_is_the_closed_form(problem, noisy):
    weights, _, margins = problem
    results, examples = noisy
    expected = margins > 0.02 * np.abs(weights["params"]["w"]).sum()
    np.testing.assert_array_equal(examples["survived/off/0.02"], expected)
    assert results["clean_noise"]["off"]["accuracy"] == (margins > 0).mean()
    assert "single_pass" not in results["attacks"]["off/0.02"]


def test_fixed_noise_is_one_draw_in_every_step_and_pass(problem, noisy):
    weights, split, margins = problem
    w = weights["params"]["w"]
    _, examples = noisy

    @jax.vmap
    def noise_of(example):
        key = noise_keys(stream(0, "noise"), example)["noise"]
        draws = Draw().apply({}, rngs={"noise": key})
        return draws.reshape(-1)

    moved = 0.05 * np.asarray(noise_of(jnp.arange(50))) @ w
    signs = np.where(np.asarray(split.labels) == 1, 1, -1)
    clean = margins + signs * moved  # of the deterministic model that one draw makes
    attacked = clean - 0.02 * np.abs(w).sum()
    expected = np.where(clean > 0, attacked, clean)  # what is wrong is not attacked
    found = -examples["margin/fixed/0.02"]
    moves = 30 * clean < 14  # beyond it the softmax rounds to 1, and its gradient to 0
    assert moves.sum() > 30
    np.testing.assert_allclose(found[moves], 30 * expected[moves], rtol=1e-3, atol=1e-3)


class Draw(nn.Module):
    """The draw that `NoisyLinear` makes of its key."""

    @nn.compact
    def __call__(self):
        return jax.random.normal(self.make_rng("noise"), (1, 2, 2, 3))


def test_natural_errors_of_a_stochastic_model_are_no_success_of_an_attack(problem):
    weights, split, _ = problem
    evaluation = battery(
        nes={"attack": "nes", "eps": (1e-6,), "step_size": 1e-6, "num_queries": 12,
             "samples_per_gradient": 10}
    )  # fmt: skip
    results, examples = run_battery(
        NoisyLinear(), weights, split, evaluation, seed=0, progress=False
    )
    clean, after = examples["predictions/clean"], examples["survived/nes/1e-06"]
    assert (clean != split.labels).sum() >= 5
    broken = ~after[clean == split.labels]
    assert results["attacks"]["nes/1e-06"]["success_rate"] == broken.mean() < 0.1


def test_a_stochastic_result_does_not_depend_on_the_batch_size(problem, noisy):
    weights, split, _ = problem
    evaluation = battery(batch_size=30, on=EOT)
    results, examples = run_battery(
        NoisyLinear(), weights, split, evaluation, seed=0, progress=False
    )
    expected, arrays = noisy
    assert results["clean"] == expected["clean"]
    np.testing.assert_allclose(examples["margin/on/0.02"], arrays["margin/on/0.02"], atol=1e-4)


def test_noise_that_is_not_declared_is_found(problem):
    weights, split, _ = problem

    nested = {"params": {"linear": weights["params"]}}
    results, _ = run_battery(
        Undeclared(), nested, split, battery(fgsm={"attack": "fgsm", "eps": (0.02,)}), 0,
        progress=False,
    )  # fmt: skip
    assert not results["stochastic"]
    assert results["clean"]["varying"] == 50
    assert "50 of 50" in " ".join(results["warnings"])


class Undeclared(nn.Module):
    """Noise on the logits that no attribute tells of."""

    @nn.compact
    def __call__(self, images, train=False):
        logits = Linear(name="linear")(images)
        return logits + 1e-3 * jax.random.normal(self.make_rng("noise"), logits.shape)


class Saturated(nn.Module):
    """Logits so far apart that the softmax is 0 or 1, and its gradient 0."""

    @nn.compact
    def __call__(self, images, train=False):
        return 1e5 * Linear(name="linear")(images)


class Shifted(nn.Module):
    """A random shift of a rounded image, through which no gradient flows."""

    defence: InputNoise | None = InputNoise()

    @nn.compact
    def __call__(self, images, train=False):
        shift = 0.02 * jax.random.normal(self.make_rng("noise"))
        return 30 * Linear(name="linear")(jnp.round(images * 64 + shift) / 64)


class Honest(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return Linear(name="linear")(images)


def warnings_of(model, problem):
    weights, split, _ = problem
    evaluation = battery(
        fgsm={"attack": "fgsm", "eps": (0.06,)},
        pgd={"attack": "pgd", "eps": (0.06,), "step_size": 0.02, "num_steps": 8},
        random_search={"attack": "random_search", "eps": (0.06,), "num_queries": 200},
        unbounded={"attack": "pgd", "eps": (0.5,), "step_size": 0.1, "num_steps": 10},
    )
    weights = {"params": {"linear": weights["params"]}}
    return " ".join(
        run_battery(model, weights, split, evaluation, 0, progress=False)[0]["warnings"]
    )


@pytest.mark.parametrize("model", [Saturated(), Shifted()])
def test_a_masked_model_is_flagged(model, problem):
    warnings = warnings_of(model, problem)
    assert "fgsm/0.06 left" in warnings
    assert "random_search/0.06, which sees no gradient, breaks more" in warnings


def test_an_honest_model_is_not_flagged(problem):
    assert warnings_of(Honest(), problem) == ""
