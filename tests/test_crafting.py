"""Attacks in batches over devices; above all that those fooled may leave."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_classifier import Linear, make_problem
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv import crafting
from jaxadv.attacks import ATTACKS
from jaxadv.battery import expand
from jaxadv.classifier import make_logits_fn, to_float
from jaxadv.crafting import craft, num_queries
from jaxadv.prng import stream

ARGUMENTS = {
    "nes": {"step_size": 0.01, "samples_per_gradient": 10},
    "square": {},
    "random_search": {},
}
ALL = np.arange(50)


def attack(name, **changes):
    arguments = {**ARGUMENTS[name], "eps": (0.05,), "num_queries": 100, **changes}
    return expand(ConfigDict({"a": {"attack": name, **arguments}}))["a/0.05"]


@pytest.fixture(scope="module")
def problem():
    weights, split, _ = make_problem()
    return weights, split


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(crafting, "_SEGMENT", 30)


def run(problem, name, ids=ALL, batch_size=16, bar=None, **changes):
    weights, split = problem
    return craft(Linear(), weights, split, attack(name, **changes), ids, batch_size, 3, bar)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_those_who_leave_change_nothing_for_those_who_stay(problem, name):
    weights, split = problem
    arguments = {k: v for k, v in attack(name).items() if k not in ("attack", "noise")}
    model = make_logits_fn(Linear(), weights, jnp.asarray(ALL))
    clean = to_float(jnp.asarray(split.images))
    found = ATTACKS[name](stream(3, "attack"), model, clean, jnp.asarray(split.labels), **arguments)
    images, queries = run(problem, name)
    np.testing.assert_array_equal(queries, found.queries)
    np.testing.assert_allclose(images, found.images, atol=1e-5)
    assert len(np.unique(queries)) + 30 > 30  # they stop at different times
    assert 0 < found.success.sum() < 50


@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_batch_size_changes_nothing(problem, batch_size):
    images, queries = run(problem, "square")
    other_images, other_queries = run(problem, "square", batch_size=batch_size)
    np.testing.assert_array_equal(queries, other_queries)
    np.testing.assert_allclose(images, other_images, atol=1e-6)


def test_an_example_meets_the_same_in_any_company(problem):
    some = np.array([40, 7, 23])
    images, queries = run(problem, "nes")
    some_images, some_queries = run(problem, "nes", ids=some)
    np.testing.assert_array_equal(some_queries, queries[some])
    np.testing.assert_allclose(some_images, images[some], atol=1e-5)


def test_survivors_close_ranks_in_ever_smaller_batches(problem, monkeypatch):
    sizes = []
    step = crafting._attack_step

    def counted(*arguments):
        run = step(*arguments)

        def call(*args):
            sizes.append(len(args[-2]))
            return run(*args)

        return call

    monkeypatch.setattr(crafting, "_attack_step", counted)
    _, queries = run(problem, "nes", batch_size=16, num_queries=90)
    left = [int((queries >= limit).sum()) for limit in (0, 23, 56)]  # two steps fit in 30 queries
    computed = sum(sizes)
    assert sizes[:4] == [16, 16, 16, 2]
    assert left[0] == 50
    assert left[2] < 50
    assert computed < 3 * 50
    assert set(sizes) <= {2, 4, 8, 16}


def test_the_bar_ends_where_all_is_spent_or_saved(problem):
    for name in ("nes", "square"):
        with tqdm(file=io.StringIO()) as bar:
            _, queries = run(problem, name, bar=bar)
            broken = queries < 89
            assert bar.n == 50 * 100 - (100 - queries)[~broken].sum()


def test_no_examples_are_no_work(problem):
    images, queries = run(problem, "square", ids=np.arange(0))
    assert images.shape == (0, 2, 2, 3)
    assert queries.shape == (0,)


def test_what_an_attack_may_spend():
    assert num_queries(attack("square")) == 100
    pgd = {"attack": "pgd", "num_steps": 5, "num_restarts": 2, "num_noise_samples": 3}
    assert num_queries(pgd) == 30
    assert num_queries({"attack": "fgsm", "num_noise_samples": 1}) == 1


def test_the_study_goes_to_the_end_in_one_go(problem):
    _, queries = run(problem, "nes", num_queries=91, early_stop=False)
    np.testing.assert_array_equal(queries, 91)
    assert jax.device_count() == 2
