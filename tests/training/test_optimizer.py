import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxadv.training.optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    make_average,
    make_optimizer,
    make_schedule,
    moving_average,
)

GRADIENTS = [np.array([0.5, -2.0, 0.0]), np.array([0.1, 1.0, 3.0])]
START = np.array([1.0, -1.0, 2.0])
PEAK = 0.1


def config(**changes):
    return ConfigDict(
        {
            "name": "sgd",
            "learning_rate": PEAK,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "weight_decay": 0.01,
            "momentum": 0.9,
            "nesterov": False,
            **changes,
        }
    )


def rates(steps, *, num_epochs=4, steps_per_epoch=10, **changes):
    schedule = make_schedule(config(**changes), num_epochs, steps_per_epoch)
    return [float(schedule(step)) for step in steps]


def weights_after_each_step(name, schedule=lambda step: PEAK, **changes):
    optimizer = make_optimizer(config(name=name, **changes), schedule)
    weights = jnp.asarray(START)
    state = optimizer.init(weights)
    path = []
    for gradient in GRADIENTS:
        updates, state = optimizer.update(jnp.asarray(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        path.append(weights)
    return path


def test_constant_schedule():
    assert rates([0, 20, 39, 100]) == pytest.approx([PEAK] * 4)


def test_cosine_schedule_falls_to_zero():
    expected = [PEAK, PEAK * (1 + np.cos(np.pi / 4)) / 2, PEAK / 2, 0, 0]
    assert rates([0, 10, 20, 40, 50], schedule="cosine") == pytest.approx(expected, abs=1e-8)


def test_linear_schedule_falls_to_zero():
    found = rates([0, 10, 20, 40, 50], schedule="linear")
    assert found == pytest.approx([PEAK, 0.75 * PEAK, 0.5 * PEAK, 0, 0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_from_zero_to_the_peak(schedule):
    found = rates([0, 5, 10, 15], schedule=schedule, warmup_epochs=1.5, num_epochs=20)
    assert found == pytest.approx([0, PEAK / 3, PEAK * 2 / 3, PEAK])


def test_the_schedule_after_a_warm_up_ends_with_the_run():
    changes = {"warmup_epochs": 1.0, "num_epochs": 5}
    assert rates([50], schedule="cosine", **changes) == pytest.approx([0], abs=1e-8)
    assert rates([30], schedule="cosine", **changes) == pytest.approx([PEAK / 2])


def test_sgd_adds_weight_decay_before_the_momentum():
    # torch.optim.SGD: g += decay * w; v = momentum * v + g; w -= rate * v.
    weights, velocity = START, 0.0
    for gradient, found in zip(GRADIENTS, weights_after_each_step("sgd"), strict=True):
        velocity = 0.9 * velocity + (gradient + 0.01 * weights)
        weights = weights - PEAK * velocity
        np.testing.assert_allclose(found, weights, rtol=1e-6)


def test_nesterov_momentum_looks_ahead():
    # torch.optim.SGD: v = momentum * v + g; w -= rate * (g + momentum * v).
    weights, velocity = START, 0.0
    found = weights_after_each_step("sgd", nesterov=True)
    for gradient, found_weights in zip(GRADIENTS, found, strict=True):
        gradient = gradient + 0.01 * weights
        velocity = 0.9 * velocity + gradient
        weights = weights - PEAK * (gradient + 0.9 * velocity)
        np.testing.assert_allclose(found_weights, weights, rtol=1e-6)


def test_adamw_decouples_weight_decay_from_the_moments():
    # torch.optim.AdamW: w *= 1 - rate * decay, then Adam with the bare gradient.
    weights, first, second = START, 0.0, 0.0
    for t, (gradient, found) in enumerate(
        zip(GRADIENTS, weights_after_each_step("adamw"), strict=True), start=1
    ):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        direction = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        weights = weights * (1 - PEAK * 0.01) - PEAK * direction
        np.testing.assert_allclose(found, weights, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 2, 3, 4)])
def test_muon_makes_the_momentum_of_a_kernel_orthogonal(shape):
    """Five Newton-Schulz steps bring singular values to between 0.68 and 1.13 (Jordan 2024)."""
    optimizer = make_optimizer(config(name="muon", weight_decay=0.0), lambda step: PEAK)
    params = {"kernel": jnp.zeros(shape)}
    state = optimizer.init(params)
    generator = np.random.default_rng(0)
    momentum = 0.0
    for t in range(1, 4):
        gradient = generator.normal(size=shape).astype(np.float32)
        updates, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, params)
        momentum = 0.95 * momentum + 0.05 * gradient
        # Without the bias of the zeros at the start (Dozat 2016, algorithm 2).
        nesterov = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * gradient / (1 - 0.95**t)
    matrix = np.asarray(updates["kernel"]).reshape(-1, shape[-1]) / -PEAK
    left, _, right = np.linalg.svd(nesterov.reshape(matrix.shape), full_matrices=False)
    in_the_basis = left.T @ matrix @ right.T / (0.2 * np.sqrt(max(matrix.shape)))
    found = np.diagonal(in_the_basis)
    assert found.min() > 0.67
    assert found.max() < 1.14
    np.testing.assert_allclose(in_the_basis, np.diag(found), atol=1e-3)


def test_muon_updates_other_parameters_as_adamw_does():
    params = {
        "bias": jnp.asarray(START),
        "positions": jnp.ones((2, 3)),
        "query": {"kernel": jnp.ones((2, 3, 4))},
    }
    generator = np.random.default_rng(0)
    gradients = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape)), params)
    found, expected = (
        optimizer.update(gradients, optimizer.init(params), params)[0]
        for optimizer in (
            make_optimizer(config(name=name), lambda step: PEAK) for name in ("muon", "adamw")
        )
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kernels_decay(name):
    optimizer = make_optimizer(config(name=name), lambda step: PEAK)
    params = {"kernel": jnp.ones((2, 3))}
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -PEAK * 0.01, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_alpha_of_pni_does_not_decay(name):
    """Compare with parameters of the same and of a similar name (He, Rakin & Fan 2019)."""
    optimizer = make_optimizer(config(name=name), lambda step: PEAK)
    params = {
        "WeightNoise_0": {"alpha": jnp.ones(2), "decayed_alpha": jnp.ones(2)},
        "layer": {"alpha": jnp.ones(2), "kernel": jnp.ones(2)},
    }
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["WeightNoise_0"].pop("alpha"), 0)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -PEAK * 0.01, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_follows_the_schedule(name):
    after = weights_after_each_step(name, schedule=lambda step: PEAK * (step > 0))
    np.testing.assert_array_equal(after[0], START.astype(np.float32))
    assert (after[1] != after[0]).all()


def test_the_moving_average_keeps_integers():
    old = {"mean": jnp.zeros(2), "count": jnp.int32(3)}
    new = {"mean": jnp.ones(2), "count": jnp.int32(4)}
    found = moving_average(old, new, 90, 0.5)
    np.testing.assert_array_equal(found["mean"], 0.5)
    assert found["count"] == 4


def train_config(**changes):
    return ConfigDict({"ema_decay": 0.0, "swa_start": None, **changes})


def test_swa_is_the_mean_of_the_weights_after_its_first_epoch():
    average = make_average(train_config(swa_start=1.5), steps_per_epoch=2)  # after step 3
    values, found = [3.0, -1.0, 7.0, 2.0, 6.0, 10.0], jnp.float32(0)
    for step, value in enumerate(values, start=1):
        found = average(found, jnp.float32(value), jnp.int32(step))
        expected = value if step <= 3 else np.mean(values[3:step])
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_run_without_an_average_has_none():
    assert make_average(train_config(), steps_per_epoch=2) is None
    assert make_average(train_config(ema_decay=0.9), steps_per_epoch=2) is not None
