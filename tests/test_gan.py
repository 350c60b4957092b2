"""The step of a GAN, its averaged generator, and the whole line: train, stop, go on, sample."""

import json
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from configs import gan as gan_config
from jaxadv import checkpoint, sample, stopping, train_gan
from jaxadv import config as configs
from jaxadv.data import load
from jaxadv.data.synthetic import open_synthetic
from jaxadv.gan import (
    _drawn,
    draw_latents,
    init_state,
    make_averaging,
    make_gan_step,
    make_recipe,
)
from jaxadv.judge import Judge, logits_and_features, look
from jaxadv.judging import make_judge
from jaxadv.models import make_model
from jaxadv.optimizer import moving_average
from jaxadv.parallel import AXIS, pmap_batches
from jaxadv.prng import example_keys
from jaxadv.sampling import judged_samples, make_sampler, samples
from jaxadv.types import Batch, UserError


def tiny_config(**changes):
    config = gan_config.get_config("digits")
    config.update_from_flattened_dict(
        {
            "latent_size": 4,
            "generator.features": 2,
            "discriminator.features": 2,
            "discriminator.num_blocks": 2,
            "train.num_steps": 4,
            "train.steps_per_round": 2,
            "train.batch_size": 8,
            "judge.num_samples": 80,
            "judge.classifier.train.num_epochs": 1,
            "sampling.num_images": 50,
            "sampling.batch_size": 32,
            "sampling.shard_size": 20,
            **changes,
        }
    )
    return config


@pytest.fixture(scope="module")
def digits():
    return load("digits", data_dir=None, validation_fraction=0.04)


@pytest.fixture(scope="module")
def recipe():
    """Of a GAN of images of side 8, which compiles faster than one of side 32."""
    changes = {"train.num_discriminator_steps": 2, "generator.num_blocks": 1}
    return make_recipe(tiny_config(**changes), 10)


@pytest.fixture(scope="module")
def small(digits):
    return Batch(digits.train.images[:64, ::4, ::4], digits.train.labels[:64])


@pytest.fixture(scope="module")
def stepped(recipe, small):
    """The state before and after a step on two devices, and its metrics."""
    state = init_state(recipe, (8, 8, 3))
    step = pmap_batches(make_gan_step(recipe), num_replicated=2, num_batches=1)
    return state, *step(state, small, np.arange(16))


def test_two_devices_do_what_one_does(recipe, small, stepped):
    state, new, metrics = stepped
    one = jax.pmap(
        make_gan_step(recipe),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.devices()[:1],
    )
    expected = one(state, small, np.arange(16)[None])
    # Adam divides by the size of the gradient: where that is tiny, rounding moves the weights.
    chex.assert_trees_all_close(
        jax.device_get((new.ema, new.discriminator, metrics)),
        jax.device_get((expected[0].ema, expected[0].discriminator, expected[1])),
        atol=2e-3,
    )


def test_a_step_moves_both_networks(stepped):
    state, new, metrics = stepped
    assert int(new.step) == 1
    for old, moved in ((state.generator, new.generator), (state.discriminator, new.discriminator)):
        changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), old, moved)
        assert max(jax.tree.leaves(changes["params"])) > 1e-5
    # The hinge loss of logits near 0 is near 2.
    assert 0 < metrics["discriminator_loss"] < 100
    average = jax.tree.map(
        lambda a, b: a / 11 + 10 / 11 * b, state.ema, jax.device_get(new.generator["params"])
    )
    chex.assert_trees_all_close(jax.device_get(new.ema), jax.device_get(average), atol=1e-6)


class OneValue(nn.Module):
    """A generator whose pixels all have the value of its only parameter."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, latents, labels, train=False):
        value = self.param("value", nn.initializers.constant(0.5), ())
        return jnp.broadcast_to(value, (len(latents), 2, 2, 1))


CLASS_WEIGHTS = np.array([4.0, -4.0, 1.0], np.float32)


class ByClass(nn.Module):
    """A discriminator whose logit is the mean of the image times the weight of the class."""

    @nn.compact
    def __call__(self, images, labels, train=False):
        weights = self.param("weights", lambda key: jnp.asarray(CLASS_WEIGHTS))
        return weights[labels] * images.mean((1, 2, 3))


def test_a_step_descends_the_hinge_loss_and_raises_the_logits_of_the_samples():
    """Against the gradients of Lim & Ye 2017 worked out by hand, with plain gradient descent."""
    rates = {"discriminator": 0.5, "generator": 0.1}
    recipe = make_recipe(tiny_config(**{"train.num_discriminator_steps": 1}), 3)._replace(
        generator=OneValue(),
        discriminator=ByClass(),
        **{f"{name}_optimizer": optax.sgd(rate) for name, rate in rates.items()},
    )
    reals = np.array([230, 20, 200, 40, 250, 128, 10, 60], np.uint8)
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1], np.int32)
    data = Batch(np.broadcast_to(reals[:, None, None, None], (8, 2, 2, 1)), labels)
    state = init_state(recipe, (2, 2, 1))
    step = pmap_batches(make_gan_step(recipe), num_replicated=2, num_batches=1)
    new, metrics = step(state, data, np.arange(8))

    first, second = (np.asarray(_drawn(recipe, jnp.int32(i), jnp.arange(8))[1]) for i in (0, 1))
    assert set(first) == set(second) == {0, 1, 2}
    x, value = reals / 255, 0.5
    of_real, of_fake = CLASS_WEIGHTS[labels] * x, CLASS_WEIGHTS[first] * value
    for logits in (of_real, of_fake):  # on both sides of the hinge
        assert logits.min() < -1
        assert logits.max() > 1
    hinge = np.maximum(1 - of_real, 0).mean() + np.maximum(1 + of_fake, 0).mean()
    one_hot = np.eye(3)
    gradient = ((of_fake > -1)[:, None] * one_hot[first] * value).mean(axis=0)
    gradient -= ((of_real < 1)[:, None] * one_hot[labels] * x[:, None]).mean(axis=0)
    weights = CLASS_WEIGHTS - 0.5 * gradient
    np.testing.assert_allclose(metrics["discriminator_loss"], hinge, rtol=1e-5)
    np.testing.assert_allclose(metrics["logit_real"], of_real.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["logit_fake"], of_fake.mean(), rtol=1e-5)
    np.testing.assert_allclose(new.discriminator["params"]["weights"], weights, rtol=1e-5)
    # The generator descends -D(G(z)), by the discriminator after its step.
    slope = weights[second].mean()
    np.testing.assert_allclose(metrics["generator_loss"], -slope * value, rtol=1e-5)
    np.testing.assert_allclose(new.generator["params"]["value"], value + 0.1 * slope, rtol=1e-5)


def test_each_network_has_its_own_learning_rate():
    """Without a first moment the first step of Adam is the rate times the gradient's sign."""
    changes = {"generator": 0.01, "discriminator": 0.03}
    rates = {f"optimizer.{name}_learning_rate": rate for name, rate in changes.items()}
    recipe = make_recipe(tiny_config(**rates), 10)
    gradient = jnp.array([-2.0, 5.0])
    for name, rate in changes.items():
        optimizer = getattr(recipe, f"{name}_optimizer")
        update, _ = optimizer.update(gradient, optimizer.init(gradient))
        np.testing.assert_allclose(update, [rate, -rate], rtol=1e-5)


def test_the_moving_average_against_a_loop():
    values = np.random.default_rng(0).normal(size=60)
    average, expected = {"w": jnp.float32(values[0])}, values[0]
    for step, value in enumerate(values[1:], start=1):
        average = moving_average(average, {"w": jnp.float32(value)}, 0.8, step)
        decay = min(0.8, step / (step + 10))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5)


def test_the_statistics_are_those_of_the_averaged_generator(recipe, stepped):
    """Where all samples fit into one batch of each device, norms in either mode agree."""
    _, state, _ = stepped
    old = jax.tree.map(lambda leaf: leaf + 7, state.generator["batch_stats"])
    state = replace(state, generator={**state.generator, "batch_stats": old})
    weights = make_averaging(recipe, num_samples=512, batch_size=512)(state)
    generator = recipe.generator.clone(axis_name=None)
    latents = draw_latents(example_keys(jax.random.key(5), jnp.arange(1024)), 4)
    labels = jnp.arange(1024) % 10
    images = jax.jit(generator.apply)(weights, latents, labels)
    in_training = jax.jit(partial(generator.apply, train=True, mutable=["batch_stats"]))
    expected, _ = in_training(weights, latents, labels)
    assert np.abs(images - expected).mean() < 0.05 * expected.std()


def test_truncated_latents_stay_inside():
    keys = example_keys(jax.random.key(0), jnp.arange(1000))
    assert np.abs(draw_latents(keys, 8)).max() > 3
    latents = draw_latents(keys, 8, truncation=0.5)
    assert np.abs(latents).max() <= 0.5
    assert latents.std() > 0.25


def test_a_sample_follows_from_its_number(recipe, stepped):
    _, state, _ = stepped
    networks = (
        make_averaging(recipe, num_samples=64, batch_size=64)(state),
        state.discriminator,
    )
    for sampler in ("prior", "ddls"):
        config = tiny_config(**{"sampling.sampler": sampler, "sampling.ddls.num_steps": 3}).sampling
        make = make_sampler(recipe, config)
        whole, some = (
            np.concatenate([b.images for b in samples(make, networks, n, 10, size)])
            for n, size in ((12, 8), (6, 2))
        )
        assert whole.shape == (12, 8, 8, 3)
        # Rounding to bytes may fall to either side.
        assert np.abs(whole[:6].astype(int) - some).max() <= 1
    labels = np.concatenate([b.labels for b in samples(make, networks, 12, 10, 8)])
    np.testing.assert_array_equal(labels, [*range(10), 0, 1])


class LatentsAsPixels(nn.Module):
    """A generator that shows its four latents as the pixels of a 2x2 image."""

    num_classes: int = 3

    def __call__(self, latents, labels, train=False):
        return 0.5 + 0.08 * latents.reshape(-1, 2, 2, 1)


PULLS = np.array([0.8, -0.8, 0.2], np.float32)


class Pull(nn.Module):
    """A discriminator whose logit is linear in the latents, with a slope of the class."""

    def __call__(self, images, labels, train=False):
        return jnp.asarray(PULLS)[labels] * ((images - 0.5) / 0.08).sum((1, 2, 3))


@pytest.mark.parametrize("sampler", ["prior", "ddls"])
def test_ddls_samples_the_density_of_its_energy(sampler):
    """With E(z) = |z|^2 / 2 - a sum(z) that is the Gaussian of mean a and variance 1.

    Che et al. 2020: E(z) = -log p_0(z) - d(G(z)). Steps of size s leave the variance at
    1 / (1 - s / 4).
    """
    n, step_size = 6000, 0.4
    changes = {
        "sampling.sampler": sampler,
        "sampling.ddls.step_size": step_size,
        "sampling.ddls.num_steps": 40,
    }
    config = tiny_config(**changes)
    recipe = make_recipe(config, 3)._replace(generator=LatentsAsPixels(), discriminator=Pull())
    numbers, labels = np.arange(n), np.arange(n, dtype=np.int32) % 3
    images = make_sampler(recipe, config.sampling)(({}, {}), numbers, labels)
    latents = (np.asarray(images) / 255 - 0.5) / 0.08
    is_prior = sampler == "prior"
    for label, pull in enumerate(PULLS):
        values = latents[labels == label]
        assert values.mean() == pytest.approx(0 if is_prior else pull, abs=0.05)
        assert values.var() == pytest.approx(1 if is_prior else 1 / (1 - step_size / 4), rel=0.06)


def test_pixels_are_rounded_to_the_nearest_byte():
    config = tiny_config()
    recipe = make_recipe(config, 3)._replace(generator=OneValue())
    weights = {"params": {"value": jnp.float32(0.999)}}  # 254.7 of 255
    sampler = make_sampler(recipe, config.sampling)
    images = sampler((weights, {}), np.arange(4), np.zeros(4, np.int32))
    np.testing.assert_array_equal(images, 255)


@pytest.mark.parametrize("name", ["net", "wrn_7_1", "vit_1_32"])
def test_features_are_the_input_of_the_last_layer(name):
    model = make_model(name, 10)
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    logits, features = logits_and_features(model, variables, images)
    dense = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.shape[-1:] == (10,)]
    bias, kernel = sorted(dense, key=lambda leaf: leaf.ndim)
    np.testing.assert_allclose(features @ kernel + bias, logits, atol=1e-5)


def test_the_judge_lets_through_what_it_is_certain_of(digits):
    model = make_model("net", 10)
    weights = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    judge = Judge(model, weights)
    images = np.asarray(digits.test.images)

    def sampler(_, numbers, labels):
        return images[numbers % len(images)]

    probabilities = look(judge, images).probabilities
    changes = {"num_images": 30, "labels": "judged", "batch_size": 256}
    config = tiny_config(**{f"sampling.{name}": value for name, value in changes.items()}).sampling
    config.min_probability = float(np.quantile(probabilities.max(axis=1), 0.6))
    parts = list(judged_samples(sampler, None, judge, 10, config))
    kept = Batch(*map(np.concatenate, zip(*parts, strict=True)))
    assert len(kept.labels) == 30
    seen = look(judge, kept.images).probabilities
    np.testing.assert_array_equal(seen.argmax(axis=1), kept.labels)
    assert (seen.max(axis=1) >= config.min_probability - 1e-6).all()
    config.labels, config.min_probability = "intended", 0.999
    with pytest.raises(UserError, match=r"lower config\.sampling\.min_probability"):
        list(judged_samples(sampler, None, judge, 10, config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gans") / "tiny"
    train_gan.run(tiny_config(), workdir)
    return workdir


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "judge", "grids", "metrics.jsonl", "gan.json", "report.html"} <= names
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 2), (2, 4)]
    result = json.loads((finished / "gan.json").read_text())
    assert result["round"] == min(lines, key=lambda line: line["judge_frechet_distance"])["epoch"]
    assert len(result["samples"]["judge_accuracy_by_class"]) == 10
    page = (finished / "report.html").read_text()
    assert page.count("<img") >= 5
    assert "Samples against the test split" in page


class Killed(BaseException):
    """Stands for kill -9."""


def killed(*_, **__):
    raise Killed


def test_a_run_that_was_killed_ends_in_the_same_bits(finished, digits, tmp_path, monkeypatch):
    save, seen = checkpoint.save, iter(range(100))

    def save_and_die(workdir, number, items, metrics):
        save(workdir, number, items, metrics)
        raise Killed

    config = tiny_config(**{"judge.checkpoint": str(finished / "judge")})
    judge = make_judge(config, digits, tmp_path)
    for end, changed in (
        (stopping.Stopped, (stopping, "asked", lambda: next(seen) == 0)),
        (Killed, (checkpoint, "save", save_and_die)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            with pytest.raises(end):
                train_gan.train(config, digits, judge, tmp_path)
    train_gan.train(config, digits, judge, tmp_path)
    whole, again = (checkpoint.restore(path, "last", {}) for path in (finished, tmp_path))
    assert whole.epoch == again.epoch == 2
    assert whole.sha256 == again.sha256


def test_samples_become_a_data_set(finished, monkeypatch):
    config = tiny_config(**{"sampling.format": "npz"})
    config.mode = "sample"
    with monkeypatch.context() as patch:
        patch.setattr(sample.ShardWriter, "close", killed)
        with pytest.raises(Killed):
            sample.run(config, finished)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_synthetic(finished / "synthetic", (32, 32, 3), 10)
    sample.run(config, finished)
    for path in (finished / "synthetic", finished / "synthetic.npz"):
        images = open_synthetic(path, (32, 32, 3), 10)
        assert len(images) == 50
        np.testing.assert_array_equal(images.labels, np.arange(50) % 10)
    judged = json.loads((finished / "synthetic" / "manifest.json").read_text())["judged"]
    assert judged["num_images"] == 50
    said = json.loads((finished / "gan.json").read_text())
    assert judged["judge_accuracy_on_test"] == said["judge_accuracy_on_test"]
    with pytest.raises(UserError, match="is not empty"):
        sample.run(config, finished)


def test_samples_may_lie_elsewhere_and_be_labelled_by_the_judge(finished, tmp_path, capsys):
    changes = {"path": str(tmp_path / "judged"), "labels": "judged", "num_images": 12}
    config = tiny_config(**{f"sampling.{name}": value for name, value in changes.items()})
    config.judge.checkpoint = str(finished / "judge")
    sample.run(config, finished)
    assert "The judge chose these samples" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "judged" / "manifest.json").read_text())
    assert manifest["judged"]["samples"]["judge_accuracy"] == 1
    assert not (tmp_path / "judged.npz").exists()
    config.sampling.path = str(tmp_path / "other")
    config.judge.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match="is not the workdir of a run"):
        sample.run(config, finished)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.num_steps", 0, "config.train.num_steps is 0"),
        ("train.batch_size", 7, "not divisible by the 2 devices"),
        ("sampling.batch_size", 33, "not divisible by the 2 devices"),
        ("discriminator.num_blocks", 1, "at least 2"),
        ("sampling.sampler", "mala", "must be one of prior, ddls"),
        ("sampling.truncation", -1.0, "above 0"),
        ("judge.num_samples", 10, "at least 80"),
        ("judge.classifier.model.name", "nett", "config.judge.classifier: Unknown model"),
    ],
)
def test_an_impossible_value_is_named(key, value, message):
    config = tiny_config(**{key: value})
    with pytest.raises(UserError, match=message):
        configs.check_gan(config, num_devices=2)


def test_what_cannot_be_restored_is_named(tmp_path, digits):
    config = tiny_config(**{"generator.num_blocks": 2})
    with pytest.raises(UserError, match="images of side 16: those of the data set have 32"):
        train_gan.run(config, tmp_path / "small")
    with configs.claimed(tmp_path / "classifier", tiny_config().judge.classifier):
        pass
    with pytest.raises(UserError, match="holds a run of mode train, not of mode gan"):
        sample.run(tiny_config(), tmp_path / "classifier")
    with pytest.raises(UserError, match="is not the workdir of a run"):
        sample.run(tiny_config(), tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet: train first"):
        train_gan.restore(tiny_config(), digits, tmp_path, "best")
