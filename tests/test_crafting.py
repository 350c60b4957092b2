"""Attacks in batches over devices; above all that those fooled may leave."""

import io
from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_classifier import Linear, NoisyLinear, make_problem
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks import ATTACKS, GRADIENT_FREE, batches, budgets
from jaxadv.classifier import make_logits_fn, to_float
from jaxadv.crafting import craft, expand, num_queries
from jaxadv.models import make_model
from jaxadv.models.defences import PNI
from jaxadv.prng import stream
from jaxadv.types import Batch

ARGUMENTS = {
    "nes": {"step_size": 0.01, "samples_per_gradient": 10},
    # A gradient takes more queries than a segment has, and a step that failed takes none.
    "nes_label_only": {
        "samples_per_gradient": 10,
        "label_samples": 4,
        "sigma": 0.05,
        "label_radius": 0.05,
        "num_queries": 400,
    },
    "apgd": {"num_steps": 30, "num_restarts": 2},
    "fab": {"num_steps": 20, "num_targets": 1},
    "square": {},
    "random_search": {},
}
ALL = np.arange(50)
PLAIN = Linear()


def attack(name, **changes):
    budget = {} if name in ("apgd", "fab") else {"num_queries": 100}
    arguments = {"eps": (0.05,), **budget, **ARGUMENTS[name], **changes}
    return expand(ConfigDict({"a": {"attack": name, **arguments}}))["a/0.05"]


@pytest.fixture(scope="module")
def problem():
    weights, split, _ = make_problem()
    return weights, split


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(budgets, "_SEGMENT", 30)
    monkeypatch.setattr(budgets, "_SEGMENT_WITH_GRADIENTS", 30)


def run(problem, name, ids=ALL, batch_size=16, bar=None, model=PLAIN, **changes):
    weights, split = problem
    return craft(model, weights, split, attack(name, **changes), ids, batch_size, 3, bar)[:2]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_those_who_leave_change_nothing_for_those_who_stay(problem, name):
    weights, split = problem
    model = NoisyLinear()  # whose noise must follow the examples too
    arguments = {k: v for k, v in attack(name).items() if k not in ("attack", "noise")}
    logits_fn = make_logits_fn(model, weights, jnp.asarray(ALL))
    clean, labels = to_float(jnp.asarray(split.images)), jnp.asarray(split.labels)
    found = ATTACKS[name](stream(3, "attack"), logits_fn, clean, labels, **arguments)
    images, queries = run(problem, name, model=model)
    same = queries == np.asarray(found.queries)
    # FAB walks along the boundary, where the rounding of a product decides on which side it is.
    assert same.mean() >= (0.95 if name == "fab" else 1)
    np.testing.assert_allclose(images[same], found.images[same], atol=1e-5)
    if name in GRADIENT_FREE:
        assert len(np.unique(queries[found.success])) > 2  # they leave at different times
    assert queries[~found.success].max() > 30  # after the first segment
    assert 0 < found.success.sum() < 50


def test_what_was_attacked_before_a_kill_is_not_attacked_again(problem, monkeypatch):
    monkeypatch.setattr(batches, "_SECONDS_BETWEEN_SAVES", -1)  # after each batch
    weights, split = problem
    pgd = {"attack": "pgd", "eps": 0.05, "step_size": 0.01, "num_steps": 3}
    attack_all = partial(craft, PLAIN, weights, split, pgd, ALL, 16, 3)
    whole, ledger, attacked = attack_all().images, {}, []
    dying = Mock(spec=tqdm, update=Mock(side_effect=[None, None, KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):  # in the third of four batches
        attack_all(dying, ledger, "a")
    ledger["a"]["seconds"] += 1000
    attack_batch = batches.attack_batch

    def counted(attack_fn, key, model, examples, arguments):
        attacked.append(examples.ids)
        return attack_batch(attack_fn, key, model, examples, arguments)

    monkeypatch.setattr(batches, "attack_batch", counted)
    with tqdm(total=50 * 3, file=io.StringIO()) as bar:
        np.testing.assert_array_equal(attack_all(bar, ledger, "a").images, whole)
        assert bar.n == 50 * 3
    np.testing.assert_array_equal(np.unique(attacked), np.arange(32, 50))
    assert ledger["a"]["seconds"] > 1000
    attacked.clear()
    np.testing.assert_array_equal(attack_all(None, ledger, "a").images, whole)
    assert not attacked


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


def test_survivors_close_ranks_and_the_last_of_them_in_smaller_batches(problem, monkeypatch):
    sizes, spent = [], []
    step = batches._attack_step

    def counted(*arguments):
        run = step(*arguments)

        def call(*args):
            sizes.append(len(args[-2]))
            spent.append(args[-1].queries.min())
            return run(*args)

        return call

    monkeypatch.setattr(batches, "_attack_step", counted)
    monkeypatch.setattr(batches, "_SEARCH_SHARE", 2)
    _, queries = run(problem, "nes", batch_size=32, num_queries=90)
    left = [int((queries > limit).sum()) for limit in (0, 23, 56)]  # two steps fit in 30 queries
    assert sizes[:4] == [16, 16, 16, 16]
    assert sorted(set(spent)) == [0, 23, 56]  # nothing is done twice
    assert left[2] < left[1] < 50
    assert sum(sizes[4:]) < sum(left[1:]) + 2 * 16
    monkeypatch.setattr(batches, "_TAIL_SHARE", 4)
    sizes.clear()
    run(problem, "nes", batch_size=32, ids=ALL[:8], num_queries=90)
    assert set(sizes) == {4}  # too few for a batch of 16


def test_the_bar_ends_where_all_is_spent_or_saved(problem):
    for name, step in (("nes", 11), ("square", 1)):
        with tqdm(file=io.StringIO()) as bar:
            _, queries = run(problem, name, bar=bar)
        # Those not broken could not pay another step; the budget of the others is spent or saved.
        rest = 100 - queries
        assert bar.n == 50 * 100 - rest[rest < step].sum()
        assert rest.max() >= step


def test_draws_of_the_weights_may_be_taken_at_once():
    model, generator = make_model("net", 10, defence=PNI()), np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    split = Batch(images, np.arange(4, dtype=np.int32))
    weights = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def run(chunk_size):
        arguments = {
            "attack": "pgd", "eps": (0.1,), "step_size": 0.01, "num_steps": 1, "norm": "l2",
            "num_noise_samples": 4, "noise_chunk_size": chunk_size,
        }  # fmt: skip
        ((_, attack),) = expand(ConfigDict({"a": arguments})).items()
        return craft(model, weights, split, attack, np.arange(4), 4, seed=0).images

    np.testing.assert_allclose(run(2), run(1), atol=1e-5)


def test_no_examples_are_no_work(problem):
    images, queries = run(problem, "square", ids=np.arange(0))
    assert images.shape == (0, 2, 2, 3)
    assert queries.shape == (0,)


def test_what_an_attack_may_spend():
    assert num_queries(attack("square")) == 100
    pgd = {"attack": "pgd", "num_steps": 5, "num_restarts": 2, "num_noise_samples": 3}
    assert num_queries(pgd) == 30
    assert num_queries({"attack": "fgsm", "num_noise_samples": 1}) == 1
    assert num_queries(attack("apgd")) == 2 * 31
    assert num_queries(attack("apgd", num_targets=9, num_noise_samples=3)) == 2 * 9 * 3 * 31
    assert num_queries(attack("fab", num_targets=9)) == 9 * 2 * 20


def test_the_study_goes_to_the_end_in_one_go(problem):
    _, queries = run(problem, "nes", num_queries=91, early_stop=False)
    np.testing.assert_array_equal(queries, 91)
    assert jax.device_count() == 2
