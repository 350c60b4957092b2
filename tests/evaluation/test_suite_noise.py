"""Attack suites on models with random defences, and on models that mask their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linear_classifier import Linear, NoisyLinear, make_problem, run_suite
from scipy.stats import norm

from jaxadv.core.rng import stream
from jaxadv.models.classifier import noise_keys
from jaxadv.models.defences import InputNoise

pytestmark = pytest.mark.slow  # compiles much


@pytest.fixture(scope="module")
def problem():
    return make_problem()


EOT = {"attack": "pgd", "step_size": 0.02, "num_steps": 5, "num_noise_samples": 5, "eps": (0.02,)}


@pytest.fixture(scope="module")
def noisy(problem):
    weights, split, _ = problem
    return run_suite(
        NoisyLinear(),
        weights,
        split,
        on=EOT,
        off={**EOT, "noise": "off"},
        fixed={**EOT, "noise": "fixed"},
    )


def test_a_stochastic_model_is_scored_over_several_forward_passes(problem, noisy):
    weights, _, margins = problem
    w = weights["params"]["w"]
    results, entries, examples = noisy
    single_deviation = 0.05 * np.linalg.norm(w)
    for name, distance in (("clean", 0), ("on/0.02", 0.02 * np.abs(w).sum())):
        entry = results.clean if name == "clean" else entries[name]
        expected = norm.cdf((margins - distance) / single_deviation)
        assert entry.single_pass.mean == pytest.approx(expected.mean(), abs=0.02)
        deviation = np.sqrt((expected * (1 - expected)).sum()) / 50
        assert entry.single_pass.std == pytest.approx(deviation, rel=0.6)
        # Over many forward passes the noise averages out: except close to the boundary, the vote
        # is the sign of the margin.
        assert entry.majority.accuracy == pytest.approx((expected > 0.5).mean(), abs=0.07)
        assert entry.accuracy == pytest.approx((expected > 0.5).mean(), abs=0.07)
    assert results.stochastic
    assert results.num_passes == 20
    assert results.warnings == ()
    (worst,) = results.worst_case
    assert worst.attacks == ("on/0.02",)
    assert examples.attacks["on/0.02"].robust.mean() == entries["on/0.02"].accuracy


def test_without_noise_the_accuracy_has_its_closed_form(problem, noisy):
    weights, _, margins = problem
    results, entries, examples = noisy
    expected = margins > 0.02 * np.abs(weights["params"]["w"]).sum()
    np.testing.assert_array_equal(examples.attacks["off/0.02"].robust, expected)
    assert results.clean_noise["off"].accuracy == (margins > 0).mean()
    assert entries["off/0.02"].single_pass is None


def test_fixed_noise_is_the_same_sample_in_every_step_and_forward_pass(problem, noisy):
    weights, split, margins = problem
    w = weights["params"]["w"]
    _, _, examples = noisy

    @jax.vmap
    def noise_of(example):
        key = noise_keys(stream(0, "noise"), example)["noise"]
        return Noise().apply({}, rngs={"noise": key}).reshape(-1)

    moved = 0.05 * np.asarray(noise_of(jnp.arange(50))) @ w
    signs = np.where(np.asarray(split.labels) == 1, 1, -1)
    clean = margins + signs * moved  # of the deterministic model that one noise sample defines
    attacked = clean - 0.02 * np.abs(w).sum()
    expected = np.where(clean > 0, attacked, clean)  # misclassified examples are not attacked
    found = -examples.attacks["fixed/0.02"].margins
    moves = 30 * clean < 14  # above, the softmax rounds to 1, and its gradient to 0
    assert moves.sum() > 30
    np.testing.assert_allclose(found[moves], 30 * expected[moves], rtol=1e-3, atol=1e-3)


class Noise(nn.Module):
    """The noise that `NoisyLinear` samples from its key."""

    @nn.compact
    def __call__(self):
        return jax.random.normal(self.make_rng("noise"), (1, 2, 2, 3))


def test_natural_errors_of_a_stochastic_model_are_not_successes_of_an_attack(problem):
    weights, split, _ = problem
    nes = {"attack": "nes", "eps": (1e-6,), "step_size": 1e-6, "num_queries": 12}
    _, entries, examples = run_suite(
        NoisyLinear(), weights, split, nes={**nes, "samples_per_gradient": 10}
    )
    clean, robust = examples.predictions, examples.attacks["nes/1e-06"].robust
    assert (clean != split.labels).sum() >= 5
    fooled = ~robust[clean == split.labels]
    assert entries["nes/1e-06"].query_cost.success_rate == fooled.mean() < 0.1


def test_a_stochastic_result_does_not_depend_on_the_batch_size(problem, noisy):
    weights, split, _ = problem
    results, _, examples = run_suite(NoisyLinear(), weights, split, batch_size=30, on=EOT)
    expected, _, expected_examples = noisy
    assert results.clean == expected.clean
    np.testing.assert_allclose(
        examples.attacks["on/0.02"].margins, expected_examples.attacks["on/0.02"].margins, atol=1e-4
    )


def test_undeclared_noise_is_detected(problem):
    weights, split, _ = problem

    nested = {"params": {"linear": weights["params"]}}
    fgsm = {"attack": "fgsm", "eps": (0.02,)}
    results, _, _ = run_suite(Undeclared(), nested, split, fgsm=fgsm)
    assert not results.stochastic
    assert results.clean.varying == 50
    assert "50 of 50" in " ".join(results.warnings)


class Undeclared(nn.Module):
    """Noise on the logits, without a `defence` that declares it."""

    @nn.compact
    def __call__(self, images, train=False):
        logits = Linear(name="linear")(images)
        return logits + 1e-3 * jax.random.normal(self.make_rng("noise"), logits.shape)


class Saturated(nn.Module):
    """Logits so large that the softmax is 0 or 1, and its gradient 0."""

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
    nested = {"params": {"linear": weights["params"]}}
    results, _, _ = run_suite(
        model,
        nested,
        split,
        fgsm={"attack": "fgsm", "eps": (0.06,)},
        pgd={"attack": "pgd", "eps": (0.06,), "step_size": 0.02, "num_steps": 8},
        random_search={"attack": "random_search", "eps": (0.06,), "num_queries": 200},
        unbounded={"attack": "pgd", "eps": (0.5,), "step_size": 0.1, "num_steps": 10},
    )
    return " ".join(results.warnings)


@pytest.mark.parametrize("model", [Saturated(), Shifted()])
def test_a_masked_model_is_flagged(model, problem):
    warnings = warnings_of(model, problem)
    assert "fgsm/0.06 did not move" in warnings
    assert "random_search/0.06, a black-box attack, fools more" in warnings


def test_an_honest_model_is_not_flagged(problem):
    assert warnings_of(Honest(), problem) == ""
