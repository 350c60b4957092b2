"""The published architectures without PyTorch; `test_torch_parity.py` compares them with it."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from architectures import ARCHITECTURES, GREY, MNIST
from ml_collections import ConfigDict
from random_weights import random_state_dict, state_dict_shapes, variable_shapes

from jaxadv.core.types import UserError
from jaxadv.models import make_model
from jaxadv.models.classifier import make_classifier
from jaxadv.models.defences import PNI
from jaxadv.models.layers import batch_norm, normalize
from jaxadv.models.state_dicts import to_variables
from jaxadv.models.wide_resnet import WideResNet

# Logits of the networks of `benchmarks/torch_architectures.py` in double precision, for the weights
# of `random_state_dict` and the first of the images of `random_images`.
LOGITS = {
    "wideresnet": [-0.01196, -0.52009, -0.43369],
    "wideresnet, normalised": [1.32955, 1.50262, -3.1913],
    "dm_wideresnet": [-0.05622, -0.32707, 0.11743],
    "dm_wideresnet, MNIST": [0.34764, 0.19341, 0.33388],
    "resnet_18": [0.79559, -0.10239, -0.16841],
    "resnet_50": [-0.28228, 0.26501, -1.41652],
    "preactresnet_18": [-1.54698, -0.6515, 1.56807],
    "preactresnet_18_v2": [0.19868, -0.39331, 0.14969],
    "dm_preactresnet_18": [0.59707, -1.4306, -0.41522],
    "mnist_cnn": [0.08284, -0.25235, 0.51195],
}
PARAMETERS = {
    "wideresnet_28_10": 36_479_194,
    "wideresnet_34_10": 46_160_474,
    "wideresnet_34_20": 184_531_674,
    "wideresnet_70_16": 266_796_506,
    "dm_wideresnet_28_10": 36_479_194,
    "dm_wideresnet_70_16": 266_796_506,
    "resnet_18": 11_173_962,
    "resnet_34": 21_282_122,
    "resnet_50": 23_520_842,
    "preactresnet_18": 11_171_146,
    "preactresnet_18_v2": 11_172_170,
}
WIDERESNET_KEYS = """
block1.layer.0.bn1.bias block1.layer.0.bn1.running_mean block1.layer.0.bn1.running_var
block1.layer.0.bn1.weight block1.layer.0.bn2.bias block1.layer.0.bn2.running_mean
block1.layer.0.bn2.running_var block1.layer.0.bn2.weight block1.layer.0.conv1.weight
block1.layer.0.conv2.weight
block2.layer.0.bn1.bias block2.layer.0.bn1.running_mean block2.layer.0.bn1.running_var
block2.layer.0.bn1.weight block2.layer.0.bn2.bias block2.layer.0.bn2.running_mean
block2.layer.0.bn2.running_var block2.layer.0.bn2.weight block2.layer.0.conv1.weight
block2.layer.0.conv2.weight block2.layer.0.convShortcut.weight
block3.layer.0.bn1.bias block3.layer.0.bn1.running_mean block3.layer.0.bn1.running_var
block3.layer.0.bn1.weight block3.layer.0.bn2.bias block3.layer.0.bn2.running_mean
block3.layer.0.bn2.running_var block3.layer.0.bn2.weight block3.layer.0.conv1.weight
block3.layer.0.conv2.weight block3.layer.0.convShortcut.weight
bn1.bias bn1.running_mean bn1.running_var bn1.weight conv1.weight fc.bias fc.weight
"""
# Modules of the first layers, of the first block with a shortcut, and of the last layers.
MODULES = {
    "dm_wideresnet_28_10": (
        "init_conv layer.0.block.0.batchnorm_0 layer.0.block.0.conv_0 layer.0.block.0.batchnorm_1 "
        "layer.0.block.0.conv_1 layer.0.block.0.shortcut layer.2.block.3.conv_1 batchnorm logits"
    ),
    "resnet_18": (
        "conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer2.0.shortcut.0 "
        "layer2.0.shortcut.1 layer4.1.bn2 linear"
    ),
    "resnet_50": (
        "layer1.0.conv1 layer1.0.bn3 layer1.0.shortcut.0 layer1.0.shortcut.1 layer4.2.conv3 linear"
    ),
    "preactresnet_18": (
        "conv1 layer1.0.bn1 layer1.0.conv1 layer1.0.bn2 layer1.0.conv2 layer2.0.shortcut.0 linear"
    ),
    "preactresnet_18_v2": "conv1 layer2.0.shortcut.0 layer4.1.conv2 bn linear",
    "dm_preactresnet_18": (
        "conv_2d layer_0.0.batchnorm_0 layer_0.0.conv_2d_1 layer_0.0.batchnorm_1 "
        "layer_0.0.conv_2d_2 layer_1.0.shortcut layer_3.1.conv_2d_2 batchnorm logits"
    ),
    "mnist_cnn": "0 2 5 7",
}
SMALL = ("wideresnet_10_1", "dm_wideresnet_10_1", "resnet_18", "resnet_50", "mnist_cnn")
SMALL += ("preactresnet_18", "preactresnet_18_v2", "dm_preactresnet_18")


def random_images(shape):
    return jnp.asarray(np.random.default_rng(1).random((2, *shape), np.float32))


def train_jaxpr(model, image_shape):
    """Return the program of a forward pass in training on a device of the axis `devices`."""
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    return jax.make_jaxpr(
        lambda variables, images: model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        ),
        axis_env=[("devices", 2)],
    )(variable_shapes(model.clone(axis_name=None), image_shape), images)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_pytorch(name):
    model, shape = ARCHITECTURES[name]
    state_dict = random_state_dict(model, shape)
    variables = to_variables(state_dict, variable_shapes(model, shape))
    logits = jax.jit(model.apply)(variables, random_images(shape)[:1])
    np.testing.assert_allclose(logits[0], LOGITS[name], atol=2e-5)


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_number_of_parameters_is_the_published_one(name, expected):
    params = variable_shapes(make_model(name, 10), (32, 32, 3))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_keys_of_a_wide_resnet_are_the_published_ones():
    keys = state_dict_shapes(WideResNet(10, depth=10, width=1), (32, 32, 3))
    assert sorted(keys) == WIDERESNET_KEYS.split()
    assert WideResNet.unused_keys == ("sub_block1.",)


@pytest.mark.parametrize(("name", "modules"), MODULES.items())
def test_modules_have_the_published_names(name, modules):
    shape = MNIST if name == "mnist_cnn" else (32, 32, 3)
    keys = state_dict_shapes(make_model(name, 10), shape)
    found = {key.rpartition(".")[0] for key in keys}
    assert found >= set(modules.split())
    # Shortcuts and the last norm exist only where the published network has them.
    if name == "preactresnet_18":
        assert "bn" not in found
        assert not any(module.startswith("layer1.") and "shortcut" in module for module in found)


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 64, 3), (17, 9, 4)])
@pytest.mark.parametrize("name", SMALL)
def test_any_size_any_channels_and_100_classes(name, shape):
    channels = shape[-1]
    options = {"mean": [0.5] * channels, "std": [1] * channels} if name.startswith("dm") else {}
    model = make_model(name, 100, **options)
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 100)


def test_images_that_are_too_small_or_have_other_channels_are_refused_in_one_line():
    for name, shape, words in [
        ("mnist_cnn", (3, 28, 1), "4 x 4 pixels or more"),
        ("dm_wideresnet_28_10", (28, 28, 1), "1 channel: give both"),
    ]:
        images = jax.ShapeDtypeStruct((2, *shape), np.float32)
        with pytest.raises(UserError, match=words) as error:
            jax.eval_shape(make_model(name, 10).init, jax.random.key(0), images)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "mnist_cnn"])
def test_training_averages_the_statistics_of_every_norm_over_the_devices(name):
    model, shape = ARCHITECTURES[name]
    model = model.clone(axis_name="devices")
    statistics = variable_shapes(model.clone(axis_name=None), shape)["batch_stats"]
    num_norms = len(jax.tree.leaves(statistics)) // 2
    assert str(train_jaxpr(model, shape)).count("psum") == num_norms


@pytest.mark.parametrize(("options", "old"), [({}, 0.9), ({"momentum": 0.99}, 0.99)])
def test_batch_norm_has_the_momentum_and_epsilon_of_pytorch(options, old):
    inputs = jnp.asarray(np.random.default_rng(0).normal(0.1, 0.01, (2, 4, 4, 5)), jnp.float32)
    variables = batch_norm(False, None).init(jax.random.key(0), inputs)
    norm = batch_norm(True, None, **options)
    outputs, state = norm.apply(variables, inputs, mutable=["batch_stats"])
    mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
    np.testing.assert_allclose(state["batch_stats"]["mean"], (1 - old) * mean, atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], old + (1 - old) * variance, atol=1e-5)
    np.testing.assert_allclose(outputs, (inputs - mean) / (variance + 1e-5) ** 0.5, atol=2e-3)
    evaluated = batch_norm(False, None).apply(variables, inputs)
    np.testing.assert_allclose(evaluated, inputs / (1 + 1e-5) ** 0.5, atol=1e-6)


def test_dropout_acts_in_training_only():
    model, shape = WideResNet(3, depth=10, width=1, dropout=0.5), (8, 8, 3)
    images = random_images(shape)
    variables = to_variables(random_state_dict(model, shape), variable_shapes(model, shape))
    train = jax.jit(
        lambda variables, noise_key: model.apply(
            variables, images, train=True, mutable="batch_stats", rngs={"dropout": noise_key}
        )[0]
    )
    # XLA compiles the generator rbg many times faster than the default one.
    keys = [jax.random.key(seed, impl="rbg") for seed in (0, 0, 1)]
    first, again, other = (train(variables, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    jax.jit(model.apply)(variables, images)  # needs no key


def initial(name, *path):
    """Return one initial parameter; XLA compiles no other."""
    model, shape = ARCHITECTURES[name]

    def leaf(key):
        value = model.init(key, random_images(shape)[:1])["params"]
        for part in path:
            value = value[part]
        return value

    return np.asarray(jax.jit(leaf)(jax.random.key(0)))


def test_wide_resnets_start_he_normal_with_the_fan_out():
    kernel = initial("dm_wideresnet", "layer.2.block.0", "conv_0", "kernel")
    assert kernel.std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    assert not initial("wideresnet", "fc", "bias").any()


@pytest.mark.parametrize(
    ("name", "path", "fan_in"),
    [
        ("resnet_18", ("layer4.1", "conv2", "kernel"), 9 * 32),
        ("mnist_cnn", ("5", "kernel"), 1568),
        ("mnist_cnn", ("5", "bias"), 1568),
        ("wideresnet", ("fc", "kernel"), 64),
    ],
)
def test_other_layers_start_uniform_as_in_pytorch(name, path, fan_in):
    array, bound = initial(name, *path), fan_in**-0.5
    assert 0.9 * bound < abs(array).max() <= bound
    assert array.std() == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), None), (None, (0.5,)), ((0.5,) * 2, (0.5,) * 2)]
)
def test_normalisation_needs_a_mean_and_a_std_for_each_channel(mean, std):
    with pytest.raises(UserError, match="one number for each channel") as error:
        normalize(jnp.zeros((1, 2, 2, 3)), mean, std)
    assert "\n" not in str(error.value)


def test_options_of_a_published_architecture():
    model = make_model("dm_wideresnet_10_1", 10, activation="relu", padding=2, mean=[0], std=[1])
    assert (model.activation, model.padding, model.mean, model.std) == ("relu", 2, (0.0,), (1.0,))
    assert hash(model)  # static
    assert make_model("dm_wideresnet_10_1", 10).activation == "silu"
    assert make_model("wideresnet_10_1", 10, dropout=0.3).dropout == 0.3
    assert make_model("WideResNet-28-10", 10) == make_model("wideresnet_28_10", 10)
    assert make_model("PreActResNet-18", 10, **GREY).mean == (0.5,)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("wideresnet_13_10", {}, "Impossible depth.*6 n \\+ 4, such as wideresnet_28_10"),
        ("wideresnet_4_10", {}, "Impossible depth"),
        ("dm_wideresnet_27_10", {}, "such as dm_wideresnet_28_10"),
        ("wrn_28_10", {}, "wideresnet_28_10 or dm_wideresnet_28_10"),
        (
            "resnet_20",
            {},
            "Unknown model 'resnet_20': use net, .* or dm_wideresnet_<depth>",
        ),
        ("resnet_18", {"activation": "relu"}, "resnet_18 has no option activation"),
        ("dm_wideresnet_28_10", {"dropout": 0.3}, "has no option dropout"),
        ("wideresnet_28_10", {"padding": 2}, "has no option padding"),
        ("wrn_13_10", {"mean": (0.5,), "std": (0.5,)}, "wrn_13_10 has no option mean"),
        ("resnet_18", {"mean": (0.5,)}, "give both"),
        ("resnet_18", {"mean": (0.5,), "std": (0,)}, "Impossible std .0,.: use numbers above 0"),
        ("dm_wideresnet_28_10", {"padding": -1}, "Impossible padding -1"),
        ("wideresnet_28_10", {"defence": PNI()}, "takes no defence"),
    ],
)
def test_an_invalid_option_is_reported_in_one_line(name, options, words):
    with pytest.raises(UserError, match=words) as error:
        make_model(name, 10, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": 0.5, "std": 0.5}, r"Impossible mean 0\.5: use a finite number for each channel"),
        ({"mean": "abc", "std": (0.5,)}, "Impossible mean 'abc'"),
        ({"mean": "123", "std": (0.5,)}, "Impossible mean '123'"),
        ({"mean": (0.5, "a", 0.5), "std": (0.5,) * 3}, r"Impossible mean \(0\.5, 'a', 0\.5\)"),
        ({"mean": (0.5,), "std": ()}, r"Impossible std \(\)"),
        ({"mean": [0.5], "std": [float("nan")]}, r"Impossible std \[nan\]"),
        ({"padding": "x"}, "Impossible padding 'x': use 0 or more zeros"),
        ({"dropout": "x"}, r"Impossible dropout 'x': use a rate in \[0, 1\)"),
        ({"name": None}, "The name of a model is None"),
    ],
)
def test_an_option_of_a_wrong_type_is_reported_in_one_line(options, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=words) as error:
        make_model(**{"name": "dm_wideresnet_28_10", "num_classes": 10, **options})
    assert "\n" not in str(error.value)


def test_a_config_without_a_name_of_a_model_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match=r"^The name of a model is None: use a name such as net"):
        make_classifier(ConfigDict({"name": None}), 10)
