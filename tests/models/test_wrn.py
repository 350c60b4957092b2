import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.models import make_model

IMAGES = jnp.asarray(np.random.default_rng(1).random((4, 8, 8, 3), np.float32))
SMALL = "wrn_7_1"


def _variables(model):
    # From numpy: initialisers take seconds to compile for each shape.
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return {
        "params": jax.tree.map(
            lambda leaf: jnp.asarray(generator.normal(0, 0.1, leaf.shape), jnp.float32),
            shapes["params"],
        ),
        "batch_stats": jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes["batch_stats"]),
    }


def test_number_of_parameters_is_that_of_the_study():
    model = make_model("wrn_13_10", num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 17_122_250
    assert sorted(name for name in params if name.startswith("Block")) == [
        f"Block_{index}" for index in range(6)
    ]


def test_shapes_strides_and_shortcuts():
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
    # The second convolution of the first block is strided.
    assert shapes == [
        [(8, 8, 16), (8, 8, 16)],
        [(8, 8, 16), (8, 8, 16)],
        [(8, 8, 32), (4, 4, 32)],
        [(4, 4, 32), (4, 4, 32)],
        [(4, 4, 64), (2, 2, 64)],
        [(2, 2, 64), (2, 2, 64)],
    ]
    # With width 1 the first stage keeps the shape, so its shortcuts are the identity.
    assert ["Conv_2" in block for block in blocks] == [False, False, True, False, True, False]


def test_a_block_without_its_last_convolution_is_its_shortcut():
    model = make_model(SMALL, num_classes=10)
    variables = _variables(model)
    params = variables["params"]
    for index in range(3):
        silent = jax.tree.map(jnp.zeros_like, params[f"Block_{index}"]["Conv_1"])
        params = {**params, f"Block_{index}": {**params[f"Block_{index}"], "Conv_1": silent}}

    def convolve(images, layer, strides):
        outputs = jax.lax.conv_general_dilated(
            images, layer["kernel"], (strides, strides), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return outputs + layer["bias"]

    @jax.jit
    def expected():
        hidden = convolve(IMAGES, params["Conv_0"], 1)
        for index in (1, 2):  # the shortcuts of the first stage are the identity
            hidden = convolve(hidden, params[f"Block_{index}"]["Conv_2"], 2)
        norm, dense = params["BatchNorm_0"], params["Dense_0"]
        hidden = (hidden - 1) / (1 + 1e-5) ** 0.5 * norm["scale"] + norm["bias"]
        hidden = jax.nn.gelu(hidden, approximate=False).mean((1, 2))
        return hidden @ dense["kernel"] + dense["bias"]

    actual = jax.jit(model.apply)({**variables, "params": params}, IMAGES)
    np.testing.assert_allclose(actual, expected(), rtol=1e-4, atol=1e-4)


def test_training_updates_the_running_averages():
    model = make_model(SMALL, num_classes=10, dropout=0.0)
    _, state = jax.jit(
        lambda variables: model.apply(
            variables, IMAGES, train=True, mutable=True, capture_intermediates=True
        )
    )(_variables(model))
    first = state["intermediates"]["Conv_0"]["__call__"][0]
    averages = state["batch_stats"]["Block_0"]["BatchNorm_0"]
    np.testing.assert_allclose(averages["mean"], 0.9 + 0.1 * first.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(averages["var"], 0.9 + 0.1 * first.var((0, 1, 2)), atol=1e-5)


def test_an_image_does_not_depend_on_its_batch_in_evaluation():
    model = make_model(SMALL, num_classes=10)
    apply = jax.jit(model.apply)
    variables = _variables(model)
    others = jnp.concatenate([IMAGES[:1], 1 - IMAGES[1:]])
    logits = apply(variables, IMAGES)
    np.testing.assert_allclose(apply(variables, others)[0], logits[0], atol=1e-6)
    moved = jax.tree.map(lambda leaf: 2 * leaf, variables["batch_stats"])
    assert not np.allclose(apply({**variables, "batch_stats": moved}, IMAGES), logits, atol=1e-4)


def test_batch_statistics_are_averaged_over_devices():
    alone = make_model(SMALL, num_classes=10, dropout=0.0)
    variables = _variables(alone)
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
    model = make_model(SMALL, num_classes=10)
    variables = _variables(model)
    assert model.dropout == 0.3
    train = jax.jit(
        lambda noise_key: model.apply(
            variables, IMAGES, train=True, mutable="batch_stats", rngs={"dropout": noise_key}
        )[0]
    )
    # XLA compiles the generator rbg many times faster than the default one.
    first, again, other = (train(jax.random.key(seed, impl="rbg")) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    jax.jit(model.apply)(variables, IMAGES)  # needs no key
