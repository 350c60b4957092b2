"""Attacks in batches over devices, and the removal of fooled examples from the batches."""

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

from jaxadv.adapters.trained import noise_models
from jaxadv.attacks import ATTACKS, batching
from jaxadv.core.devices import traced_for
from jaxadv.core.images import to_float
from jaxadv.core.rng import stream
from jaxadv.core.types import HostBatch
from jaxadv.evaluation import attack_runner
from jaxadv.evaluation.attack_runner import run_attack, score_images
from jaxadv.evaluation.attack_suites import ConfiguredAttack, expand_suite
from jaxadv.models import make_model
from jaxadv.models.classifier import make_logits_fn
from jaxadv.models.defences import PNI

pytestmark = pytest.mark.slow  # compiles much

ARGUMENTS = {
    "nes": {"step_size": 0.01, "samples_per_gradient": 10},
    # A gradient takes more queries than a segment has; a failed step takes none.
    "nes_label_only": {
        "samples_per_gradient": 10,
        "label_samples": 4,
        "sigma": 0.05,
        "label_radius": 0.05,
        "num_queries": 400,
    },
    "apgd": {"num_steps": 30, "num_restarts": 2},
    "fab": {"num_steps": 20, "num_targets": 1},
    "hop_skip_jump": {"initial_samples": 20, "norm": "linf"},
    "rays": {},
    "square": {},
    "random_search": {},
}
ALL = np.arange(50)
PLAIN = Linear()


def attack(name, **changes):
    budget = {} if name in ("apgd", "fab") else {"num_queries": 100}
    arguments = {"eps": (0.05,), **budget, **ARGUMENTS[name], **changes}
    (found,) = expand_suite(ConfigDict({"a": {"attack": name, **arguments}}))
    return found


@pytest.fixture(scope="module")
def problem():
    weights, split, _ = make_problem()
    return weights, split


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(batching, "_SEGMENT", 30)
    monkeypatch.setattr(batching, "_SEGMENT_WITH_GRADIENTS", 30)


def run(problem, name, ids=ALL, batch_size=16, bar=None, model=PLAIN, **changes):
    weights, split = problem
    on = noise_models(model, weights, seed=3)["on"]
    found = run_attack(on, split, attack(name, **changes), ids, batch_size, seed=3, bar=bar)
    return found.images, found.queries


@pytest.mark.parametrize("name", ARGUMENTS)
def test_removing_fooled_examples_does_not_change_the_others(problem, name):
    weights, split = problem
    model = NoisyLinear()  # whose noise must follow the example numbers too
    configured = attack(name)
    logits_fn = make_logits_fn(model, weights, jnp.asarray(ALL))
    clean, labels = to_float(jnp.asarray(split.images)), jnp.asarray(split.labels)
    found = ATTACKS[name].attack_fn(
        stream(3, "attack"), logits_fn, clean, labels, eps=configured.eps, **configured.arguments
    )
    images, queries = run(problem, name, model=model)
    same = queries == np.asarray(found.queries)
    # FAB moves along the boundary, where rounding decides on which side an image is.
    assert same.mean() >= (0.95 if name == "fab" else 1)
    np.testing.assert_allclose(images[same], found.images[same], atol=1e-5)
    if not ATTACKS[name].uses_gradients:
        assert len(np.unique(queries[found.success])) > 2  # examples leave at different times
    assert queries[~found.success].max() > 30  # after the first segment
    assert 0 < found.success.sum() < 50


def test_another_number_of_images_compiles_nothing(problem, caplog):
    weights, split = problem
    pgd = ConfiguredAttack("a", "pgd", 0.05, arguments={"step_size": 0.01, "num_steps": 3})
    on = noise_models(PLAIN, weights, seed=3)["on"]

    def attack_and_score(ids):
        images = np.asarray(run_attack(on, split, pgd, ids, 16, 3).images)
        for scored in (None, images):
            score_images(on, split, scored, ids, 16, 3)

    with jax.log_compiles():
        attack_and_score(ALL[:20])
        assert "Compiling" in caplog.text
        caplog.clear()
        attack_and_score(ALL[:21])
        assert "Compiling" not in caplog.text


def test_finished_batches_are_not_attacked_again_after_a_kill(problem, monkeypatch):
    monkeypatch.setattr(batching, "_SECONDS_BETWEEN_SAVES", -1)  # after each batch
    weights, split = problem
    pgd = ConfiguredAttack("a", "pgd", 0.05, arguments={"step_size": 0.01, "num_steps": 3})
    on = noise_models(PLAIN, weights, seed=3)["on"]
    attack_all = partial(run_attack, on, split, pgd, ALL, 16, 3)
    whole, cache, attacked = attack_all().images, {}, []
    dying = Mock(spec=tqdm, update=Mock(side_effect=[None, None, KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):  # in the third of four batches
        attack_all(bar=dying, cache=cache)
    cache[pgd.key]["seconds"] += 1000
    attack_batch = batching.attack_batch

    def counted(spec, key, model, examples, arguments):
        attacked.append(examples.ids)
        return attack_batch(spec, key, model, examples, arguments)

    monkeypatch.setattr(batching, "attack_batch", counted)
    with tqdm(total=50 * 3, file=io.StringIO()) as bar:
        np.testing.assert_array_equal(attack_all(bar=bar, cache=cache).images, whole)
        assert bar.n == 50 * 3
    np.testing.assert_array_equal(np.unique(attacked), np.arange(32, 50))
    assert cache[pgd.key]["seconds"] > 1000
    attacked.clear()
    np.testing.assert_array_equal(attack_all(cache=cache).images, whole)
    assert not attacked


@pytest.mark.parametrize("batch_size", [2, 64])
def test_results_do_not_depend_on_the_batch_size(problem, batch_size):
    images, queries = run(problem, "square")
    other_images, other_queries = run(problem, "square", batch_size=batch_size)
    np.testing.assert_array_equal(queries, other_queries)
    np.testing.assert_allclose(images, other_images, atol=1e-6)


def test_the_result_of_an_example_does_not_depend_on_the_others(problem):
    some = np.array([40, 7, 23])
    images, queries = run(problem, "nes")
    some_images, some_queries = run(problem, "nes", ids=some)
    np.testing.assert_array_equal(some_queries, queries[some])
    np.testing.assert_allclose(some_images, images[some], atol=1e-5)


def test_robust_examples_are_packed_into_fewer_and_finally_smaller_batches(problem, monkeypatch):
    sizes, spent = [], []
    step = batching._attack_step

    def counted(*arguments):
        run = step(*arguments)

        def call(*args):
            sizes.append(len(args[-2]))
            spent.append(args[-1].queries.min())
            return run(*args)

        return call

    monkeypatch.setattr(batching, "_attack_step", counted)
    monkeypatch.setattr(batching, "_SEARCH_SHARE", 2)
    _, queries = run(problem, "nes", batch_size=32, num_queries=90)
    left = [int((queries > limit).sum()) for limit in (0, 23, 56)]  # two steps fit in 30 queries
    assert sizes[:4] == [16, 16, 16, 16]
    assert sorted(set(spent)) == [0, 23, 56]  # no segment runs twice
    assert left[2] < left[1] < 50
    assert sum(sizes[4:]) < sum(left[1:]) + 2 * 16
    sizes.clear()
    run(problem, "nes", batch_size=32, ids=ALL[:7], num_queries=90)
    assert max(sizes) == 8  # too few for a batch of 16


def test_the_progress_bar_counts_spent_and_saved_queries(problem):
    for name, step in (("nes", 11), ("square", 1)):
        with tqdm(file=io.StringIO()) as bar:
            _, queries = run(problem, name, bar=bar)
        # Robust examples cannot afford another step; the others have spent or saved their budget.
        rest = 100 - queries
        assert bar.n == 50 * 100 - rest[rest < step].sum()
        assert rest.max() >= step


def test_noise_samples_of_the_weights_may_be_computed_in_chunks():
    model, generator = make_model("net", 10, defence=PNI()), np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    split = HostBatch(images, np.arange(4, dtype=np.int32))
    weights = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def run(chunk_size):
        arguments = {
            "step_size": 0.01, "num_steps": 1, "norm": "l2", "num_noise_samples": 4,
            "noise_chunk_size": chunk_size,
        }  # fmt: skip
        pgd = ConfiguredAttack("a", "pgd", 0.1, arguments=arguments)
        on = noise_models(model, weights, seed=0)["on"]
        return run_attack(on, split, pgd, np.arange(4), 4, seed=0).images

    np.testing.assert_allclose(run(2), run(1), atol=1e-5)


def test_sizes_of_batches_leave_few_rows_idle():
    sizes = {left: batching.search_size(512, left) for left in range(1, 200)}
    assert set(sizes.values()) == {4, 8, 16, 24, 32}
    idle = {left: -(-left // size) * size - left for left, size in sizes.items()}
    assert max(idle[left] / left for left in range(33, 200)) < 0.5
    assert np.mean([idle[left] / left for left in range(17, 200)]) < 0.14
    # Never more batches than of the largest size.
    assert all(-(-left // size) == -(-left // 32) for left, size in sizes.items())
    assert batching.search_size(512) == 32


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [("tpu", [512, 64, 64, 512, 512, 512]), ("gpu", [512, 64, 64, 128, 512, 512])],
)
def test_an_accelerator_gets_whole_batches_of_few_sizes(accelerator, expected):
    with traced_for(accelerator):
        sizes = [batching.search_size(512, left) for left in (None, 1, 64, 65, 512, 5000)]
    assert sizes == expected


def test_a_search_on_an_accelerator_has_no_more_rows_than_images(problem, monkeypatch):
    search = Mock(side_effect=StopIteration)
    monkeypatch.setattr(attack_runner, "search_survivors", search)
    for accelerator in ("cpu", "tpu"):
        with traced_for(accelerator), pytest.raises(StopIteration):
            run(problem, "square", batch_size=512)
    assert [call.kwargs["batch_size"] for call in search.call_args_list] == [512, 50]


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_the_arrays_of_a_function_go_to_the_devices_once(convert):
    weights = convert(np.ones((12, 3), np.float32))
    model = batching.trace_in_batches(
        lambda key, images: images.reshape(len(images), -1) @ weights,
        jax.random.key(0),
        (2, 2, 3),
        jnp.float32,
    )
    contexts = [model.context_for(size) for size in (2, 4, 8)]
    assert len({id(array) for array in jax.tree.leaves(contexts)}) == 1


def test_no_examples_give_an_empty_result(problem):
    images, queries = run(problem, "square", ids=np.arange(0))
    assert images.shape == (0, 2, 2, 3)
    assert queries.shape == (0,)


def test_max_queries_of_attacks():
    assert attack("square").max_queries == 100
    pgd = {"num_steps": 5, "num_restarts": 2, "num_noise_samples": 3}
    assert ATTACKS["pgd"].max_queries(pgd) == 30
    assert ATTACKS["fgsm"].max_queries({"num_noise_samples": 1}) == 1
    assert attack("apgd").max_queries == 2 * 31
    assert attack("apgd", num_targets=9, num_noise_samples=3).max_queries == 2 * 9 * 3 * 31
    assert attack("fab", num_targets=9).max_queries == 9 * 2 * 20
    assert ATTACKS["autoattack"].max_queries({"version": "standard"}) == 101 + 909 + 1800 + 5000


def test_without_early_stop_the_search_runs_in_one_segment(problem):
    _, queries = run(problem, "nes", num_queries=91, early_stop=False)
    np.testing.assert_array_equal(queries, 91)
    assert jax.device_count() == 2
