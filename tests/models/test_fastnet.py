from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.core.types import UserError
from jaxadv.models import make_model
from jaxadv.models.defences import PNI

IMAGES = jnp.asarray(np.random.default_rng(1).random((2, 32, 32, 3), np.float32))


def _variables(model):
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(generator.normal(0.1, 0.1, leaf.shape)), jnp.float32),
        shapes,
    )


def _num_params(name):
    shapes = jax.eval_shape(make_model(name, 10).init, jax.random.key(0), IMAGES)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(("name", "num_params"), [("fastnet", 217_402), ("smallnet", 230_170)])
def test_it_has_fewer_parameters_than_bignet(name, num_params):
    assert _num_params(name) == num_params
    assert _num_params(name) < _num_params("bignet")


@pytest.mark.parametrize(
    ("name", "activation", "reference"),
    [
        ("fastnet", None, jax.nn.gelu),
        ("fastnet", "relu", jax.nn.relu),
        ("smallnet", None, jax.nn.gelu),
    ],
)
def test_it_matches_a_reference_implementation(name, activation, reference):
    def convolve(inputs, name, padding):
        return jax.lax.conv_general_dilated(
            inputs, params[name]["kernel"], (1, 1), padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def normalise(inputs, index):
        scale, statistics = params[f"BatchNorm_{index}"], batch_stats[f"BatchNorm_{index}"]
        centred = inputs - statistics["mean"]
        return centred / jnp.sqrt(statistics["var"] + 1e-5) * scale["scale"] + scale["bias"]

    def activate(inputs):
        return reference(inputs, approximate=False) if activation is None else reference(inputs)

    is_small = name == "smallnet"
    model = make_model(name, 10, activation=activation)
    variables = _variables(model)
    params, batch_stats = variables["params"], variables["batch_stats"]
    hidden = IMAGES - 0.5
    for index in range(2):
        hidden = (
            convolve(hidden, f"Conv_{index}", "SAME" if is_small else "VALID")
            + params[f"Conv_{index}"]["bias"]
        )
        pixels = activate(hidden).reshape(2, *_halved(hidden), hidden.shape[-1])
        hidden = normalise(pixels.max((2, 4)), index)
    for index in (2, 3, 4, 5) if is_small else (2, 3):
        hidden += normalise(convolve(activate(hidden), f"Conv_{index}", "SAME"), index)
    if is_small:
        pixels = activate(hidden)
        pixels = pixels.reshape(2, *_halved(pixels), pixels.shape[-1])
        hidden = pixels.mean((2, 4))
    norm = 6 if is_small else 4
    hidden = normalise(hidden.reshape(2, -1) @ params["Dense_0"]["kernel"], norm)
    expected = activate(hidden) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(model.apply(variables, IMAGES), expected, rtol=1e-4, atol=1e-3)


def _halved(images):
    return images.shape[1] // 2, 2, images.shape[2] // 2, 2


def test_the_statistics_of_a_training_batch_are_those_of_all_devices():
    def train(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    variables = _variables(make_model("fastnet", 10))
    images = jnp.concatenate([IMAGES, IMAGES[::-1] / 2])
    expected, expected_state = train(make_model("fastnet", 10), images)
    model = make_model("fastnet", 10, axis_name="halves")
    on_two = jax.vmap(partial(train, model), axis_name="halves")
    logits, state = on_two(images.reshape(2, 2, *IMAGES.shape[1:]))
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, rtol=1e-3, atol=1e-3)
    jax.tree.map(
        lambda found, leaf: np.testing.assert_allclose(found[0], leaf, rtol=1e-4, atol=1e-5),
        state,
        expected_state,
    )


def test_a_defence_is_refused():
    with pytest.raises(UserError, match="fastnet takes no defence: leave it out, or use net"):
        make_model("fastnet", 10, defence=PNI())
