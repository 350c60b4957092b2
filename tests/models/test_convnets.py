import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.core.types import UserError
from jaxadv.models import make_model, ops
from jaxadv.models.ops import ACTIVATIONS

IMAGES = jnp.asarray(np.random.default_rng(1).random((2, 32, 32, 3), np.float32))


def _variables(model):
    # From numpy: initialisers take seconds to compile for each shape.
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.1, leaf.shape), jnp.float32), shapes
    )


def num_params(name):
    model = make_model(name, num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "expected"), [("net", 62_006), ("bignet", 263_406), ("biggernet", 516_018)]
)
def test_number_of_parameters_is_that_of_the_study(name, expected):
    assert num_params(name) == expected


@pytest.mark.parametrize(
    ("name", "activation", "num_gelu", "num_relu"),
    [
        ("net", None, 0, 4),
        ("bignet", None, 3, 2),
        ("biggernet", None, 6, 0),
        ("bignet", "gelu", 5, 0),
        ("bignet", "relu", 0, 5),
        ("wrn_7_1", None, 7, 0),
        ("wrn_7_1", "relu", 0, 7),
        ("vit_2_32", None, 4, 0),
        ("vit_2_32", "relu", 0, 4),
    ],
)
def test_activation_is_the_default_or_the_given_one(
    monkeypatch, name, activation, num_gelu, num_relu
):
    calls = []
    for key, function in list(ACTIVATIONS.items()):
        monkeypatch.setitem(
            ACTIVATIONS, key, lambda x, key=key, function=function: calls.append(key) or function(x)
        )
    # It applies the activation twice for a comparison; here each layer must count once.
    monkeypatch.setattr(
        ops,
        "_select_maximum",
        lambda windows, *_: windows.max(ops._window_axes(windows)),
    )
    model = make_model(name, num_classes=10, activation=activation)
    jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert (calls.count("gelu"), calls.count("relu")) == (num_gelu, num_relu)


def test_net_matches_a_reference_implementation():
    model = make_model("net", num_classes=10)
    variables = _variables(model)
    params = variables["params"]
    hidden = IMAGES
    for name in ("Conv_0", "Conv_1"):
        hidden = jax.lax.conv_general_dilated(
            hidden, params[name]["kernel"], (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        hidden = jax.lax.reduce_window(
            jax.nn.relu(hidden + params[name]["bias"]),
            -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID",
        )  # fmt: skip
    hidden = hidden.reshape(2, -1)
    for name in ("Dense_0", "Dense_1"):
        hidden = jax.nn.relu(hidden @ params[name]["kernel"] + params[name]["bias"])
    expected = hidden @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dropout", "expected"),
    [
        ("bignet", None, 0.0),
        ("bignet", 0.5, 0.5),
        ("biggernet", None, 0.3),
        ("biggernet", 0.0, 0.0),
    ],
)
def test_dropout_acts_on_the_first_pool_in_training_only(name, dropout, expected):
    model = make_model(name, num_classes=10, dropout=dropout)
    variables = _variables(model)

    def pooled(**options):
        _, state = model.apply(
            variables, IMAGES, capture_intermediates=True, mutable="intermediates", **options
        )
        return state["intermediates"]["Dropout_0"]["__call__"][0]

    # XLA compiles the generator rbg many times faster than the default one.
    noise = {"dropout": jax.random.key(2, impl="rbg")}
    kept, dropped_out = jax.jit(lambda: (pooled(), pooled(train=True, rngs=noise)))()
    assert kept.shape[1:3] == (14, 14)
    dropped = (dropped_out == 0) & (kept != 0)
    assert float(dropped.sum() / (kept != 0).sum()) == pytest.approx(expected, abs=0.03)
    np.testing.assert_allclose(
        jnp.where(dropped, 0, kept) / (1 - expected), dropped_out, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet", {}, ["'resnet'", "bignet", "wrn_<depth>_<width>", "vit_<depth>_<width>"]),
        ("wrn_13", {}, ["'wrn_13'"]),
        ("wrn_13_10_2", {}, ["'wrn_13_10_2'"]),
        ("wrn_0_10", {}, ["'wrn_0_10'"]),
        ("wrn_1_10", {}, ["'wrn_1_10'", "6 n + 1"]),
        ("wrn_28_10", {}, ["'wrn_28_10'", "6 n + 1"]),
        ("vit_3_100", {}, ["'vit_3_100'", "multiple of 32"]),
        ("net", {"activation": "tanh"}, ["'tanh'", "relu, gelu or silu"]),
        ("net", {"dropout": 1.0}, ["1.0", "[0, 1)"]),
        ("net", {"dropout": -0.1}, ["-0.1", "[0, 1)"]),
    ],
)
def test_an_invalid_option_is_reported_in_one_line(name, options, words):
    with pytest.raises(UserError) as error:
        make_model(name, num_classes=10, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words)
