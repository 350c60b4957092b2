"""The battery on a linear model, where the accuracy under attack has a closed form."""

import numpy as np
import pytest
from linear_classifier import Linear, battery, make_problem
from ml_collections import ConfigDict

from configs import batteries
from jaxadv.battery import run_battery
from jaxadv.crafting import expand
from jaxadv.outcomes import attack_examples
from jaxadv.types import UserError

EPS = (0.0, 0.02, 0.06)


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def test_accuracies_are_those_of_the_closed_form(problem):
    weights, split, margins = problem
    w = weights["params"]["w"]
    pgd = {"attack": "pgd", "step_size": 0.02, "num_steps": 8, "eps": EPS}
    evaluation = battery(
        fgsm={"attack": "fgsm", "eps": EPS},
        linf=pgd,
        l2={**pgd, "norm": "l2", "eps": (0.1,), "step_size": 0.2},
    )
    results, examples = run_battery(Linear(), weights, split, evaluation, seed=0, progress=False)
    assert results["clean"]["accuracy"] == np.mean(margins > 0)
    for eps in EPS:
        expected = margins > eps * np.abs(w).sum()
        for name in ("fgsm", "linf"):
            np.testing.assert_array_equal(examples[f"survived/{name}/{eps:.4g}"], expected)
            assert results["attacks"][f"{name}/{eps:.4g}"]["accuracy"] == expected.mean()
    expected = margins > 0.1 * np.linalg.norm(w)
    np.testing.assert_array_equal(examples["survived/l2/0.1"], expected)
    assert 0.1 < expected.mean() < 0.9
    assert results["aggregated_score"]["linf"] == pytest.approx(
        sum(np.mean(margins > eps * np.abs(w).sum()) for eps in EPS)
    )
    assert results["warnings"] == []


@pytest.mark.parametrize("batch_size", [2, 14, 64])
def test_results_do_not_depend_on_the_batch_size(problem, batch_size):
    weights, split, _ = problem
    pgd = {"attack": "pgd", "step_size": 0.01, "num_steps": 3, "num_restarts": 2, "eps": (0.04,)}

    def run(size):
        return run_battery(Linear(), weights, split, battery(size, p=pgd), seed=3, progress=False)

    expected, arrays = run(16)
    actual, other_arrays = run(batch_size)
    for result in (expected, actual):
        del result["attacks"]["p/0.04"]["seconds"]
    assert actual == expected
    for name, array in arrays.items():
        np.testing.assert_allclose(other_arrays[name], array, atol=1e-6, err_msg=name)


def test_the_worst_case_is_per_example_over_all_smaller_radii(problem):
    weights, split, _ = problem
    weak = {"attack": "pgd", "step_size": 0.001, "num_steps": 1, "random_start": False}
    evaluation = battery(
        weak={**weak, "eps": (0.06,)}, strong={"attack": "fgsm", "eps": (0.02, 0.08)}
    )
    results, examples = run_battery(Linear(), weights, split, evaluation, seed=0, progress=False)
    expected = examples["survived/weak/0.06"] & examples["survived/strong/0.02"]
    assert examples["survived/weak/0.06"].sum() > expected.sum()
    worst = results["worst_case"]["linf/0.06"]
    assert worst["accuracy"] == expected.mean()
    assert worst["attacks"] == ["strong/0.02", "weak/0.06"]
    assert results["worst_case"]["linf/0.02"]["accuracy"] == examples["survived/strong/0.02"].mean()


def test_what_is_misclassified_counts_as_broken_and_is_not_attacked(problem):
    weights, split, margins = problem
    results, examples = run_battery(
        Linear(), weights, split, battery(fgsm={"attack": "fgsm", "eps": (0.0,)}), 0, progress=False
    )
    wrong = margins < 0
    assert wrong.sum() == 5
    assert not examples["survived/fgsm/0"][wrong].any()
    np.testing.assert_allclose(examples["margin/fgsm/0"], -margins, atol=1e-5)
    assert results["clean"]["accuracy"] == results["attacks"]["fgsm/0"]["accuracy"] == 0.9


def test_an_example_gets_the_same_start_wherever_it_stands(problem):
    weights, split, _ = problem
    attack = expand(
        ConfigDict({"p": {"attack": "pgd", "step_size": 0.0, "num_steps": 1, "eps": (0.05,)}})
    )["p/0.05"]
    everything = attack_examples(Linear(), weights, split, attack, np.arange(50), 10, seed=0)
    some = attack_examples(Linear(), weights, split, attack, np.array([40, 7, 23]), 4, seed=0)
    np.testing.assert_array_equal(some.images, everything.images[[40, 7, 23]])
    assert not some.unmoved.any()


def test_a_black_box_attack_shows_what_its_queries_bought(problem):
    weights, split, _ = problem
    search = {"attack": "random_search", "eps": (0.08,), "num_queries": 40}
    results, examples = run_battery(
        Linear(), weights, split, battery(search=search), 0, progress=False
    )
    entry, queries = results["attacks"]["search/0.08"], examples["queries/search/0.08"]
    survived, correct = examples["survived/search/0.08"], examples["margin/clean"] < 0
    np.testing.assert_array_equal(queries[~correct], 0)
    np.testing.assert_array_equal(queries[survived], 40)
    broken = correct & ~survived
    assert 0 < broken.sum() < correct.sum()
    assert entry["success_rate"] == pytest.approx(broken.sum() / correct.sum())
    assert entry["median_queries"] == np.median(queries[broken])
    curve = {point["queries"]: point["accuracy"] for point in entry["over_queries"]}
    assert curve[1] == results["clean"]["accuracy"]
    assert curve[40] == entry["accuracy"]
    assert curve[5] == np.mean(correct & ~(broken & (queries <= 5)))
    assert (
        "over_queries"
        not in run_battery(
            Linear(),
            weights,
            split,
            battery(f={"attack": "fgsm", "eps": (0.1,)}),
            0,
            progress=False,
        )[0]["attacks"]["f/0.1"]
    )


def test_the_time_of_an_attack_has_that_of_the_processes_before(problem):
    weights, split, _ = problem
    evaluation = battery(
        pgd={"attack": "pgd", "step_size": 0.02, "num_steps": 1, "eps": (0.01, 0.011)},
        square={"attack": "square", "num_queries": 20, "eps": (0.01,)},
    )
    ledger = {}
    run_battery(Linear(), weights, split, evaluation, seed=0, progress=False, ledger=ledger)
    ledger["pgd/0.01"]["seconds"] += 1000
    ledger["square/0.01/part"] = {"seconds": np.asarray(2000)}
    results, _ = run_battery(
        Linear(), weights, split, evaluation, seed=0, progress=False, ledger=ledger
    )
    seconds = {name: result["seconds"] for name, result in results["attacks"].items()}
    assert 1000 < seconds["pgd/0.01"] < 1100
    assert seconds["pgd/0.011"] < 100
    assert 2000 < seconds["square/0.01"] < 2100


def test_an_attack_has_all_arguments_of_its_function():
    attacks = expand(batteries.standard())
    assert attacks["pgd40/0.03"] == {
        "attack": "pgd",
        "eps": 0.03,
        "step_size": 0.01,
        "num_steps": 40,
        "norm": "linf",
        "loss": "cross_entropy",
        "random_start": False,
        "num_restarts": 1,
        "num_noise_samples": 1,
        "noise_chunk_size": 1,
        "noise_average": "loss",
        "noise": "on",
    }
    assert attacks["pgd20_restarts/0.03"]["num_restarts"] == 5
    assert "num_steps" not in attacks["fgsm/0.1"]


def test_a_wrong_argument_is_named_with_the_nearest_right_one():
    attacks = batteries.standard()
    attacks.pgd40.step_sise = 0.1
    with pytest.raises(UserError, match=r"pgd40\.step_sise is no argument of pgd: .*step_size"):
        expand(attacks)
    with pytest.raises(UserError, match=r"attacks\.p lacks step_size, num_steps"):
        expand(ConfigDict({"p": {"attack": "pgd", "eps": (0.1,)}}))
