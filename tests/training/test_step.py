"""The training step on a tiny model: its gradients, its batch, and any number of devices."""

import re
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxadv.attacks import pgd
from jaxadv.core.devices import AXIS, pmap_batches, replicate
from jaxadv.core.losses import cross_entropy
from jaxadv.core.rng import stream
from jaxadv.core.types import DeviceBatch, HostBatch
from jaxadv.data.augment import make_augment
from jaxadv.data.pca import principal_components
from jaxadv.data.resident import make_resident
from jaxadv.models import make_model
from jaxadv.models.classifier import make_logits_fn
from jaxadv.models.defences import LowRank
from jaxadv.models.layers import Dropout, GaussianNoise
from jaxadv.training.batch import _mix_synthetic
from jaxadv.training.curriculum import Budget
from jaxadv.training.losses import TrainingLoss, ikl, mart, mixed_cross_entropy, trades
from jaxadv.training.optimizer import moving_average
from jaxadv.training.setup import TrainingSetup
from jaxadv.training.step import (
    TrainState,
    _train_logits,
    fit_projection,
    init_state,
    make_train_step,
)

pytestmark = pytest.mark.slow  # compiles much

BUDGET = Budget(eps=0.1, step_size=0.05, num_steps=3)
NO_SYNTHETIC = DeviceBatch(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int32))


class Tiny(nn.Module):
    """A batch norm and a dense layer: the variables that a step updates."""

    axis_name: str | None = AXIS

    @nn.compact
    def __call__(self, images, train=False):
        axis_name = self.axis_name if train else None
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)(images)
        return nn.Dense(10)(x.reshape(len(x), -1))


class Noisy(nn.Module):
    """A model with the layers of ours that returns its random numbers as logits."""

    defence: None = None

    @nn.compact
    def __call__(self, images, train=False):
        ones = jnp.ones((len(images), 64))
        samples = [GaussianNoise(1.0, AXIS)(ones), Dropout(0.5, False, AXIS)(ones)]
        weights = jax.random.normal(self.make_rng("weight_noise"), (64,))
        return jnp.concatenate([*samples, jnp.broadcast_to(weights, ones.shape)], axis=1)


class OwnNoisy(nn.Module):
    """A module of a user that returns its random numbers as logits."""

    @nn.compact
    def __call__(self, images, train=False):
        shape = (len(images), 64)
        names = ("noise", "dropout", "weight_noise")
        samples = [jax.random.normal(self.make_rng(name), shape) for name in names]
        return jnp.concatenate(samples, axis=1)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (32, 4, 4, 3), dtype=np.uint8)
    return HostBatch(images, generator.integers(0, 10, 32).astype(np.int32))


def make_setup(num_devices=2, *, fraction=0.5, batch_size=8, **changes):
    return TrainingSetup(
        **{
            "model": Tiny(),
            "optimizer": optax.sgd(0.1),
            "augment": make_augment("none"),
            "num_classes": 10,
            "attack": partial(pgd, norm="linf", loss="cross_entropy", random_start=True),
            "num_attacked": round(fraction * batch_size / num_devices),
            "loss": TrainingLoss(mixed_cross_entropy, needs_clean=False),
            "schedule": lambda step: 0.1,
            "precision": "float32",
            "seed": 0,
            **changes,
        }
    )


def one_device_step(setup):
    """The same step on one device, with the axis name that it needs."""
    mapped = jax.pmap(
        make_train_step(setup),
        axis_name=AXIS,
        in_axes=(None, None, None, 0, 0),
        out_axes=None,
        devices=jax.devices()[:1],
    )
    return lambda state, data, budget, batch, made: mapped(
        state, data, budget, batch[None], jax.tree.map(lambda array: array[None], made)
    )


def two_device_step(setup):
    return pmap_batches(make_train_step(setup), num_replicated=3, num_batches=2)


def train(step, setup, data, num_steps=3, budget=BUDGET):
    state, metrics = init_state(setup, data.images.shape[1:]), {}
    resident = make_resident(data)
    for i in range(num_steps):
        state, metrics = step(state, resident, budget, np.arange(8) + 8 * i, NO_SYNTHETIC)
    return state, metrics


RECIPES = {
    "augmentation": {"augment": make_augment("flip_crop_jitter")},
    "cutmix": {"cutmix": 0.5, "label_smoothing": 0.1},
    "awp": {"awp_gamma": 0.01},
    "gradient alignment": {"gradient_alignment": 0.5, "fraction": 1.0},
    "trades": {"loss": TrainingLoss(partial(trades, beta=6.0), True), "fraction": 1.0},
    "mart": {"loss": TrainingLoss(partial(mart, weight=5.0), True), "fraction": 1.0},
    "ikl": {"loss": TrainingLoss(partial(ikl, alpha=4.0, beta=20.0), True), "fraction": 1.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_devices_give_the_result_of_one(data, recipe):
    one, two = (make_setup(num_devices, **RECIPES[recipe]) for num_devices in (1, 2))
    expected = train(one_device_step(one), one, data)
    actual = train(two_device_step(two), two, data)
    chex.assert_trees_all_close(jax.device_get(actual), jax.device_get(expected), atol=1e-5)


def test_replicas_agree(data):
    setup = make_setup()
    every = jax.pmap(
        make_train_step(setup), axis_name=AXIS, in_axes=(None, None, None, 0, 0), out_axes=0
    )
    state = init_state(setup, data.images.shape[1:])
    none = jax.tree.map(lambda array: np.stack([array, array]), NO_SYNTHETIC)
    output = jax.device_get(
        every(state, make_resident(data), BUDGET, np.arange(8).reshape(2, 4), none)
    )
    for leaf in jax.tree.leaves(output):
        np.testing.assert_array_equal(leaf[0], leaf[1])


def test_a_step_is_gradient_descent_on_the_mixed_batch(data):
    """Compare with a reference implementation on one device, without pmap."""
    setup = make_setup()
    state = init_state(setup, data.images.shape[1:])
    new_state, metrics = two_device_step(setup)(
        state, make_resident(data), BUDGET, np.arange(8), NO_SYNTHETIC
    )

    images, labels = (
        jnp.asarray(data.images[:8] / 255, jnp.float32),
        jnp.asarray(data.labels[:8]),
    )
    adversarial = setup.attack(
        stream(0, "attack", 0),
        make_logits_fn(setup.model, state.variables, jnp.arange(4)),
        images[:4],
        labels[:4],
        **BUDGET._asdict(),
    )
    assert float(jnp.abs(adversarial - images[:4]).max()) > 0.05
    mixed = jnp.concatenate([adversarial, images[4:]])

    def loss(params):
        logits, changed = Tiny(axis_name=None).apply(
            {**state.variables, "params": params}, mixed, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels).mean(), changed

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, changed), gradient = differentiate(state.variables["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.variables["params"], gradient)
    new_variables = jax.device_get(new_state.variables)
    chex.assert_trees_all_close(new_variables["params"], expected, atol=1e-5)
    chex.assert_trees_all_close(new_variables["batch_stats"], changed["batch_stats"], atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


def test_trades_is_cross_entropy_plus_divergence(data):
    """Compare with a reference implementation on one device, without pmap."""
    attack = {"norm": "linf", "loss": "kl", "random_start": True}
    loss = TrainingLoss(partial(trades, beta=6.0), needs_clean=True)
    setup = make_setup(attack=partial(pgd, **attack), loss=loss)
    state = init_state(setup, data.images.shape[1:])
    new_state, metrics = two_device_step(setup)(
        state, make_resident(data), BUDGET, np.arange(8), NO_SYNTHETIC
    )
    images, labels = jnp.asarray(data.images[:8] / 255, jnp.float32), jnp.asarray(data.labels[:8])
    logits_fn = make_logits_fn(setup.model, state.variables, jnp.arange(4))
    adversarial = pgd(
        stream(0, "attack", 0), logits_fn, images[:4], labels[:4], **BUDGET._asdict(), **attack
    )

    def loss(params):
        logits, _ = Tiny(axis_name=None).apply(
            {**state.variables, "params": params},
            jnp.concatenate([images, adversarial]),
            train=True,
            mutable=["batch_stats"],
        )
        p, log_q = jax.nn.softmax(logits[:4]), jax.nn.log_softmax(logits[8:])
        divergences = (p * (jnp.log(p) - log_q)).sum()
        return cross_entropy(logits[:8], labels).mean() + 6 * divergences / 8

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.variables["params"])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.variables["params"], gradient)
    chex.assert_trees_all_close(jax.device_get(new_state.variables["params"]), expected, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


def test_awp_takes_the_gradient_at_the_perturbed_weights(data):
    """Compare with a reference implementation on one device, without pmap."""
    setup = make_setup(awp_gamma=0.1, fraction=0.0)
    state = init_state(setup, data.images.shape[1:])
    new_state, _ = two_device_step(setup)(
        state, make_resident(data), BUDGET, np.arange(8), NO_SYNTHETIC
    )
    images, labels = jnp.asarray(data.images[:8] / 255, jnp.float32), jnp.asarray(data.labels[:8])

    @jax.jit
    @jax.grad
    def gradient_at(params):
        logits, _ = Tiny(axis_name=None).apply(
            {**state.variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels).mean()

    params = state.variables["params"]
    kernel, gradient = (tree["Dense_0"]["kernel"] for tree in (params, gradient_at(params)))
    moved = kernel + 0.1 * jnp.linalg.norm(kernel) / jnp.linalg.norm(gradient) * gradient
    perturbed = {**params, "Dense_0": {**params["Dense_0"], "kernel": moved}}
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient_at(perturbed))
    chex.assert_trees_all_close(jax.device_get(new_state.variables["params"]), expected, atol=1e-5)


def test_gradient_alignment_adds_its_weight_to_the_loss(data):
    """The weight multiplies the same term; without a radius the term is zero."""

    def loss(weight, eps=0.1):
        setup = make_setup(gradient_alignment=weight, fraction=1.0)
        budget = Budget(eps=eps, step_size=0.05, num_steps=1)
        _, metrics = train(two_device_step(setup), setup, data, num_steps=1, budget=budget)
        return float(metrics["loss"])

    term = loss(100.0) - loss(0.0)
    assert term > 1e-2
    assert loss(300.0) - loss(0.0) == pytest.approx(3 * term, rel=1e-3)
    assert loss(100.0, eps=0.0) == pytest.approx(loss(0.0, eps=0.0), abs=1e-4)


def test_synthetic_images_have_their_share_of_the_batch_and_of_the_attack(data):
    # Of 4 on a device, 2 attacked.
    setup = make_setup(num_synthetic=2, label_smoothing=0.1, synthetic_smoothing=0.3)
    made = DeviceBatch(jnp.full((2, 4, 4, 3), 255, jnp.uint8), jnp.full(2, 7, jnp.int32))
    real = DeviceBatch(jnp.asarray(data.images[:2]), jnp.asarray(data.labels[:2]))
    images, labels, targets = _mix_synthetic(setup, real, made)
    np.testing.assert_array_equal(images[0], data.images[0])
    assert (images[1] == 255).all()  # among the attacked ones, as is the first
    np.testing.assert_array_equal(images[2], data.images[1])
    np.testing.assert_array_equal(labels, [data.labels[0], 7, data.labels[1], 7])
    np.testing.assert_allclose(targets.min(1), [0.01, 0.03, 0.01, 0.03])
    np.testing.assert_allclose(targets[np.arange(4), labels], [0.91, 0.73, 0.91, 0.73], rtol=1e-6)


def test_metrics_of_absent_examples_are_left_out(data):
    for fraction, names in [
        (0.0, {"loss", "loss_clean", "accuracy_clean"}),
        (1.0, {"loss", "loss_adversarial", "accuracy_adversarial"}),
    ]:
        setup = make_setup(fraction=fraction)
        _, metrics = train(two_device_step(setup), setup, data, num_steps=1)
        assert metrics.keys() == names


def test_every_step_attacks_with_its_own_key(data):
    """The same weights and batch give the same loss at the same step, and another at another."""

    def attack(key, logits_fn, images, labels, **_):
        return jax.random.uniform(key, images.shape)

    setup = make_setup(fraction=1.0, attack=attack)
    state = init_state(setup, data.images.shape[1:])
    step = two_device_step(setup)

    def loss_at(i):
        state_at_i = replace(state, step=jnp.int32(i))
        _, metrics = step(state_at_i, make_resident(data), BUDGET, np.arange(8), NO_SYNTHETIC)
        return float(metrics["loss"])

    losses = [loss_at(i) for i in (0, 1, 0)]
    assert losses[0] == losses[2]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_an_attack_without_a_budget_is_natural_training(data):
    natural = make_setup(fraction=0.0)
    adversarial = make_setup(fraction=1.0)
    expected, _ = train(two_device_step(natural), natural, data)
    for budget in (Budget(0.0, 0.05, 3), Budget(0.1, 0.05, 0)):
        actual, _ = train(two_device_step(adversarial), adversarial, data, budget=budget)
        chex.assert_trees_all_close(actual.variables, expected.variables, atol=1e-6)


def test_the_moving_average_of_the_weights(data):
    setup = make_setup(average=partial(moving_average, decay=0.5))
    states = [train(two_device_step(setup), setup, data, num_steps=n)[0] for n in (0, 1, 2)]
    weights = [np.asarray(s.variables["params"]["Dense_0"]["kernel"]) for s in states]
    first = 1 / 11 * weights[0] + 10 / 11 * weights[1]  # the decay starts at 1/11
    second = 2 / 12 * first + 10 / 12 * weights[2]
    average = states[2].weights["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(average, second, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "name"),
    [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")],
)
def test_a_step_runs_at_its_matmul_precision(data, precision, name):
    setup = make_setup(precision=precision)
    state = init_state(setup, data.images.shape[1:])
    step = jax.pmap(
        make_train_step(setup), axis_name=AXIS, in_axes=(None, None, None, 0, 0), out_axes=None
    )
    none = jax.tree.map(lambda array: np.stack([array, array]), NO_SYNTHETIC)
    program = jax.make_jaxpr(step)(
        state, make_resident(data), BUDGET, np.arange(8).reshape(2, 4), none
    )
    assert {*re.findall(r"Precision\.(\w+)", str(program))} == {name}


def test_one_compilation_serves_a_whole_curriculum(data):
    setup = make_setup()
    chex.clear_trace_counter()
    step = pmap_batches(
        chex.assert_max_traces(make_train_step(setup), n=1),
        num_replicated=3,
        num_batches=2,
        donate_first=True,
    )
    state = replicate(init_state(setup, data.images.shape[1:]))
    resident = make_resident(data)
    for i in range(4):
        budget = Budget(0.01 * i, 0.01, 2 + i)
        state, _ = step(state, resident, budget, np.arange(8), NO_SYNTHETIC)


def sampled(num_devices, step, model):
    """Return the logits of 8 examples in training, for a model that returns its random numbers."""
    setup = make_setup()._replace(model=model)
    state = TrainState(step=jnp.int32(step), variables={}, ema=None, opt_state=None)
    shares = jnp.zeros((num_devices, 8 // num_devices, 2, 2, 1))
    of_share = jax.pmap(
        lambda images: _train_logits(setup, state, {}, images)[0],
        axis_name=AXIS,
        devices=jax.devices()[:num_devices],
    )
    return np.asarray(of_share(shares)).swapaxes(0, 1).reshape(8, 3, 64)


def test_random_numbers_of_an_own_module_differ_between_devices():
    noise, dropped, weights = sampled(2, 1, OwnNoisy()).swapaxes(0, 1)
    assert len(np.unique(noise, axis=0)) == len(np.unique(dropped, axis=0)) == 8
    assert len(np.unique(weights, axis=0)) == 4  # all devices have the same noisy weights


def test_training_noise_differs_between_examples_on_any_number_of_devices():
    def sample(num_devices, step):
        return sampled(num_devices, step, Noisy())

    noise, dropped, weights = sample(2, step=1).swapaxes(0, 1)
    np.testing.assert_array_equal(sample(1, step=1), sample(2, step=1))
    assert len(np.unique(noise, axis=0)) == len(np.unique(dropped, axis=0)) == 8
    assert len(np.unique(weights, axis=0)) == 1
    assert set(np.unique(dropped)) == {0, 2}
    assert abs((dropped > 0).mean() - 0.5) < 0.1
    assert (sample(2, step=2) != sample(2, step=1)).any(axis=(0, 2)).all()


def test_the_low_rank_projection_is_fitted_to_the_images(data):
    model = make_model("net", 10, defence=LowRank(rank=3))
    setup = make_setup(model=model, average=partial(moving_average, decay=0.5))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    state = fit_projection(
        init_state(setup, images.shape[1:]), HostBatch(images, np.zeros(20, np.int32))
    )
    mean, components = principal_components(images, 3)
    for variables in (state.variables, state.ema):
        (projection,) = variables["pca"].values()
        np.testing.assert_array_equal(projection["mean"], mean)
        np.testing.assert_array_equal(projection["components"], components)
