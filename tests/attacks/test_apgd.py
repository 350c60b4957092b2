"""Auto-PGD, compared with the algorithm of the paper for one image at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import LOGITS_FN, SIZE, WEIGHTS, examples, flat, length, radii

from jaxadv.attacks import apgd
from jaxadv.attacks.apgd_run import checkpoint_windows, initial_state, update_state
from jaxadv.core.losses import cross_entropy, dlr, make_targeted_objective, margin

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
EPS = {"linf": 0.1, "l2": 0.7}
HIDDEN, OUT = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(SIZE, 8), (8, 5)]))


def safe(key, images):
    """A nonlinear model of five classes that is robust in the ball: class 0 has a large margin."""
    hidden, out = (jnp.asarray(weights, images.dtype) for weights in (HIDDEN, OUT))
    logits = jnp.tanh(images.reshape(-1, SIZE) @ hidden) @ out
    return logits + 12 * (jnp.arange(5) == 0)


def project(delta, eps, norm):
    if norm == "linf":
        return np.clip(delta, -eps, eps)
    return delta * min(1, eps / np.linalg.norm(delta))


def reference(image, start, num_steps, windows, norm, objective):
    """Run algorithm 1 of Croce & Hein (2020) for one image; yield iterate, step size, best loss."""
    eps = EPS[norm]

    @jax.jit
    def evaluate(x):
        return jax.value_and_grad(lambda x: objective(safe(None, x[None]))[0])(x)

    def value_and_gradient(x):
        value, gradient = evaluate(x)
        return float(value), np.asarray(gradient)

    def project_to_ball(x):
        return np.clip(image + project(x - image, eps, norm), 0, 1)

    x, previous, step_size = start, start, 2 * eps
    loss, gradient = value_and_gradient(x)
    best, checkpoint_loss, was_halved = (loss, x, gradient), loss, True
    num_increases, checkpoints = 0, list(np.cumsum(windows))
    for k in range(1, num_steps + 1):
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        z = project_to_ball(x + step_size * direction)
        change = 0.75 * (z - x) + 0.25 * (x - previous)
        new = z if k == 1 else project_to_ball(x + change)
        new_loss, new_gradient = value_and_gradient(new)
        num_increases += new_loss > loss
        if new_loss > best[0]:
            best = (new_loss, new, new_gradient)
        previous, x, loss, gradient = x, new, new_loss, new_gradient
        if k in checkpoints:
            window = windows[checkpoints.index(k)]
            no_progress = not was_halved and checkpoint_loss >= best[0]
            halve = num_increases <= 0.75 * window or no_progress
            if halve:
                step_size /= 2
                loss, x, gradient = best
            was_halved, checkpoint_loss, num_increases = halve, best[0], 0
        yield x, step_size, best[0]


@pytest.fixture
def double_precision():
    """Single precision would halve step sizes on losses that differ by rounding alone."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(("loss", "num_odi_steps"), [("margin", 0), ("dlr", 0), ("margin", 2)])
def test_matches_the_algorithm_of_the_paper(norm, loss, num_odi_steps, double_precision):
    images = jnp.asarray(examples(n=3)[0], jnp.float64)
    labels, num_steps = jnp.zeros(3, jnp.int32), 30
    run = partial(
        apgd, KEY, safe, images, labels, eps=EPS[norm], norm=norm, loss=loss, num_steps=num_steps,
        num_odi_steps=num_odi_steps,
    )  # fmt: skip
    start = run(num_queries=num_odi_steps + 1).extras.state.iterate
    np.testing.assert_allclose(
        length(start - images, norm), EPS[norm], rtol=0.1
    )  # the box clips it
    objective = {"margin": margin, "dlr": dlr}[loss]
    results = {n: run(num_queries=n + num_odi_steps) for n in (2, 3, 7, 8, 13, 31)}
    windows = [6, 5, 4, 3, 2, *[1] * 10]
    for i in range(3):
        steps = reference(
            np.asarray(images[i]), np.asarray(start[i]), num_steps, windows, norm,
            lambda logits: objective(logits, labels[:1]),
        )  # fmt: skip
        for k, (x, step_size, best) in enumerate(steps, start=1):
            if k + 1 in results:
                state = results[k + 1].extras.state
                np.testing.assert_allclose(state.iterate[i], x, atol=1e-9)
                assert state.step_size[i] == pytest.approx(step_size)
                assert state.best_loss[i] == pytest.approx(best, abs=1e-9)
    assert results[31].extras.state.step_size.max() < 2 * EPS[norm]
    assert (results[31].queries == 31 + num_odi_steps).all()


def test_step_size_is_halved_without_increases_or_progress():
    """After 4 steps: no progress, no progress after a halving, progress, only 3 increases."""
    images = jnp.zeros((4, 1, 1, 1))
    state = initial_state(images, jnp.full(4, 1.0), images, jnp.float32(0.1))
    assert state.was_halved.all()  # the first checkpoint has no earlier one to compare with
    state = state._replace(
        loss=jnp.full(4, 0.5),
        best=images + 7,
        best_loss=jnp.full(4, 2.0),
        num_increases=jnp.array([3, 3, 3, 2]),
        checkpoint_loss=jnp.array([2.0, 2.0, 1.0, 1.0]),
        was_halved=jnp.array([False, True, False, False]),
    )
    step = partial(update_state, state, images + 1, jnp.full(4, 0.9), images)
    after = step(jnp.int32(4))
    np.testing.assert_array_equal(after.was_halved, [True, False, False, True])
    np.testing.assert_allclose(after.step_size, [0.1, 0.2, 0.2, 0.1])
    np.testing.assert_array_equal(after.iterate.ravel(), [7, 1, 1, 7])
    np.testing.assert_allclose(after.loss, [2.0, 0.9, 0.9, 2.0])
    np.testing.assert_array_equal(after.num_increases, 0)
    np.testing.assert_allclose(after.checkpoint_loss, 2)
    within = step(jnp.int32(0))
    np.testing.assert_allclose(within.step_size, 0.2)
    np.testing.assert_array_equal(within.num_increases, [4, 4, 4, 3])


def test_checkpoints_are_those_of_the_paper():
    assert np.flatnonzero(checkpoint_windows(100)).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoint_windows(100)[[22, 41, 57, 99]].tolist() == [22, 19, 16, 6]
    assert checkpoint_windows(3).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("loss", ["margin", "dlr"])  # these lead to the nearest boundary
def test_succeeds_on_a_linear_model_where_the_boundary_is_within_eps(norm, loss):
    images, _ = examples(n=64, low=0.3, high=0.7)
    labels = LOGITS_FN(None, images).argmax(axis=1)
    distances = radii(WEIGHTS, images, labels, norm)
    eps = float(np.median(distances))
    found = apgd(KEY, LOGITS_FN, images, labels, eps=eps, norm=norm, loss=loss, num_steps=50)
    is_clear = np.abs(distances / eps - 1) > 0.02
    np.testing.assert_array_equal(found.success[is_clear], distances[is_clear] < eps)
    wrong = LOGITS_FN(None, found.images).argmax(axis=1) != labels
    np.testing.assert_array_equal(found.success, wrong)
    np.testing.assert_allclose(
        found.margins, margin(LOGITS_FN(None, found.images), labels), atol=1e-4
    )
    assert (length(found.images - images, norm) <= eps * (1 + 1e-5)).all()
    assert (found.queries[~found.success] == 51).all()
    assert (found.queries[found.success] < 51).any()
    np.testing.assert_array_equal(found.steps, found.queries)


def attack(images, labels, logits_fn=LOGITS_FN, **changes):
    arguments = {"eps": 0.05, "num_steps": 12, "num_targets": 2, "loss": "dlr", **changes}
    return apgd(KEY, logits_fn, images, labels, **arguments)


def problem(n=16):
    images, _ = examples(n=n)
    return images, LOGITS_FN(None, images).argmax(axis=1)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_resumed_calls_reach_the_result_of_one_call():
    images, labels = problem()
    whole = attack(images, labels)
    assert 0 < whole.success.sum() < 16
    for budget in (1, 13, 20):  # the start, the first run, into the second run
        part = attack(images, labels, num_queries=budget)
        assert (part.queries <= budget).all()
        assert_same(attack(images, labels, resume=part), whole)


def test_rejects_the_result_of_another_call():
    images, labels = problem()
    found = attack(images, labels)
    for changes in ({"num_targets": 1}, {"eps": 0.001}):
        with pytest.raises(ValueError, match="resume"):
            attack(images, labels, resume=found, **changes)
    with pytest.raises(ValueError, match="resume"):
        attack(images[:3], labels[:3], resume=found)


def test_targets_are_the_other_classes_in_the_order_of_their_logits():
    images, labels = problem()
    found = attack(images, labels, num_targets=4, num_queries=1)
    others = np.argsort(-np.asarray(LOGITS_FN(None, images)), axis=1)[:, 1:]
    np.testing.assert_array_equal(found.extras.targets, others)


def test_runs_start_at_different_points_and_ascend_the_loss_of_their_target():
    images, labels = problem(2)[0], jnp.zeros(2, jnp.int32)
    run = partial(attack, images, labels, safe, num_targets=2, num_restarts=2, num_steps=3)
    starts = [flat(run(num_queries=4 * i + 1).extras.state.iterate) for i in range(4)]
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(starts) for b in starts[:i])
    for number, rank in enumerate((0, 0, 1, 1)):
        targets, state = run(num_queries=4 * number + 1).extras
        objective = make_targeted_objective("dlr", labels, targets[:, rank])
        np.testing.assert_allclose(state.loss, objective(safe(None, state.iterate)), rtol=1e-5)
    assert (run().queries == 16).all()


def test_noise_samples_are_averaged_and_counted():
    def noisy(key, images):
        return LOGITS_FN(key, images) + 0.1 * jax.random.normal(key, (len(images), 5))

    images, labels = problem()
    found = attack(images, labels, noisy, num_noise_samples=3, num_queries=20)
    assert found.queries.max() == 18
    np.testing.assert_array_equal(found.queries, 3 * found.steps)
    chunked = attack(images, labels, noisy, num_noise_samples=3, noise_chunk_size=3, num_queries=20)
    assert_same(found, chunked)


def test_half_precision_is_cast_to_single():
    def half_model(key, images):
        return LOGITS_FN(key, images).astype(jnp.float16)

    images, labels = problem()
    found = attack(images.astype(jnp.float16), labels, half_model)
    assert found.images.dtype == found.margins.dtype == jnp.float32
    assert found.success.any()


def test_dlr_is_the_margin_over_the_spread_of_the_largest_logits():
    logits = jnp.array([[4.0, 1.0, 2.0, -1.0], [1.0, 4.0, 2.0, -1.0]])
    labels = jnp.array([0, 0])
    np.testing.assert_allclose(dlr(logits, labels), [-2 / 3, 3 / 3])
    np.testing.assert_allclose(dlr(7 * logits + 3, labels), [-2 / 3, 1], rtol=1e-6)
    two = make_targeted_objective("dlr", labels, jnp.array([2, 2]))
    np.testing.assert_allclose(two(logits), [-2 / 4, 1 / 4])
    three = make_targeted_objective("dlr", labels, jnp.array([2, 2]))(logits[:, :3])
    np.testing.assert_allclose(three, [-2, 1])
    np.testing.assert_allclose(dlr(logits[:, :2], labels), [-3, 3])
    ce = make_targeted_objective("cross_entropy", labels, jnp.array([2, 2]))(logits)
    np.testing.assert_allclose(ce, -cross_entropy(logits, jnp.array([2, 2])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_targets": 5}, "num_targets is 5: it must be at most 4"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_restarts": 0}, "num_restarts is 0"),
        ({"num_odi_steps": 1, "norm": "l1"}, "num_odi_steps is 1, but norm is 'l1'"),
        ({"noise_average": "logits"}, "noise_average is 'logits': it must be one of"),
        ({"num_queries": -1}, "num_queries is -1"),
    ],
)
def test_invalid_arguments_raise_an_error_with_their_name(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(*problem(), **changes)
