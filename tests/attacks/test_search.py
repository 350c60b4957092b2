"""Properties of all black-box attacks: query counts, budgets and independence of the batch."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import BLACK_BOX, FUNCTIONS, NORMS, skip_other_norms
from linear_model import SIZE, WEIGHTS, examples, length

from jaxadv.attacks import BlackBox
from jaxadv.core.losses import margin

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
EPS = {"linf": 0.06, "l2": 0.4, "l1": 1.3, "l0": 3.0}
BUDGET = 60
ARGUMENTS = {
    "nes": {"step_size": 0.02, "samples_per_gradient": 10},
    # Neighbours far enough away that some of them have another label.
    "nes_label_only": {
        "samples_per_gradient": 4,
        "label_samples": 2,
        "sigma": 0.5,
        "label_radius": 0.5,
    },
    "hop_skip_jump": {"initial_samples": 6},
}

every_attack = pytest.mark.parametrize("name", BLACK_BOX)
# These see scores, and succeed within the budget.
every_score_based = pytest.mark.parametrize("name", ["nes", "square", "random_search"])
all_norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
with_l0 = pytest.mark.parametrize("norm", EPS)


def logits_fn(key, images):
    """A linear model whose summation order does not depend on the batch."""
    return (images.reshape(-1, SIZE, 1) * jnp.asarray(WEIGHTS, images.dtype)).sum(axis=1)


def noisy_logits_fn(key, images):
    return logits_fn(key, images) + jax.random.normal(key, (1, 5))


def attack(name, model, images, labels, norm="linf", num_queries=BUDGET, **changes):
    norm = norm if norm in NORMS[name] else NORMS[name][0]
    arguments = {"eps": EPS[norm], "norm": norm, **ARGUMENTS.get(name, {}), **changes}
    if name == "nes" and norm != "linf" and "step_size" not in changes:
        arguments["step_size"] = EPS[norm] / 4
    return FUNCTIONS[name](KEY, model, images, labels, num_queries=num_queries, **arguments)


@cache
def problem():
    """Correctly classified images, except for the first four."""
    images, _ = examples(n=24)
    labels = logits_fn(None, images).argmax(axis=1)
    return images, labels.at[:4].set((labels[:4] + 1) % 5)


COUNTS = np.zeros(24, int)


def count_and_predict(queries):
    """Count the queries of each image, identified by its nearest clean image."""
    images, _ = problem()
    nearest = np.abs(queries[:, None] - np.asarray(images)[None]).max(axis=(2, 3, 4))
    np.add.at(COUNTS, nearest.argmin(axis=1), 1)
    return np.asarray(jax.nn.softmax(logits_fn(None, queries)))


# Shared by all tests, so that each attack on it compiles once.
COUNTED = BlackBox(count_and_predict)


@cache
def found(name, norm):
    return attack(name, logits_fn, *problem(), norm=norm)


def rows(result, index):
    return jax.tree.map(lambda array: np.asarray(array[index]), result)


def assert_same(one, other):
    for a, b in zip(one[:-1], other[:-1], strict=True):  # all but the extras
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@every_score_based
@all_norms
def test_margins_and_success_are_those_of_the_model(name, norm):
    images, labels = problem()
    result = found(name, norm)
    margins = margin(logits_fn(None, result.images), labels)
    np.testing.assert_allclose(result.margins, margins, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.success, margins > 0)
    assert 4 < result.success.sum() < len(labels)
    assert (length(result.images - images, norm) <= EPS[norm] * (1 + 1e-5)).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1


@every_score_based
def test_misclassified_clean_images_cost_one_query(name):
    result = found(name, "linf")
    np.testing.assert_array_equal(result.queries[:4], 1)
    np.testing.assert_array_equal(result.images[:4], problem()[0][:4])
    assert result.success[:4].all()
    assert (result.queries[4:] > 1).all()
    assert (result.queries[~result.success] > BUDGET - 11).all()


@every_attack
@pytest.mark.parametrize("num_queries", [0, 1, 11, 12, 24])
def test_the_budget_is_a_hard_cap(name, num_queries):
    """Queries are counted by the model, independently of the attack."""
    images, labels = problem()
    COUNTS[:] = 0
    result = attack(name, COUNTED, images, labels, num_queries=num_queries)
    assert result.queries.max() <= num_queries
    assert result.queries.sum() == COUNTS.sum()
    if name in ("nes", "square", "random_search"):  # others may query nearer to another image
        np.testing.assert_array_equal(result.queries, COUNTS)
    if num_queries < 2:
        np.testing.assert_array_equal(result.images, images)
        assert (result.steps == num_queries).all()


@every_attack
def test_jax_models_compute_the_counted_queries_of_a_single_image(name):
    images, labels = problem()
    counts = []

    def counted(key, images):
        jax.debug.callback(lambda: counts.append(1))
        return logits_fn(key, images)

    for i in (5, 6):
        one = jnp.array([i])
        result = attack(name, counted, images[one], labels[one], example_ids=one)
        jax.effects_barrier()
        assert len(counts) == result.queries[0]
        counts.clear()


@every_attack
def test_black_boxes_and_jax_functions_give_the_same_result(name):
    result = attack(name, COUNTED, *problem())
    np.testing.assert_array_equal(result.queries, found(name, "linf").queries)
    np.testing.assert_array_equal(result.success, found(name, "linf").success)


@every_attack
@with_l0
def test_resumed_calls_reach_the_result_of_one_call(name, norm):
    skip_other_norms(name, norm)
    images, labels = problem()
    part = attack(name, logits_fn, images, labels, norm=norm, num_queries=25)
    assert (part.queries <= 25).all()
    whole = attack(name, logits_fn, images, labels, norm=norm, resume=part)
    assert_same_with_extras(whole, found(name, norm))


@every_attack
def test_rejects_the_result_of_another_call(name):
    images, labels = problem()
    other = "square" if name.startswith("nes") else "nes"
    other_results = [
        (found(other, "linf"), {}),
        (rows(found(name, "linf"), slice(3)), {}),
        (found(name, "linf"), {"eps": 0.001}),
    ]
    for resume, changes in other_results:
        with pytest.raises(ValueError, match="resume"):
            attack(name, logits_fn, images, labels, resume=resume, **changes)


def test_infinite_logits_give_finite_images():
    def confident(key, images):
        return jnp.log(jax.nn.softmax(1e4 * logits_fn(key, images)))

    images, labels = problem()
    for loss in ("margin", "probability"):
        result = attack("nes", confident, images, labels, loss=loss)
        assert np.isfinite(result.images).all()


def assert_same_with_extras(one, other):
    assert_same(one, other)
    for a, b in zip(one.extras, other.extras, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_rows_that_wait_for_a_larger_budget_skip_no_step():
    """With 7 queries, rows with a misclassified start wait for a gradient; the others continue."""
    images, labels = problem()
    part = attack("nes_label_only", logits_fn, images, labels, num_queries=7)
    assert len(np.unique(part.steps[~part.success])) > 1
    whole = attack("nes_label_only", logits_fn, images, labels, resume=part)
    assert_same_with_extras(whole, found("nes_label_only", "linf"))


@every_score_based
def test_targets_are_reached(name):
    images, labels = problem()
    targets = (labels + 2) % 5
    result = attack(name, logits_fn, images, labels, targets=targets, eps=0.3, num_queries=400)
    reached = logits_fn(None, result.images).argmax(axis=1) == targets
    np.testing.assert_array_equal(result.success, reached)
    assert reached.mean() > 0.5


@every_score_based
def test_success_checks_count_their_noise_samples(name):
    images, labels = problem()
    result = attack(name, noisy_logits_fn, images, labels, num_noise_samples=3, num_queries=39)
    assert result.queries.max() <= 39
    step = 13 if name == "nes" else 3
    np.testing.assert_array_equal((result.queries - 3) % step, 0)


@every_score_based
def test_success_checks_use_the_mean_softmax_of_their_noise_samples(name):
    images, labels = problem()
    seen = []

    def recorded(key, images):
        logits = noisy_logits_fn(key, images)
        jax.debug.callback(lambda logits: seen.append(logits), logits)
        return logits

    result = attack(name, recorded, images, labels, num_noise_samples=3, num_queries=3)
    jax.effects_barrier()
    assert len(seen) == 3
    assert np.abs(seen[0] - seen[1]).max() > 0.1
    mean = jnp.log(jax.nn.softmax(jnp.stack(seen)).mean(axis=0))
    np.testing.assert_allclose(result.margins, margin(mean, labels), rtol=1e-4, atol=1e-4)


@every_attack
def test_half_precision_is_cast_to_single(name):
    images, labels = problem()
    half = images.astype(jnp.float16)

    def half_model(key, images):
        return logits_fn(key, images).astype(jnp.float16)

    result = attack(name, half_model, half, labels, num_queries=13)
    assert result.images.dtype == result.margins.dtype == jnp.float32
    assert result.queries.max() <= 13


@every_attack
@pytest.mark.parametrize("model", [logits_fn, BlackBox(len)])
def test_empty_batches_are_accepted(name, model):
    images, labels = problem()
    result = attack(name, model, images[:0], labels[:0])
    assert result.images.shape == (0, 4, 4, 3)
    assert result.queries.shape == (0,)


def far_from_grey(key, images):
    """A robust model for which almost any change of a grey image increases the margin."""
    gain = jnp.abs(images - 0.5).sum((1, 2, 3)) + logits_fn(key, images)[:, 0]
    return jnp.stack([jnp.zeros(len(images)), gain - 1000], axis=1)


@every_score_based
def test_equal_images_have_different_random_candidates(name):
    images, labels = jnp.full((6, 4, 4, 3), 0.5), jnp.zeros(6, jnp.int32)
    changes = {"num_queries": 12, "loss": "margin"} if name == "nes" else {"num_queries": 2}
    result = attack(name, far_from_grey, images, labels, **changes)
    assert len(np.unique(np.asarray(result.images).reshape(6, -1), axis=0)) > 3


INVALID_ANSWERS = {
    "shape": (
        lambda queries: np.ones(len(queries)),
        r"shape \(24,\): return shape \(24, classes\)",
    ),
    "rows": (lambda queries: np.full((3, 5), 0.2), r"shape \(3, 5\): return shape \(24, classes\)"),
    "logits": (
        lambda queries: np.asarray(logits_fn(None, queries)),
        "not probabilities: apply a softmax",
    ),
    "classes": (
        lambda queries: np.full((len(queries), 2), 0.5),
        "returned 2 classes, but the labels or targets contain",
    ),
}


@pytest.mark.parametrize(("predict", "message"), INVALID_ANSWERS.values(), ids=INVALID_ANSWERS)
def test_invalid_answers_raise_an_error(predict, message):
    with pytest.raises(ValueError, match=message):
        attack("square", BlackBox(predict), *problem())


def test_black_boxes_may_return_one_hot_vectors_and_are_called_once_per_gradient():
    images, labels = problem()
    calls = []

    def predict(queries):
        calls.append(len(queries))
        return np.eye(5)[logits_fn(None, queries).argmax(axis=1)]

    result = attack("nes", BlackBox(predict), images, labels, loss="margin", num_queries=12)
    left = int((~result.success | (result.queries > 1)).sum())
    assert calls == [24, 10 * left, left]
    assert np.isfinite(result.margins).all()
    assert np.isfinite(result.images).all()


@pytest.mark.parametrize("num_queries", [0, 1, 13])
def test_black_boxes_are_checked_once_without_early_stop(num_queries):
    images, labels = problem()
    num_images = []

    def predict(queries):
        num_images.append(len(queries))
        return np.asarray(jax.nn.softmax(logits_fn(None, queries)))

    result = attack(
        "nes", BlackBox(predict), images, labels, early_stop=False, num_queries=num_queries
    )
    assert sum(num_images) == result.queries.sum()
    assert (result.queries == {0: 0, 1: 1, 13: 11}[num_queries]).all()


def test_black_boxes_inside_jit_raise_an_error():
    images, labels = problem()
    model = BlackBox(lambda queries: np.full((len(queries), 5), 0.2))
    with pytest.raises(ValueError, match="inside of jit"):
        jax.jit(lambda images: attack("square", model, images, labels))(images)


def test_errors_of_the_black_box_are_raised():
    def predict(queries):
        raise ConnectionError("the server is gone")

    with pytest.raises(ConnectionError, match="the server is gone"):
        attack("square", BlackBox(predict), *problem())


@every_attack
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": -1}, "num_queries is -1"),
        ({"num_queries": 10.5}, "num_queries is 10.5: it must be an integer"),
        ({"eps": np.inf}, "eps is inf"),
        ({"example_ids": jnp.zeros(24, jnp.int32)}, "example_ids contain duplicates"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"num_noise_samples": 0}, "num_noise_samples is 0"),
        ({"norm": "l3"}, "norm is 'l3': it must be one of"),
    ],
)
def test_invalid_arguments_raise_an_error_with_their_name(name, changes, message):
    images, labels = problem()
    arguments = {"eps": 0.1, "num_queries": 10, **ARGUMENTS.get(name, {}), **changes}
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](KEY, logits_fn, images, labels, **arguments)
