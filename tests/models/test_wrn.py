import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.models import make_model

IMAGES = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
SMALL = "wrn_7_1"


def _init(name, **options):
    model = make_model(name, num_classes=10, **options)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES)


def test_number_of_parameters_is_the_studys():
    model = make_model("wrn_13_10", num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 17_122_250
    assert sorted(name for name in params if name.startswith("Block")) == [
        f"Block_{index}" for index in range(6)
    ]


def test_shapes_and_placing_of_strides_and_shortcuts():
    model = make_model("wrn_13_1", num_classes=7)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)

    def apply(variables, images):
        return model.apply(variables, images, capture_intermediates=True, mutable="intermediates")

    logits, state = jax.eval_shape(apply, variables, IMAGES)
    assert logits.shape == (4, 7)
    blocks = [state["intermediates"][f"Block_{index}"] for index in range(6)]
    shapes = [
        [block[f"Conv_{index}"]["__call__"][0].shape[1:] for index in range(2)] for block in blocks
    ]
    # The second convolution of the first block carries the stride.
    assert shapes == [
        [(16, 16, 16), (16, 16, 16)],
        [(16, 16, 16), (16, 16, 16)],
        [(16, 16, 32), (8, 8, 32)],
        [(8, 8, 32), (8, 8, 32)],
        [(8, 8, 64), (4, 4, 64)],
        [(4, 4, 64), (4, 4, 64)],
    ]
    # Width 1 leaves the shape as it is in the first stage: there the shortcut is the identity.
    assert ["Conv_2" in block for block in blocks] == [False, False, True, False, True, False]


def test_a_block_without_its_last_convolution_is_its_shortcut():
    model, variables = _init(SMALL)
    params = variables["params"]
    for index in range(3):
        silent = jax.tree.map(jnp.zeros_like, params[f"Block_{index}"]["Conv_1"])
        params = {**params, f"Block_{index}": {**params[f"Block_{index}"], "Conv_1": silent}}

    def convolve(images, layer, strides):
        kernel, bias = layer["kernel"], layer["bias"]
        outputs = jax.lax.conv_general_dilated(
            images, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return outputs + bias

    hidden = convolve(IMAGES, params["Conv_0"], 1)
    for index in (1, 2):
        hidden = convolve(hidden, params[f"Block_{index}"]["Conv_2"], 2)
    hidden = jax.nn.gelu(hidden / (1 + 1e-5) ** 0.5, approximate=False).mean((1, 2))
    expected = hidden @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    actual = jax.jit(model.apply)({**variables, "params": params}, IMAGES)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_training_moves_the_running_statistics_and_evaluation_uses_them():
    model, variables = _init(SMALL, dropout=0.0)
    train = jax.jit(lambda v: model.apply(v, IMAGES, train=True, mutable="batch_stats"))
    _, state = train(variables)
    _, captured = jax.jit(
        lambda v: model.apply(v, IMAGES, capture_intermediates=True, mutable="intermediates")
    )(variables)
    first = captured["intermediates"]["Conv_0"]["__call__"][0]
    running = state["batch_stats"]["Block_0"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(running, 0.1 * first.mean((0, 1, 2)), atol=1e-5)

    evaluate = jax.jit(model.apply)
    whole = evaluate({**variables, **state}, IMAGES)
    np.testing.assert_allclose(whole[:1], evaluate({**variables, **state}, IMAGES[:1]), atol=1e-4)
    assert not np.allclose(whole, evaluate(variables, IMAGES), atol=1e-3)


def test_batch_statistics_are_those_of_all_devices_together():
    alone, variables = _init(SMALL, dropout=0.0)
    together = make_model(SMALL, num_classes=10, dropout=0.0, axis_name="device")

    def train(model, images):
        return model.apply(variables, images, train=True, mutable="batch_stats")

    logits, state = jax.jit(lambda images: train(alone, images))(IMAGES)
    split_logits, split_state = jax.jit(
        jax.vmap(lambda images: train(together, images), axis_name="device")
    )(IMAGES.reshape(2, 2, *IMAGES.shape[1:]))
    np.testing.assert_allclose(split_logits.reshape(4, 10), logits, atol=1e-4)
    for split, whole in zip(jax.tree.leaves(split_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(split, jnp.stack([whole, whole]), atol=1e-5)


def test_dropout_acts_in_training_only():
    model, variables = _init(SMALL)
    assert model.dropout == 0.3
    train = jax.jit(
        lambda key: model.apply(
            variables, IMAGES, train=True, mutable="batch_stats", rngs={"dropout": key}
        )[0]
    )
    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    jax.jit(model.apply)(variables, IMAGES)  # needs no key


def test_input_gradient_is_the_slope():
    model, variables = _init(SMALL)
    direction = jax.random.normal(jax.random.key(2), IMAGES.shape)
    logit = jax.jit(lambda images: model.apply(variables, images)[:, 0].sum())
    slope = (logit(IMAGES + 1e-2 * direction) - logit(IMAGES - 1e-2 * direction)) / 2e-2
    gradient = jax.jit(jax.grad(logit))(IMAGES)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-2)
