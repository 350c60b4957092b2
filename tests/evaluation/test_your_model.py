"""Every example of docs/your_model.md runs, and gives the figures of the command line.

A small net is trained on the digits and evaluated by the job of the command line. Its weights are
then copied into each library.
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_config import tiny_config

import jaxadv
from jaxadv.data import load
from jaxadv.training import train

pytestmark = pytest.mark.slow  # trains, and compiles for each library

os.environ.setdefault("KERAS_BACKEND", "jax")  # before the first import of keras
PAGE = Path(__file__).parents[2] / "docs" / "your_model.md"
ATTACKS = {
    "fgsm": {"attack": "fgsm", "eps": (0.03, 0.1)},
    "pgd": {"attack": "pgd", "eps": (0.03, 0.1), "step_size": 0.01, "num_steps": 5},
    "square": {"attack": "square", "eps": (0.1,), "num_queries": 20},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a run with its evaluation, and the images of that evaluation."""
    workdir = tmp_path_factory.mktemp("runs") / "net"
    config = tiny_config(**{"evaluation.attacks": ATTACKS, "model.dropout": 0.0})
    train.run(config, workdir)
    digits = load("digits", data_dir=None, validation_fraction=0.1)
    split = SimpleNamespace(images=digits.test.images[:64], labels=digits.test.labels[:64])
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    return SimpleNamespace(workdir=workdir, split=split, evaluation=evaluation, seed=config.seed)


@pytest.fixture(scope="module")
def classifier(trained):
    return jaxadv.load_classifier(trained.workdir)


@pytest.fixture(scope="module")
def weights(classifier):
    """Return kernel and bias of the five layers, in NumPy."""
    params = classifier.variables["params"]
    layers = {"conv0": "Conv_0", "conv1": "Conv_1", "dense0": "Dense_0", "dense1": "Dense_1"}
    layers["dense2"] = "Dense_2"
    return {
        name: (np.asarray(params[key]["kernel"]), np.asarray(params[key]["bias"]))
        for name, key in layers.items()
    }


def max_pool(images):
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def linen_model(weights):
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            for name in ("conv0", "conv1"):
                features = weights[name][0].shape[-1]
                x = nn.relu(nn.Conv(features, (5, 5), padding="VALID", name=name)(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(len(x), -1)
            for name in ("dense0", "dense1"):
                x = nn.relu(nn.Dense(weights[name][0].shape[-1], name=name)(x))
            return nn.Dense(10, name="dense2")(x)

    params = {name: {"kernel": k, "bias": b} for name, (k, b) in weights.items()}
    return Net(), {"params": params}


def nnx_model(weights):
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            for name, (kernel, bias) in weights.items():
                sizes, rngs = kernel.shape[-2:], nnx.Rngs(0)
                is_conv = kernel.ndim == 4
                layer = (
                    nnx.Conv(*sizes, (5, 5), padding="VALID", rngs=rngs)
                    if is_conv
                    else nnx.Linear(*sizes, rngs=rngs)
                )
                layer.kernel[...], layer.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
                setattr(self, name, layer)
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            for conv in (self.conv0, self.conv1):
                x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
            x = self.dropout(x.reshape(len(x), -1))
            return self.dense2(nnx.relu(self.dense1(nnx.relu(self.dense0(x)))))

    return Net(), None


def channels_first(weights):
    """Return the weights in the layout of PyTorch and Equinox."""
    layers = {}
    for name, (kernel, bias) in weights.items():
        if name == "dense0":  # its inputs are flattened with the channels first
            side, channels = 5, 16
            kernel = kernel.reshape(side, side, channels, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(side * side * channels, -1)
        layers[name] = (kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T, bias)
    return layers


def equinox_model(weights):
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)

    def layer(weight, bias):
        made = (
            eqx.nn.Conv2d(weight.shape[1], len(weight), 5, key=key)
            if weight.ndim == 4
            else eqx.nn.Linear(weight.shape[1], len(weight), key=key)
        )
        bias = bias.reshape(made.bias.shape)
        where = lambda made: (made.weight, made.bias)  # noqa: E731
        return eqx.tree_at(where, made, (jnp.asarray(weight), jnp.asarray(bias)))

    layers = {name: layer(*pair) for name, pair in channels_first(weights).items()}
    relu, pool = eqx.nn.Lambda(jax.nn.relu), eqx.nn.MaxPool2d(2, 2)
    model = eqx.nn.Sequential(
        [
            layers["conv0"], relu, pool, layers["conv1"], relu, pool, eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Dropout(0.5), layers["dense0"], relu, layers["dense1"], relu, layers["dense2"],
        ]
    )  # fmt: skip
    return model, None


def haiku_model(weights):
    hk = pytest.importorskip("haiku")

    def net(x):
        for name in ("conv0", "conv1"):
            conv = hk.Conv2D(weights[name][0].shape[-1], 5, padding="VALID", name=name)
            x = hk.max_pool(jax.nn.relu(conv(x)), (2, 2, 1), (2, 2, 1), "VALID")
        x = x.reshape(len(x), -1)
        for name in ("dense0", "dense1"):
            x = jax.nn.relu(hk.Linear(weights[name][0].shape[-1], name=name)(x))
        return hk.Linear(10, name="dense2")(x)

    params = {name: {"w": kernel, "b": bias} for name, (kernel, bias) in weights.items()}
    return hk.transform(net), params


def keras_model(weights):
    keras = pytest.importorskip("keras")
    layers = keras.layers
    sizes = {name: kernel.shape[-1] for name, (kernel, _) in weights.items()}
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(sizes["conv0"], 5, activation="relu"), layers.MaxPool2D(),
            layers.Conv2D(sizes["conv1"], 5, activation="relu"), layers.MaxPool2D(),
            layers.Flatten(), layers.Dropout(0.5),
            layers.Dense(sizes["dense0"], activation="relu"),
            layers.Dense(sizes["dense1"], activation="relu"), layers.Dense(10),
        ]
    )  # fmt: skip
    model.set_weights([array for pair in weights.values() for array in pair])
    return model, None


def torch_model(weights):
    torch = pytest.importorskip("torch")
    nn, layers = torch.nn, {}
    for name, (weight, bias) in channels_first(weights).items():
        is_conv = weight.ndim == 4
        layer = (nn.Conv2d if is_conv else nn.Linear)(
            weight.shape[1], len(weight), *([5] if is_conv else [])
        )
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        layers[name] = layer
    model = nn.Sequential(
        layers["conv0"], nn.ReLU(), nn.MaxPool2d(2), layers["conv1"], nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), layers["dense0"], nn.ReLU(), layers["dense1"], nn.ReLU(),
        layers["dense2"],
    )  # fmt: skip
    return model, None


MODELS = {
    "A JAX function": linen_model,
    "Flax Linen": linen_model,
    "Flax NNX": nnx_model,
    "Equinox": equinox_model,
    "Haiku": haiku_model,
    "Keras": keras_model,
    "PyTorch": torch_model,
}


def example_of(heading):
    """Return the example below a heading of the page."""
    (section,) = re.findall(rf"^#+ {heading}$(.*?)(?=^#|\Z)", PAGE.read_text(), re.M | re.S)
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    assert len(code.strip().splitlines()) <= 14
    return code


def run_example(code, names, monkeypatch, folder):
    monkeypatch.chdir(folder)
    exec(compile(code, str(PAGE), "exec"), names)
    return names["result"]


def check_agrees(result, trained):
    """Check that a result has the figures of the command line, image for image."""
    with np.load(trained.workdir / "examples.npz") as arrays:
        expected = dict(arrays)
    assert result.clean.accuracy == trained.evaluation["clean"]["accuracy"]
    for key, entry in trained.evaluation["attacks"].items():
        assert result.attacks[key].accuracy == entry["accuracy"]
        found = result.examples.attacks[key]
        np.testing.assert_array_equal(found.robust, expected[f"survived/{key}"])
        # The pools of this project share the gradient of equal pixels, which the digits have many
        # of; other libraries give it to the first one.
        np.testing.assert_allclose(found.margins, expected[f"margin/{key}"], atol=0.3)
    worst = {f"{one.norm}/{one.eps:.4g}": one.accuracy for one in result.evaluation.worst_case}
    assert worst == {
        f"{one['norm']}/{one['eps']:.4g}": one["accuracy"]
        for one in trained.evaluation["worst_case"].values()
    }


@pytest.mark.parametrize("heading", MODELS)
def test_a_model_of_each_library(heading, trained, weights, monkeypatch, tmp_path):
    model, variables = MODELS[heading](weights)
    if heading == "A JAX function":
        model = SimpleNamespace(
            apply=lambda variables, x, net=model: net.apply(variables, x, False)
        )
    names = {"model": model, "variables": variables}
    names |= {"images": trained.split.images, "labels": trained.split.labels}
    # The suite of the page, in fewer steps: that of the run.
    code = example_of(heading).replace(
        'attacks="standard", eps=8 / 255', "attacks=attacks, seed=seed"
    )
    names |= {"attacks": ATTACKS, "seed": trained.seed}
    result = run_example(code, names, monkeypatch, tmp_path)
    check_agrees(result, trained)
    (page,) = tmp_path.glob("*.html")
    assert "64 images" in page.read_text()


def test_a_classifier_of_a_run(trained, monkeypatch, tmp_path):
    code = example_of("A classifier that this project trained")
    code = code.replace('"runs/curriculum"', repr(str(trained.workdir)))
    code = code.replace('attacks="autoattack", eps=8 / 255', "attacks=attacks, seed=seed")
    names = {"images": trained.split.images, "labels": trained.split.labels}
    names |= {"attacks": ATTACKS, "seed": trained.seed}
    check_agrees(run_example(code, names, monkeypatch, tmp_path), trained)


def test_a_server_that_answers_probabilities(trained, classifier, monkeypatch, tmp_path):
    queried = []

    def ask_server(images):
        assert isinstance(images, np.ndarray)
        queried.append(len(images))
        return np.asarray(jax.nn.softmax(classifier(jax.random.key(0), jnp.asarray(images))))

    code = example_of("A server, or anything else")
    names = {"ask_server": ask_server, "labels": trained.split.labels[:16]}
    names["images"] = trained.split.images[:16]
    code = code.replace('attacks="black_box", eps=8 / 255', "attacks=attacks, eps=0.1")
    names["attacks"] = {
        "square": {"attack": "square", "num_queries": 60},
        "nes": {"attack": "nes", "num_queries": 60, "step_size": 0.02, "samples_per_gradient": 10},
        "pgd": {"attack": "pgd", "num_steps": 2, "step_size": 0.1},
    }
    result = run_example(code, names, monkeypatch, tmp_path)
    assert list(result.attacks) == ["square/0.1", "nes/0.1"]
    assert result.warnings[0].startswith("The model is a black box, so the attacks that need gra")
    correct = int(result.clean.accuracy * 16)
    spent = sum(found.queries.sum() for found in result.examples.attacks.values())
    # The answers are checked on 8 images twice, and the cache compares all 16 images. The clean
    # images are scored twice, and the attacked ones once for each attack.
    assert sum(queried) == spent + 2 * 8 + 16 + 2 * 16 + 2 * correct
    assert result.attacks["square/0.1"].query_cost.over_queries
    assert "black box" in (tmp_path / "server.html").read_text()


def test_the_examples_of_the_readme(monkeypatch, tmp_path):
    readme = PAGE.parents[1] / "README.md"
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", readme.read_text(), re.M | re.S):
        exec(compile(code, str(readme), "exec"), names)
    assert (tmp_path / "report.html").exists()
    accuracies = names["found"].accuracies()
    assert accuracies["square"] <= accuracies["apgd_ce"] < 1
    assert names["result"].robust_accuracy < 1
