"""Models outside of JAX: results as in JAX, exact calls, and no model in a cache."""

import gc
import weakref

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from calls import BLACK_BOX, CALLS, images_of, patch_stages, run, run_autoattack
from jax import lax
from linear_model import SIZE, WEIGHTS, examples

from jaxadv.attacks import ATTACKS, AttackResult, BlackBox, apgd, nes, pgd, square
from jaxadv.attacks.batching import (
    Examples,
    Model,
    attack_batch,
    attack_in_batches,
    count_classes,
    map_batches,
    search_size,
    search_survivors,
    trace_in_batches,
)
from jaxadv.attacks.host_calls import run_with_host_calls
from jaxadv.attacks.host_model import HostModel
from jaxadv.attacks.tracing import trace_model

KEY = jax.random.key(0)
W = np.asarray(WEIGHTS, np.float32)
GRADIENT_ATTACKS = [name for name in CALLS if name not in BLACK_BOX]


def logits_fn(key, images):
    return (images.reshape(len(images), SIZE, 1) * W).sum(axis=1)


def problem(n=10):
    """Correctly classified images, except for the first two."""
    images, _ = examples(n=n)
    labels = logits_fn(None, images).argmax(axis=1)
    return images, labels.at[:2].set((labels[:2] + 1) % 5)


def probabilities(images):
    logits = (images.reshape(len(images), SIZE, 1) * W).sum(axis=1)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


class Counted:
    """A linear model in NumPy that records the number of images in each call."""

    def __init__(self):
        self.forward_sizes, self.gradient_sizes, self.pull_back_sizes = [], [], []
        self.model = HostModel(5, self.forward, self.forward_for_gradient)

    def forward(self, images):
        self.forward_sizes.append(len(images))
        return np.asarray(images).reshape(len(images), SIZE) @ W

    def forward_for_gradient(self, images):
        self.gradient_sizes.append(len(images))

        def pull_back(cotangent):
            self.pull_back_sizes.append(len(cotangent))
            return (np.asarray(cotangent) @ W.T).reshape(images.shape)

        return np.asarray(images).reshape(len(images), SIZE) @ W, pull_back


def without_extras(result):
    """The extras of NES amplify rounding."""
    return result._replace(extras=()) if isinstance(result, AttackResult) else result


def assert_same(one, other, tolerance=1e-5):
    one, other = without_extras(one), without_extras(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def count_compilations(function):
    compilations = []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    function()
    jax.monitoring.unregister_event_duration_listener(count)
    return len(compilations)


# Black boxes


@pytest.mark.parametrize("name", BLACK_BOX)
def test_black_boxes_give_the_results_of_the_same_jax_function(name):
    rows = []

    def predict(images):
        rows.append(len(images))
        return probabilities(images)

    images, labels = problem()
    found = run(name, BlackBox(predict), images, labels)
    expected = run(name, logits_fn, images, labels)
    np.testing.assert_array_equal(found.success, expected.success)
    np.testing.assert_array_equal(found.queries, expected.queries)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
    np.testing.assert_allclose(found.margins, expected.margins, rtol=1e-4, atol=1e-4)
    assert sum(rows) == found.queries.sum()


@pytest.mark.parametrize("name", BLACK_BOX)
def test_a_known_number_of_classes_changes_nothing(name):
    learned = run(name, BlackBox(probabilities), *problem())
    assert_same(run(name, BlackBox(probabilities, num_classes=5), *problem()), learned, 0)


@pytest.mark.parametrize("guess", [2, 9])
def test_the_number_of_classes_is_learned_without_a_query(guess, monkeypatch):
    monkeypatch.setattr("jaxadv.attacks.black_box._last_num_classes", [guess])
    seen = []

    def predict(images):
        seen.append(images)
        return probabilities(images)

    images, labels = problem()
    result = square(KEY, BlackBox(predict), images, jnp.zeros_like(labels), eps=0.1, num_queries=3)
    np.testing.assert_array_equal(seen[0], images)
    assert sum(map(len, seen)) == result.queries.sum()


def test_only_active_rows_are_queried_in_their_order():
    seen = []

    def predict(images):
        seen.append(images)
        return probabilities(images)

    images, labels = problem()
    square(KEY, BlackBox(predict), images, labels, eps=0.0, num_queries=3)
    np.testing.assert_array_equal(seen[0], images)
    for queried in seen[1:]:  # the first two are misclassified and have left
        np.testing.assert_array_equal(queried, images[2:])
    assert len(seen) == 3


def test_changing_numbers_of_classes_raise_an_error():
    calls = []

    def predict(images):
        calls.append(len(images))
        return np.full((len(images), 4 + len(calls)), 1 / (4 + len(calls)))

    with pytest.raises(ValueError, match="returned 6 classes, but the model has 5"):
        square(KEY, BlackBox(predict), *problem(), eps=0.0, num_queries=4)


def test_labels_beyond_the_known_classes_raise_an_error():
    with pytest.raises(ValueError, match="num_classes of the BlackBox is 3"):
        square(KEY, BlackBox(probabilities, num_classes=3), *problem(), eps=0.1, num_queries=4)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, ConnectionError, SystemExit])
def test_exceptions_arrive_unchanged(exception):
    raised = exception("gone")

    def predict(images):
        raise raised

    with pytest.raises(exception) as caught:
        square(KEY, BlackBox(predict), *problem(), eps=0.1, num_queries=4)
    assert caught.value is raised
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_black_boxes_may_use_jax_and_attack_other_models():
    images, labels = problem()
    inner = []

    @jax.jit
    def compiled(images):
        return jax.nn.softmax(logits_fn(None, images))

    def predict(queries):
        inner.append(run("square", BlackBox(probabilities), images, labels))
        return np.asarray(compiled(queries))

    found = run("square", BlackBox(predict), images, labels)
    assert_same(found, run("square", logits_fn, images, labels), 1e-4)
    assert_same(inner[0], run("square", BlackBox(probabilities), images, labels), 0)


def test_resumed_attacks_on_black_boxes_make_no_further_queries():
    rows = []

    def predict(images):
        rows.append(len(images))
        return probabilities(images)

    images, labels = problem()
    first = run("square", BlackBox(predict), images, labels, num_queries=3)
    second = run("square", BlackBox(predict), images, labels, resume=first)
    assert sum(rows) == second.queries.sum()
    assert_same(second, run("square", BlackBox(predict), images, labels), 0)


def test_noise_samples_are_queries():
    rows = []

    def predict(images):
        rows.append(len(images))
        return probabilities(images)

    result = run("square", BlackBox(predict), *problem(), num_noise_samples=2)
    assert sum(rows) == result.queries.sum()


def test_new_black_boxes_do_not_compile_and_are_not_kept():
    def attack():
        model = BlackBox(lambda images: probabilities(images))
        run("square", model, *problem())
        return weakref.ref(model), weakref.ref(model.predict)

    attack()
    refs = []
    assert count_compilations(lambda: refs.extend(attack())) == 0
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_black_boxes_with_classes_cannot_be_compiled():
    model = BlackBox(probabilities, num_classes=5)
    images, labels = problem()
    with pytest.raises(ValueError, match="inside of jit"):
        jax.jit(lambda images: run("square", model, images, labels))(images)


def test_logits_of_black_boxes():
    def predict(images):
        answer = probabilities(images)
        answer[0] = np.nan
        return answer

    images, _ = problem()
    logits = BlackBox(predict, num_classes=5).logits(KEY, images)
    assert np.isnan(logits[0]).all()
    expected = jax.nn.log_softmax(logits_fn(None, images))
    np.testing.assert_allclose(logits[1:], expected[1:], rtol=1e-4)
    with pytest.raises(ValueError, match="num_classes of the BlackBox is not known"):
        BlackBox(predict).logits(KEY, images)


# Models with gradients


@pytest.mark.parametrize("name", CALLS)
def test_host_models_give_the_results_of_the_same_jax_function(name):
    counted = Counted()
    found = run(name, counted.model, *problem())
    assert_same(found, run(name, logits_fn, *problem()), 1e-4)
    # DeepFool pulls the gradients of all classes back, one after another.
    per_pass = 5 if name == "deepfool" else 1
    assert per_pass * len(counted.gradient_sizes) == len(counted.pull_back_sizes)
    assert (len(counted.gradient_sizes) > 0) == (name in GRADIENT_ATTACKS)


@pytest.mark.parametrize("wrapper", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("name", ["pgd", "fab", "nes"])
def test_jax_functions_may_call_host_models(name, wrapper):
    model = Counted().model
    mixed = wrapper(lambda key, images: 2 * model(key, (images - 0.5) / 2))
    pure = lambda key, images: 2 * logits_fn(key, (images - 0.5) / 2)  # noqa: E731
    assert_same(run(name, mixed, *problem()), run(name, pure, *problem()), 1e-4)


@pytest.mark.parametrize("average", ["loss", "softmax"])
def test_noise_samples_of_a_chunk_are_one_call(average):
    counted = Counted()
    options = {"num_noise_samples": 4, "noise_chunk_size": 2, "noise_average": average}
    found = run("pgd", counted.model, *problem(), num_restarts=1, **options)
    expected = run("pgd", logits_fn, *problem(), num_restarts=1, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert counted.gradient_sizes == [20] * (3 * 2)  # steps, chunks
    assert counted.forward_sizes == ([20] * (3 * 2) if average == "softmax" else [])


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_starts_of_odi_on_host_models(name):
    counted = Counted()
    found = run(name, counted.model, *problem(), num_odi_steps=2)
    assert_same(found, run(name, logits_fn, *problem(), num_odi_steps=2), 1e-4)
    if name == "pgd":
        assert counted.gradient_sizes == [10] * (2 * (2 + 3))


def test_noise_samples_differ_for_random_models():
    generator = np.random.default_rng(0)
    model = HostModel(2, lambda images: generator.normal(size=(len(images), 2)), np.asarray)
    keys = jax.random.split(KEY, 3)
    logits = jax.vmap(model, in_axes=(0, None))(keys, problem()[0])
    assert logits.shape == (3, 10, 2)
    assert len(np.unique(logits)) == 60


def test_one_pass_per_gradient():
    counted = Counted()
    run("pgd", counted.model, *problem(), num_steps=5, num_restarts=1)
    assert (counted.forward_sizes, counted.gradient_sizes) == ([], [10] * 5)
    assert counted.pull_back_sizes == [10] * 5
    counted = Counted()
    result = apgd(KEY, counted.model, *problem(), eps=1e-6, num_steps=5)
    assert result.gradients.max() == 6
    assert (counted.forward_sizes, counted.gradient_sizes) == ([10], [10] * 6)  # ranks first
    counted = Counted()
    fab = run("fab", counted.model, *problem(), num_targets=0)
    steps = int(fab.steps.max())
    assert counted.gradient_sizes == [10] * steps
    assert counted.pull_back_sizes == [10] * (5 * steps)  # of all classes
    assert counted.forward_sizes == [10] * (1 + steps)


def test_gradients_outside_of_attacks():
    model, images = Counted().model, problem()[0]
    found = jax.jacrev(lambda x: model(KEY, x))(images)
    np.testing.assert_allclose(found, jax.jacrev(lambda x: logits_fn(KEY, x))(images), rtol=1e-5)
    logits, pull_back = jax.vjp(lambda x: model(KEY, x), images)
    for _ in range(2):  # the second call needs another forward pass
        (gradient,) = pull_back(jnp.ones_like(logits))
        np.testing.assert_allclose(gradient[0].ravel(), W.sum(axis=1), rtol=1e-4, atol=1e-5)


def test_nested_maps_of_gradients_keep_their_order():
    model, images = Counted().model, problem()[0]
    batches = jnp.stack([images, images**2, images / 3])

    def jacobians(logits_fn):
        squared = lambda x: logits_fn(KEY, x**2)  # noqa: E731
        return jax.vmap(jax.jacrev(squared))(batches)

    np.testing.assert_allclose(jacobians(model), jacobians(logits_fn), rtol=1e-4, atol=1e-5)


def test_forgotten_passes_are_repeated():
    counted, images = Counted(), problem()[0]

    def several(key, images):
        return sum(counted.model(key, images**i) for i in range(1, 8))

    pure = lambda key, images: sum(logits_fn(key, images**i) for i in range(1, 8))  # noqa: E731
    found = jax.grad(lambda x: several(KEY, x)[:, 0].sum())(images)
    np.testing.assert_allclose(
        found, jax.grad(lambda x: pure(KEY, x)[:, 0].sum())(images), rtol=1e-4, atol=1e-4
    )
    assert len(counted.gradient_sizes) > 7
    assert not counted.model._pending


def test_new_host_models_do_not_compile_and_are_not_kept():
    def attack():
        counted = Counted()
        run("pgd", lambda key, images: counted.model(key, images), *problem())
        return weakref.ref(counted), weakref.ref(counted.model)

    attack()
    refs = []
    assert count_compilations(lambda: refs.extend(attack())) == 0
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_lost_host_models_raise_an_error():
    traced = trace_model(Counted().model, KEY, problem()[0])
    gc.collect()
    with pytest.raises(ValueError, match="keep a reference to it"):
        run("pgd", traced, *problem())


def test_host_models_cannot_be_compiled():
    model = Counted().model
    with pytest.raises(ValueError, match="cannot be called inside of jit"):
        jax.jit(model)(KEY, problem()[0])
    with pytest.raises(ValueError, match="cannot be called inside of jit"):
        jax.jit(lambda x: run("pgd", model, x, problem()[1]))(problem()[0])


def test_wrong_shapes_raise_an_error():
    images, labels = problem()
    short = HostModel(5, lambda images: np.zeros((3, 5)), np.asarray)
    with pytest.raises(ValueError, match=r"shape \(3, 5\): return logits of shape \(10, 5\)"):
        square(KEY, short, images, labels, eps=0.1, num_queries=2)
    flat = HostModel(
        5, np.asarray, lambda x: (np.zeros((len(x), 5)), lambda cotangent: np.zeros(3))
    )
    with pytest.raises(ValueError, match=r"shape \(3,\): return a gradient of the shape"):
        run("pgd", flat, images, labels)


def test_errors_of_host_models_arrive_unchanged():
    def interrupted(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("pgd", HostModel(5, interrupted, interrupted), *problem())


# Searches and AutoAttack


STAGES = {
    "apgd": {"attack": "apgd", "num_steps": 5, "loss": "dlr", "num_targets": 2},
    "fab": {"attack": "fab", "num_steps": 4, "num_targets": 2},
    "square": {"attack": "square", "num_queries": 60},
}


@pytest.mark.slow
def test_autoattack_on_host_models(monkeypatch):
    patch_stages(monkeypatch, {"standard": STAGES})
    images, labels = problem(40)
    options = {"eps": 0.03, "batch_size": 16}
    found = run_autoattack(Counted().model, images, labels, **options)
    expected = run_autoattack(logits_fn, images, labels, **options)
    np.testing.assert_array_equal(found.broken_by, expected.broken_by)
    np.testing.assert_array_equal(found.queries, expected.queries)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
    assert found.flags == expected.flags
    assert len(np.unique(found.broken_by)) > 2
    counted = Counted()
    other = run_autoattack(counted.model, images, labels, eps=0.03, batch_size=40)
    np.testing.assert_array_equal(found.queries, other.queries)
    assert set(counted.forward_sizes) == {40, 32}
    # The compiled steps are shared, and keep no model.
    assert count_compilations(
        lambda: run_autoattack(Counted().model, images, labels, **options)
    ) == 0  # fmt: skip
    ref = weakref.ref(counted)
    del counted
    gc.collect()
    assert ref() is None


def test_gradient_attacks_refuse_black_boxes():
    images, _ = problem()
    with pytest.raises(ValueError, match="a BlackBox, which has no gradients"):
        trace_in_batches(BlackBox(probabilities), KEY, images.shape[1:], images.dtype)


@pytest.mark.parametrize("name", ["square", "nes"])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_searches_on_black_boxes(name, batch_size):
    rows = []

    def predict(images):
        rows.append(len(images))
        return probabilities(images)

    images, labels = problem()
    box = BlackBox(predict, num_classes=5)
    model = trace_in_batches(box, KEY, images.shape[1:], images.dtype, gradients=False)
    examples = Examples(np.asarray(images), np.asarray(labels), np.arange(10))
    assert count_classes(model, examples, batch_size) == 5
    arguments = {**CALLS[name], "num_queries": 40}
    found = search_survivors(ATTACKS[name], KEY, model, examples, arguments, batch_size=batch_size)
    expected = run(name, logits_fn, images, labels, num_queries=40)
    np.testing.assert_array_equal(found.queries, expected.queries)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-5)


def test_black_boxes_inside_of_traced_steps():
    images, labels = problem()
    box = BlackBox(probabilities, num_classes=5)
    model = Model(lambda context, ids: box, (), on_host=True)
    examples = Examples(np.asarray(images), np.asarray(labels), np.arange(10))
    assert count_classes(model, examples, 10) == 5
    resume = square(KEY, box, images, labels, eps=0.1, num_queries=0)
    found = attack_batch(ATTACKS["square"], KEY, model, examples, CALLS["square"], resume)
    assert isinstance(found.images, np.ndarray)
    assert_same(found, run("square", box, images, labels), 0)
    score = map_batches(
        lambda context, key, images: box.logits(key, images), True, num_replicated=2, num_batches=1
    )
    expected = jax.nn.log_softmax(logits_fn(None, images))
    np.testing.assert_allclose(score((), KEY, np.asarray(images)), expected, rtol=1e-4)


def test_batches_on_the_host_have_few_idle_rows():
    sizes = [search_size(512, left, on_host=True) for left in (None, 1, 65, 500, 600, 1000)]
    assert sizes == [512, 64, 64, 512, 64, 512]
    assert [search_size(20, left, on_host=True) for left in (None, 1)] == [20, 20]


def test_attacks_of_fixed_cost_on_host_models():
    images, labels = problem()
    counted = Counted()
    model = trace_in_batches(counted.model, KEY, images.shape[1:], images.dtype)
    assert model.on_host
    examples = Examples(np.asarray(images), np.asarray(labels), np.arange(10))
    found = attack_in_batches(ATTACKS["pgd"], KEY, model, examples, CALLS["pgd"], batch_size=4)
    np.testing.assert_allclose(
        found.images, images_of(run("pgd", logits_fn, images, labels)), atol=1e-5
    )


# Programs


def test_all_kinds_of_control_flow():
    calls = []

    def forward(images):
        calls.append(len(images))
        return np.asarray(images).reshape(len(images), SIZE) @ W

    model = HostModel(5, forward, forward)

    def program(logits_fn, images, n):
        logits = lambda scale: logits_fn(KEY, images * scale)  # noqa: E731
        mapped = lax.map(logits, jnp.arange(3.0))
        carried, rows = lax.scan(
            lambda c, x: (c + logits(x), c.sum()), logits(1.0), jnp.arange(2.0), reverse=True
        )
        looped = lax.while_loop(
            lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] + logits(s[0])), (0.0, carried)
        )
        # The condition calls the model too.
        found = lax.while_loop(lambda x: logits(x).sum() ** 2 < 1e3, lambda x: 2 * x, 1e-3)
        chosen = lax.switch(
            jnp.int32(n), [lambda: mapped[0], lambda: logits(2.0), lambda: mapped[2]]
        )
        none = lax.map(logits, jnp.zeros(0))
        return mapped, rows, looped[1], found, chosen, none, n, 3.0

    images = problem()[0]
    jitted = jax.jit(lambda images, n: program(model, images, n))
    found = run_with_host_calls(jitted, images, 1.0)
    pure = jax.jit(lambda images, n: program(lambda k, x: x.reshape(-1, SIZE) @ W, images, n))
    assert_same(found, pure(images, 1.0), 1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(pure(images, 1.0))
    num_calls = len(calls)
    assert_same(run_with_host_calls(jitted, images, 0.0), pure(images, 0.0), 1e-4)
    assert num_calls == len(calls) - num_calls + 2  # one step of the loop, and another branch


def test_unused_results_cost_no_call():
    counted = Counted()
    unused = jax.jit(lambda images: (counted.model(KEY, images), images.sum())[1])
    assert run_with_host_calls(unused, problem()[0]) == problem()[0].sum()
    assert not counted.forward_sizes


def test_arrays_are_freed_after_their_last_use():
    images, alive = problem()[0], []

    def forward(images):
        gc.collect()
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        return np.zeros((len(images), 2))

    model = HostModel(2, forward, forward)

    def program(images):
        for _ in range(6):
            images = images + model(KEY, images).sum()
        return images.sum()

    large = jnp.tile(images, (20, 1, 1, 1))
    run_with_host_calls(jax.jit(program), large)
    assert alive[-1] <= alive[1]


def test_other_transformations_raise_an_error():
    model = Counted().model
    mapped = jax.jit(jax.pmap(lambda x: model(KEY, x)))
    with pytest.raises(ValueError, match="cannot be called inside of"):
        run_with_host_calls(mapped, jnp.stack([problem()[0]] * 2))


def test_nes_on_host_models_queries_many_images_at_once():
    counted = Counted()
    options = {"eps": 0.1, "step_size": 0.01, "num_queries": 101, "early_stop": False}
    nes(KEY, counted.model, *problem(), **options)
    assert max(counted.forward_sizes) == 500


def test_arguments_on_several_devices_are_moved_to_one():
    images, labels = problem()
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put(images, sharding)
    found = pgd(KEY, Counted().model, placed, labels, eps=0.1, step_size=0.05, num_steps=2)
    expected = pgd(KEY, logits_fn, images, labels, eps=0.1, step_size=0.05, num_steps=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)
