"""The step of a GAN, its averaged generator, samplers, and runs: train, stop, resume, sample."""

import json
import shutil
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_config import tiny_gan_config as tiny_config

from jaxadv import config as configs
from jaxadv.core.devices import AXIS, pmap_batches
from jaxadv.core.rng import example_keys
from jaxadv.core.sample_quality import GanResult, SampleEvaluation
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import load
from jaxadv.data.resident import make_resident
from jaxadv.data.synthetic import open_synthetic
from jaxadv.gan import sampling, train
from jaxadv.gan.evaluator import (
    SampleEvaluator,
    classify,
    logits_and_features,
    make_sample_evaluator,
)
from jaxadv.gan.sampling import concatenate, filtered_batches, make_sampler, sample_batches
from jaxadv.gan.step import (
    _sample_inputs,
    init_state,
    make_averaging,
    make_gan_setup,
    make_gan_step,
    restore,
    sample_latents,
)
from jaxadv.models import make_model
from jaxadv.runs import checkpoints, signals
from jaxadv.runs.workdir import claimed
from jaxadv.training.optimizer import moving_average

pytestmark = pytest.mark.slow  # compiles much


@pytest.fixture(scope="module")
def digits():
    return load("digits", data_dir=None, validation_fraction=0.04)


@pytest.fixture(scope="module")
def setup():
    """A GAN for images of side 8, which compiles faster than one of side 32."""
    changes = {"train.num_discriminator_steps": 2, "generator.num_blocks": 1}
    return make_gan_setup(tiny_config(**changes), 10, 3)


@pytest.fixture(scope="module")
def small(digits):
    """Digits of side 8."""
    return HostBatch(digits.train.images[:64, ::4, ::4], digits.train.labels[:64])


@pytest.fixture(scope="module")
def stepped(setup, small):
    """The state before and after a step on two devices, and the metrics of the step."""
    state = init_state(setup, (8, 8, 3))
    step = pmap_batches(make_gan_step(setup), num_replicated=2, num_batches=1)
    return state, *step(state, make_resident(small), np.arange(16))


def test_two_devices_give_the_result_of_one(setup, small, stepped):
    state, new, metrics = stepped
    one = jax.pmap(
        make_gan_step(setup),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.devices()[:1],
    )
    expected = one(state, make_resident(small), np.arange(16)[None])
    # Adam divides by the size of the gradient: tiny gradients amplify rounding errors.
    chex.assert_trees_all_close(
        jax.device_get((new.ema, new.discriminator, metrics)),
        jax.device_get((expected[0].ema, expected[0].discriminator, expected[1])),
        atol=2e-3,
    )


def test_a_step_updates_both_networks(stepped):
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
    """A generator whose only parameter is the value of all pixels."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, latents, labels, train=False):
        value = self.param("value", nn.initializers.constant(0.5), ())
        return jnp.broadcast_to(value, (len(latents), 2, 2, 1))


CLASS_WEIGHTS = np.array([4.0, -4.0, 1.0], np.float32)


class ByClass(nn.Module):
    """A discriminator with the mean of the image times the weight of the class as its logit."""

    @nn.compact
    def __call__(self, images, labels, train=False):
        weights = self.param("weights", lambda key: jnp.asarray(CLASS_WEIGHTS))
        return weights[labels] * images.mean((1, 2, 3))


def test_a_step_of_gradient_descent_on_both_losses():
    """Compare with the gradients of the hinge loss (Lim & Ye 2017), derived by hand."""
    rates = {"discriminator": 0.5, "generator": 0.1}
    setup = make_gan_setup(tiny_config(**{"train.num_discriminator_steps": 1}), 3, 3)._replace(
        generator=OneValue(),
        discriminator=ByClass(),
        **{f"{name}_optimizer": optax.sgd(rate) for name, rate in rates.items()},
    )
    reals = np.array([230, 20, 200, 40, 250, 128, 10, 60], np.uint8)
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1], np.int32)
    data = HostBatch(np.broadcast_to(reals[:, None, None, None], (8, 2, 2, 1)), labels)
    state = init_state(setup, (2, 2, 1))
    step = pmap_batches(make_gan_step(setup), num_replicated=2, num_batches=1)
    new, metrics = step(state, make_resident(data), np.arange(8))

    first, second = (
        np.asarray(_sample_inputs(setup, jnp.int32(i), jnp.arange(8))[1]) for i in (0, 1)
    )
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
    """Without a first moment, the first step of Adam is the rate times the sign of the gradient."""
    changes = {"generator": 0.01, "discriminator": 0.03}
    rates = {f"optimizer.{name}_learning_rate": rate for name, rate in changes.items()}
    setup = make_gan_setup(tiny_config(**rates), 10, 3)
    gradient = jnp.array([-2.0, 5.0])
    for name, rate in changes.items():
        optimizer = getattr(setup, f"{name}_optimizer")
        update, _ = optimizer.update(gradient, optimizer.init(gradient))
        np.testing.assert_allclose(update, [rate, -rate], rtol=1e-5)


def test_the_moving_average_matches_a_loop():
    values = np.random.default_rng(0).normal(size=60)
    average, expected = {"w": jnp.float32(values[0])}, values[0]
    for step, value in enumerate(values[1:], start=1):
        average = moving_average(average, {"w": jnp.float32(value)}, step, 0.8)
        decay = min(0.8, step / (step + 10))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average["w"], expected, rtol=1e-5)


def test_the_statistics_fit_the_averaged_generator(setup, stepped):
    """With all samples in one batch per device, norms in training and evaluation mode agree."""
    _, state, _ = stepped
    old = jax.tree.map(lambda leaf: leaf + 7, state.generator["batch_stats"])
    state = replace(state, generator={**state.generator, "batch_stats": old})
    weights = make_averaging(setup, num_samples=512, batch_size=512)(state)
    generator = setup.generator.clone(axis_name=None)
    latents = sample_latents(example_keys(jax.random.key(5), jnp.arange(1024)), 4)
    labels = jnp.arange(1024) % 10
    images = jax.jit(generator.apply)(weights, latents, labels)
    in_training = jax.jit(partial(generator.apply, train=True, mutable=["batch_stats"]))
    expected, _ = in_training(weights, latents, labels)
    assert np.abs(images - expected).mean() < 0.05 * expected.std()


def test_truncated_latents_stay_inside():
    keys = example_keys(jax.random.key(0), jnp.arange(1000))
    assert np.abs(sample_latents(keys, 8)).max() > 3
    latents = sample_latents(keys, 8, truncation=0.5)
    assert np.abs(latents).max() <= 0.5
    assert latents.std() > 0.25


def test_a_sample_follows_from_its_number(setup, stepped):
    _, state, _ = stepped
    networks = (
        make_averaging(setup, num_samples=64, batch_size=64)(state),
        state.discriminator,
    )
    for sampler in ("prior", "ddls"):
        config = tiny_config(**{"sampling.sampler": sampler, "sampling.ddls.num_steps": 3}).sampling
        make = make_sampler(setup, config)
        whole, some = (
            np.concatenate([b.images for b in sample_batches(make, networks, n, 10, size)])
            for n, size in ((12, 8), (6, 2))
        )
        assert whole.shape == (12, 8, 8, 3)
        # Rounding to uint8 may differ by one.
        assert np.abs(whole[:6].astype(int) - some).max() <= 1
    labels = np.concatenate([b.labels for b in sample_batches(make, networks, 12, 10, 8)])
    np.testing.assert_array_equal(labels, [*range(10), 0, 1])


class LatentsAsPixels(nn.Module):
    """A generator whose 2x2 pixels are its four latents."""

    num_classes: int = 3

    def __call__(self, latents, labels, train=False):
        return 0.5 + 0.08 * latents.reshape(-1, 2, 2, 1)


PULLS = np.array([0.8, -0.8, 0.2], np.float32)


class Pull(nn.Module):
    """A discriminator whose logit is linear in the latents, with a slope for each class."""

    def __call__(self, images, labels, train=False):
        return jnp.asarray(PULLS)[labels] * ((images - 0.5) / 0.08).sum((1, 2, 3))


@pytest.mark.parametrize("sampler", ["prior", "ddls"])
def test_ddls_samples_the_density_of_its_energy(sampler):
    """For E(z) = |z|^2 / 2 - a sum(z) the density is the Gaussian of mean a and variance 1.

    Che et al. 2020: E(z) = -log p_0(z) - d(G(z)). Steps of size s change the variance to
    1 / (1 - s / 4).
    """
    n, step_size = 6000, 0.4
    changes = {
        "sampling.sampler": sampler,
        "sampling.ddls.step_size": step_size,
        "sampling.ddls.num_steps": 40,
    }
    config = tiny_config(**changes)
    setup = make_gan_setup(config, 3, 3)._replace(generator=LatentsAsPixels(), discriminator=Pull())
    numbers, labels = np.arange(n), np.arange(n, dtype=np.int32) % 3
    images = make_sampler(setup, config.sampling)(({}, {}), numbers, labels)
    latents = (np.asarray(images) / 255 - 0.5) / 0.08
    is_prior = sampler == "prior"
    for label, pull in enumerate(PULLS):
        values = latents[labels == label]
        assert values.mean() == pytest.approx(0 if is_prior else pull, abs=0.05)
        assert values.var() == pytest.approx(1 if is_prior else 1 / (1 - step_size / 4), rel=0.06)


def test_pixels_are_rounded_to_the_nearest_integer():
    config = tiny_config()
    setup = make_gan_setup(config, 3, 3)._replace(generator=OneValue())
    weights = {"params": {"value": jnp.float32(0.999)}}  # 254.7 of 255
    sampler = make_sampler(setup, config.sampling)
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


def test_the_evaluator_selects_confident_samples(digits):
    model = make_model("net", 10)
    weights = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    evaluator = SampleEvaluator(model, weights)
    images = np.asarray(digits.test.images)

    def sampler(_, numbers, labels):
        return images[numbers % len(images)]

    probabilities = classify(evaluator, images).probabilities
    changes = {"num_images": 30, "labels": "judged", "batch_size": 256}
    config = tiny_config(**{f"sampling.{name}": value for name, value in changes.items()}).sampling
    config.min_probability = float(np.quantile(probabilities.max(axis=1), 0.6))
    kept = concatenate(filtered_batches(sampler, None, evaluator, 10, config))
    assert len(kept.labels) == 30
    probabilities = classify(evaluator, kept.images).probabilities
    np.testing.assert_array_equal(probabilities.argmax(axis=1), kept.labels)
    assert (probabilities.max(axis=1) >= config.min_probability - 1e-6).all()
    config.labels, config.min_probability = "intended", 0.999
    with pytest.raises(UserError, match=r"lower config\.sampling\.min_probability"):
        list(filtered_batches(sampler, None, evaluator, 10, config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gans") / "tiny"
    train.run(tiny_config(), workdir)
    return workdir


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    files = {"config.json", "grids", "metrics.jsonl", "gan.json", "report.html"}
    assert {"evaluator", *files} <= names
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 2), (2, 4)]
    result = json.loads((finished / "gan.json").read_text())
    assert result["round"] == min(lines, key=lambda line: line["judge_frechet_distance"])["epoch"]
    assert len(result["samples"]["judge_accuracy_by_class"]) == 10
    page = (finished / "report.html").read_text()
    assert page.count("<img") >= 5
    assert "Samples against the test split" in page


def test_a_workdir_of_an_earlier_version_is_read(finished, tmp_path):
    """Its config has the section `judge` and removed keys; its evaluator is in `judge`."""
    workdir = shutil.copytree(finished, tmp_path / "earlier")
    (workdir / "evaluator").rename(workdir / "judge")
    stored = json.loads((workdir / "config.json").read_text())
    stored["judge"] = stored.pop("evaluator")
    stored["generator"]["attention"] = stored["discriminator"]["attention"] = False
    stored["judge"]["classifier"]["model"]["defence"]["pni"]["granularity"] = "layer"
    (workdir / "config.json").write_text(json.dumps(stored))
    train.run(tiny_config(), workdir)
    sampling.run(tiny_config(), workdir)
    assert (workdir / "synthetic" / "manifest.json").exists()
    assert not (workdir / "evaluator").exists()

    stored["generator"]["attention"] = True
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config\.generator\.attention is True"):
        train.run(tiny_config(), workdir)


class Killed(BaseException):
    """Simulates kill -9."""


def killed(*_, **__):
    raise Killed


def test_a_killed_run_ends_in_the_same_bits(finished, digits, tmp_path, monkeypatch):
    save, seen = checkpoints.save, iter(range(100))

    def save_and_die(workdir, number, *rest):
        save(workdir, number, *rest)
        raise Killed

    config = tiny_config(**{"evaluator.checkpoint": str(finished / "evaluator")})
    evaluator = make_sample_evaluator(config, digits, tmp_path)
    for end, changed in (
        (signals.Stopped, (signals, "stop_requested", lambda: next(seen) == 0)),
        (Killed, (checkpoints, "save", save_and_die)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            with pytest.raises(end):
                train.train(config, digits, evaluator, tmp_path)
    train.train(config, digits, evaluator, tmp_path)
    whole, again = (checkpoints.restore(path, "last", {}) for path in (finished, tmp_path))
    assert whole.epoch == again.epoch == 2
    assert whole.sha256 == again.sha256


def test_samples_become_a_data_set(finished, monkeypatch):
    config = tiny_config(**{"sampling.format": "npz"})
    config.mode = "sample"
    with monkeypatch.context() as patch:
        patch.setattr(sampling.ShardWriter, "close", killed)
        with pytest.raises(Killed):
            sampling.run(config, finished)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_synthetic(finished / "synthetic", (32, 32, 3), 10)
    sampling.run(config, finished)
    for path in (finished / "synthetic", finished / "synthetic.npz"):
        images = open_synthetic(path, (32, 32, 3), 10)
        assert len(images) == 50
        np.testing.assert_array_equal(images.labels, np.arange(50) % 10)
    manifest = json.loads((finished / "synthetic" / "manifest.json").read_text())
    evaluation = SampleEvaluation.from_json(manifest["judged"])
    assert evaluation.num_images == 50
    result = GanResult.from_json(json.loads((finished / "gan.json").read_text()))
    assert evaluation.evaluator_accuracy == result.evaluator_accuracy


def test_complete_samples_are_not_repeated(finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "samples"
    changes = {"path": str(folder), "format": "npz", "num_images": 12}
    config = tiny_config(**{f"sampling.{name}": value for name, value in changes.items()})
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "pack", killed)
        with pytest.raises(Killed):
            sampling.run(config, finished)
    manifest = (folder / "manifest.json").read_bytes()
    sampling.run(config, finished)
    assert f"{folder} has these samples already" in capsys.readouterr().out
    assert (folder / "manifest.json").read_bytes() == manifest
    assert len(open_synthetic(tmp_path / "samples.npz", (32, 32, 3), 10)) == 12
    config.sampling.truncation = 0.5
    with pytest.raises(UserError, match="is not empty"):
        sampling.run(config, finished)
    config.sampling.truncation = None
    (folder / "manifest.json").write_text(json.dumps({**json.loads(manifest), "round": 7}))
    with pytest.raises(UserError, match="is not empty"):
        sampling.run(config, finished)


def test_samples_in_another_folder_with_predicted_labels(finished, tmp_path, capsys):
    changes = {"path": str(tmp_path / "predicted"), "labels": "judged", "num_images": 12}
    config = tiny_config(**{f"sampling.{name}": value for name, value in changes.items()})
    config.evaluator.checkpoint = str(finished / "evaluator")
    sampling.run(config, finished)
    assert "The evaluator selected or labelled these samples" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "predicted" / "manifest.json").read_text())
    assert manifest["judged"]["samples"]["judge_accuracy"] == 1
    assert not (tmp_path / "predicted.npz").exists()
    config.sampling.path = str(tmp_path / "other")
    config.evaluator.checkpoint = str(tmp_path)
    with pytest.raises(UserError, match=r"has no config\.json: pass the workdir of a run"):
        sampling.run(config, finished)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.num_steps", 0, "config.train.num_steps is 0"),
        ("train.batch_size", 7, "not divisible by the 2 devices"),
        ("sampling.batch_size", 33, "not divisible by the 2 devices"),
        ("discriminator.num_blocks", 1, "at least 2"),
        ("sampling.sampler", "mala", "must be one of prior, ddls"),
        ("sampling.truncation", -1.0, "above 0"),
        ("evaluator.num_samples", 9, "at least 10"),
        ("evaluator.classifier.model.name", "nett", "config.evaluator.classifier: Unknown model"),
    ],
)
def test_an_invalid_value_is_named(key, value, message):
    config = tiny_config(**{key: value})
    with pytest.raises(UserError, match=message):
        configs.check(config, num_devices=2)


def test_a_run_that_cannot_be_restored_is_named(tmp_path, digits):
    config = tiny_config(**{"generator.num_blocks": 2})
    with pytest.raises(
        UserError,
        match=r"16 x 16 pixels, and those .* have 32 x 32: set config\.generator\.num_blocks=3",
    ):
        train.run(config, tmp_path / "small")
    with claimed(tmp_path / "classifier", tiny_config().evaluator.classifier):
        pass
    with pytest.raises(UserError, match="holds a run of mode train: pass one of mode gan"):
        sampling.run(tiny_config(), tmp_path / "classifier")
    with pytest.raises(UserError, match=r"has no config\.json: pass the workdir of a run"):
        sampling.run(tiny_config(), tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet: train first"):
        restore(tiny_config(), digits, tmp_path, "best")
