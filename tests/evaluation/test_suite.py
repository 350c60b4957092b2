"""Attack suites on a linear model, whose accuracy under attack has a closed form."""

from dataclasses import replace

import numpy as np
import pytest
from linear_classifier import Linear, make_problem, run_suite
from ml_collections import ConfigDict

from jaxadv.adapters.trained import noise_models
from jaxadv.configs import attack_suites
from jaxadv.core.types import UserError
from jaxadv.evaluation.attack_runner import run_attack, score_images
from jaxadv.evaluation.attack_suites import check_suite, expand_suite

EPS = (0.0, 0.02, 0.06)


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def test_accuracies_have_their_closed_form(problem):
    weights, split, margins = problem
    w = weights["params"]["w"]
    pgd = {"attack": "pgd", "step_size": 0.02, "num_steps": 8, "eps": EPS}
    results, entries, examples = run_suite(
        Linear(),
        weights,
        split,
        fgsm={"attack": "fgsm", "eps": EPS},
        linf=pgd,
        l2={**pgd, "norm": "l2", "eps": (0.1,), "step_size": 0.2},
    )
    assert results.clean.accuracy == np.mean(margins > 0)
    for eps in EPS:
        expected = margins > eps * np.abs(w).sum()
        for name in ("fgsm", "linf"):
            np.testing.assert_array_equal(examples.attacks[f"{name}/{eps:.4g}"].robust, expected)
            assert entries[f"{name}/{eps:.4g}"].accuracy == expected.mean()
    expected = margins > 0.1 * np.linalg.norm(w)
    np.testing.assert_array_equal(examples.attacks["l2/0.1"].robust, expected)
    assert 0.1 < expected.mean() < 0.9
    assert results.aggregated_score["linf"] == pytest.approx(
        sum(np.mean(margins > eps * np.abs(w).sum()) for eps in EPS)
    )
    assert results.warnings == ()


@pytest.mark.parametrize(("attack", "norm"), [("fmn", "linf"), ("fmn", "l2"), ("ddn", "l2")])
def test_minimal_norm_attacks_measure_distances_beyond_eps_too(problem, attack, norm):
    weights, split, margins = problem
    order = {"linf": 1, "l2": 2}[norm]
    exact = np.maximum(margins, 0) / np.linalg.norm(weights["params"]["w"], order)
    eps = float(np.median(exact)) * 1.001
    suite = {"attack": attack, "norm": norm, "eps": (eps,), "num_steps": 300}
    results, _, examples = run_suite(Linear(), weights, split, near=suite)
    (found,) = examples.attacks.values()
    np.testing.assert_allclose(found.distances, exact, rtol=0.02, atol=1e-5)
    is_clear = np.abs(exact / eps - 1) > 0.02
    np.testing.assert_array_equal(found.robust[is_clear], (exact > eps)[is_clear])
    (entry,) = results.attacks
    assert entry.queries == 300
    assert not [warning for warning in results.warnings if "did not move" in warning]


@pytest.mark.parametrize("batch_size", [2, 14, 64])
def test_results_do_not_depend_on_the_batch_size(problem, batch_size):
    weights, split, _ = problem
    pgd = {"attack": "pgd", "step_size": 0.01, "num_steps": 3, "num_restarts": 2, "eps": (0.04,)}

    def run(size):
        results, _, examples = run_suite(Linear(), weights, split, size, seed=3, p=pgd)
        untimed = tuple(replace(entry, seconds=0.0) for entry in results.attacks)
        return replace(results, attacks=untimed), examples.to_arrays()

    expected, arrays = run(16)
    actual, other_arrays = run(batch_size)
    assert actual == expected
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(other_arrays[name], array, atol=1e-6, err_msg=name)


def test_the_worst_case_is_per_example_over_all_smaller_radii(problem):
    weights, split, _ = problem
    weak = {"attack": "pgd", "step_size": 0.001, "num_steps": 1, "random_start": False}
    results, _, examples = run_suite(
        Linear(),
        weights,
        split,
        weak={**weak, "eps": (0.06,)},
        strong={"attack": "fgsm", "eps": (0.02, 0.08)},
    )
    robust = {key: attacked.robust for key, attacked in examples.attacks.items()}
    expected = robust["weak/0.06"] & robust["strong/0.02"]
    assert robust["weak/0.06"].sum() > expected.sum()
    worst = {one.eps: one for one in results.worst_case}
    assert worst[0.06].accuracy == expected.mean()
    assert worst[0.06].attacks == ("weak/0.06", "strong/0.02")
    assert worst[0.02].accuracy == robust["strong/0.02"].mean()


def test_misclassified_examples_count_as_not_robust_and_are_not_attacked(problem):
    weights, split, margins = problem
    results, entries, examples = run_suite(
        Linear(), weights, split, fgsm={"attack": "fgsm", "eps": (0.0,)}
    )
    wrong = margins < 0
    assert wrong.sum() == 5
    assert not examples.attacks["fgsm/0"].robust[wrong].any()
    np.testing.assert_allclose(examples.attacks["fgsm/0"].margins, -margins, atol=1e-5)
    assert results.clean.accuracy == entries["fgsm/0"].accuracy == 0.9
    assert entries["fgsm/0"].attacked == 45


def test_the_random_start_of_an_example_depends_on_its_number_alone(problem):
    weights, split, _ = problem
    pgd = {"attack": "pgd", "step_size": 0.0, "num_steps": 1, "eps": (0.05,)}
    (attack,) = expand_suite(ConfigDict({"p": pgd}))
    some = np.array([40, 7, 23])
    on = noise_models(Linear(), weights, seed=0)["on"]
    everything = run_attack(on, split, attack, np.arange(50), 10, seed=0)
    found = run_attack(on, split, attack, some, 4, seed=0)
    np.testing.assert_array_equal(found.images, everything.images[some])
    scores = score_images(on, split, found.images, some, 4, seed=0)
    assert not scores.unmoved.any()


def test_a_black_box_attack_reports_the_cost_of_its_successes(problem):
    weights, split, _ = problem
    search = {"attack": "random_search", "eps": (0.08,), "num_queries": 40}
    results, entries, examples = run_suite(Linear(), weights, split, search=search)
    entry, attacked = entries["search/0.08"], examples.attacks["search/0.08"]
    queries, robust, correct = attacked.queries, attacked.robust, examples.margins < 0
    np.testing.assert_array_equal(queries[~correct], 0)
    np.testing.assert_array_equal(queries[robust], 40)
    fooled = correct & ~robust
    assert 0 < fooled.sum() < correct.sum()
    assert entry.query_cost.success_rate == pytest.approx(fooled.sum() / correct.sum())
    assert entry.query_cost.median_queries == np.median(queries[fooled])
    curve = {point.queries: point.accuracy for point in entry.query_cost.over_queries}
    assert curve[1] == results.clean.accuracy
    assert curve[40] == entry.accuracy
    assert curve[5] == np.mean(correct & ~(fooled & (queries <= 5)))
    fgsm = {"attack": "fgsm", "eps": (0.1,)}
    assert run_suite(Linear(), weights, split, f=fgsm)[1]["f/0.1"].query_cost is None


def test_the_seconds_of_an_attack_include_those_of_interrupted_runs(problem):
    weights, split, _ = problem
    attacks = {
        "pgd": {"attack": "pgd", "step_size": 0.02, "num_steps": 1, "eps": (0.01, 0.011)},
        "square": {"attack": "square", "num_queries": 20, "eps": (0.01,)},
    }
    cache = {}
    run_suite(Linear(), weights, split, cache=cache, **attacks)
    cache["pgd/0.01"]["seconds"] += 1000
    cache["square/0.01/part"] = {"seconds": np.asarray(2000)}
    _, entries, _ = run_suite(Linear(), weights, split, cache=cache, **attacks)
    assert 1000 < entries["pgd/0.01"].seconds < 1100
    assert entries["pgd/0.011"].seconds < 100
    assert 2000 < entries["square/0.01"].seconds < 2100


def test_an_attack_has_all_arguments_of_its_function():
    attacks = {attack.key: attack for attack in expand_suite(attack_suites.standard())}
    pgd = attacks["pgd40/0.03"]
    assert (pgd.name, pgd.attack, pgd.eps, pgd.noise) == ("pgd40", "pgd", 0.03, "on")
    assert pgd.arguments == {
        "step_size": 0.01,
        "num_steps": 40,
        "norm": "linf",
        "loss": "cross_entropy",
        "random_start": False,
        "num_odi_steps": 0,
        "num_restarts": 1,
        "num_noise_samples": 1,
        "noise_chunk_size": 1,
        "noise_average": "loss",
    }
    assert attacks["pgd20_restarts/0.03"].arguments["num_restarts"] == 5
    assert "num_steps" not in attacks["fgsm/0.1"].arguments


def test_an_unknown_argument_is_named_with_the_nearest_known_one():
    attacks = attack_suites.standard()
    attacks.pgd40.step_sise = 0.1
    with pytest.raises(UserError, match=r"pgd40\.step_sise is not an argument of pgd: .*step_size"):
        expand_suite(attacks)
    with pytest.raises(UserError, match=r"attacks\.p lacks step_size, num_steps"):
        expand_suite(ConfigDict({"p": {"attack": "pgd", "eps": (0.1,)}}))


def test_a_custom_autoattack_is_configured_like_any_attack(problem):
    weights, split, margins = problem
    attacks = {
        "apgd": {"attack": "apgd", "num_steps": 10},
        "random": {"attack": "random_search", "num_queries": 3},
    }
    configured = {"attack": "autoattack", "eps": (0.02,), "version": "custom", "attacks": attacks}
    _, entries, _ = run_suite(Linear(), weights, split, aa=ConfigDict(configured))
    (entry,) = entries.values()
    w = weights["params"]["w"]
    assert entry.accuracy == np.mean(margins > 0.02 * np.abs(w).sum())
    assert [stage.name for stage in entry.stages] == ["apgd", "random"]
    assert entry.to_json()["attacks"] == attacks
    (attack,) = expand_suite({"aa": {**configured, "attacks": {"a": {"attack": "pgd"}}}})
    with pytest.raises(UserError, match=r"aa\.attacks\.a\.attack must be one of apgd, fab"):
        check_suite([attack], num_classes=2)
