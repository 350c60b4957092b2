"""Modules of users: how they are imported and constructed, and the errors of both."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from ml_collections import ConfigDict

from jaxadv.adapters.trained import noise_models
from jaxadv.core.devices import AXIS
from jaxadv.core.types import UserError
from jaxadv.models.checks import check_model
from jaxadv.models.classifier import (
    is_declared_stochastic,
    make_classifier,
    make_logits_fn,
    make_training_logits_fn,
)

SHAPE = (4, 4, 1)


class Net(nn.Module):
    num_classes: int
    widths: tuple[int, ...] = (3,)
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        hidden = images.reshape(len(images), -1)
        for width in self.widths:
            hidden = nn.Dense(width)(hidden)
            hidden = nn.BatchNorm(not train, momentum=0.5, axis_name=self.axis_name)(hidden)
        return nn.Dense(self.num_classes)(hidden)


class Noisy(nn.Module):
    num_classes: int
    stochastic = True

    @nn.compact
    def __call__(self, images, train=False):
        logits = nn.Dense(self.num_classes)(images.reshape(len(images), -1))
        return logits + jax.random.normal(self.make_rng("noise"), logits.shape)


class Sown(Net):
    @nn.compact
    def __call__(self, images, train=False):
        self.sow("losses", "l2", images.mean())
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


class NoTrain(nn.Module):
    num_classes: int

    def __call__(self, images):
        return images


class Map(Net):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Conv(self.num_classes, (3, 3))(images)


class Empty(Net):
    def __call__(self, images, train=False):
        return images.reshape(len(images), -1)[:, : self.num_classes]


class Fixed(Net):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(-1, 784))


class NnxNet(nnx.Module):
    stochastic = True

    def __init__(self, num_classes, width=3, *, rngs):
        self.first = nnx.Linear(16, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(width, num_classes, rngs=rngs)
        self.rngs = rngs

    def __call__(self, images):
        hidden = self.dropout(self.norm(self.first(images.reshape(len(images), -1))))
        return self.last(hidden) + self.rngs.normal((1,))


def classifier(name, **options):
    model = {"name": f"{__name__}:{name}", "options": options}
    return make_classifier(ConfigDict(model), num_classes=2)


def variables_of(model, seed=0):
    return model.init(jax.random.key(seed), jnp.zeros((1, *SHAPE)))


def images_of(num, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random((num, *SHAPE)), jnp.float32)


def test_options_and_the_axis_reach_the_constructor():
    model = classifier("Net", widths=[5, 4])  # a list, as JSON stores it
    assert model == Net(2, widths=(5, 4), axis_name=AXIS)
    assert hash(model) == hash(Net(2, widths=(5, 4), axis_name=AXIS))
    check_model(model, SHAPE, 2)


@pytest.mark.parametrize("name", ["Net", "NnxNet"])
def test_batch_statistics_are_those_of_the_batch_in_training_only(name):
    model = classifier(name)
    variables, images = variables_of(model), images_of(8)
    ids, key = jnp.arange(8), jax.random.key(0)
    evaluate, train = (
        make(model, variables, ids) for make in (make_logits_fn, make_training_logits_fn)
    )
    others = images.at[1:].set(0.5)
    np.testing.assert_allclose(evaluate(key, others)[0], evaluate(key, images)[0], atol=1e-6)
    assert np.abs(train(key, others)[0] - train(key, images)[0]).max() > 1e-3


def test_an_nnx_module_has_plain_collections_and_new_noise_for_each_key():
    model = classifier("NnxNet", width=4)
    variables, images = variables_of(model), images_of(2)
    shapes = jax.tree.map(jnp.shape, variables)
    assert shapes["batch_stats"] == {"norm": {"mean": (4,), "var": (4,)}}
    assert shapes["params"]["first"] == {"kernel": (16, 4), "bias": (4,)}
    assert shapes.keys() == {"batch_stats", "params"}
    assert np.abs(variables_of(model, seed=1)["params"]["first"]["kernel"]).sum() > 0
    first, second = (
        make_logits_fn(model, variables, jnp.arange(2))(jax.random.key(seed), images)
        for seed in (0, 1)
    )
    noise = second - first
    assert np.abs(noise).min() > 1e-4
    np.testing.assert_allclose(noise[:, 0], noise[:, 1], atol=1e-5)  # one sample for an image
    assert abs(noise[0, 0] - noise[1, 0]) > 1e-4  # and another one for each image


def test_a_declared_stochastic_module_has_no_mode_without_noise():
    for name in ("Noisy", "NnxNet"):
        model = classifier(name)
        assert is_declared_stochastic(model)
        assert noise_models(model, {}, 0).keys() == {"on", "fixed", "training"}
    assert not is_declared_stochastic(classifier("Net"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sown", "changes the structure, shapes or types of its collection losses in training"),
        ("Map", r"Map returns float32\[2, 4, 4, 2\] for 2 images with train=False: .* \[2, 2\]"),
        ("Empty", "Empty has no params: training needs"),
        ("Fixed", r"Fixed cannot be initialised on images of 4 x 4 x 1 \(TypeError: "),
    ],
)
def test_a_module_that_breaks_the_contract_is_named(name, message):
    with pytest.raises(UserError, match=message) as raised:
        check_model(classifier(name), SHAPE, 2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "no_such_file:Net"}, "there is no module no_such_file, neither installed nor"),
        (
            {"name": "broken_import:Net"},
            r"import of broken_import failed \(ModuleNotFoundError: No",
        ),
        ({"name": "broken_syntax:Net"}, r"import of broken_syntax failed \(SyntaxError: "),
        ({"name": f"{__name__}:Nett"}, f"{__name__} has no Nett: it has Net, Noisy, "),
        ({"name": f"{__name__}:SHAPE"}, "is not a class of Linen or NNX modules: use Net, Noisy"),
        ({"name": f"{__name__}:NoTrain"}, r"write __call__\(self, images, train=False\)"),
        ({"name": "models.py:Net"}, "write the import path of a module and its class"),
        ({"name": "a/b:Net"}, "write the import path of a module and its class"),
        ({"options": {"depth": 3}}, r"options=\{'depth': 3\} \(TypeError: .*'depth'\): correct"),
        ({"name": f"{__name__}:NnxNet", "options": {"depth": 3}}, "unexpected keyword argument 'd"),
        ({"activation": "relu"}, "config.model.activation is 'relu', which has no effect on"),
        ({"dropout": 0.1}, "config.model.dropout is 0.1, which has no effect on"),
        ({"defence": {"name": "pni"}}, "defence.name is 'pni', which has no effect on"),
        ({"name": "net", "options": {"mean": [0]}}, "options.mean is not an option of net: leave"),
        (
            {"name": "resnet_18", "options": {"padding": 1}},
            "options.padding is not an option of resnet_18: use mean, std$",
        ),
        (
            {"name": "exits_at_import:Net"},
            r"import of exits_at_import ends the program \(SystemExit: 2\): move what it runs",
        ),
    ],
)
def test_mistakes_in_the_config_are_named(tmp_path, monkeypatch, changes, message):
    (tmp_path / "broken_import.py").write_text("import no_such_module")
    (tmp_path / "broken_syntax.py").write_text("def")
    (tmp_path / "exits_at_import.py").write_text("import sys; sys.exit(2)")
    monkeypatch.chdir(tmp_path)  # modules in the current directory are found
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=message) as raised:
        make_classifier(ConfigDict({"name": f"{__name__}:Net", **changes}), num_classes=2)
    assert "\n" not in str(raised.value)
