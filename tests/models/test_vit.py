import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.models import make_model

IMAGES = jnp.asarray(np.random.default_rng(1).random((3, 16, 16, 3), np.float32))


def _variables(model):
    # From numpy: initialisers take seconds to compile for each shape.
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.1, leaf.shape), jnp.float32), shapes
    )


@pytest.mark.parametrize(("name", "expected"), [("vit_3_128", 680_202), ("vit_5_256", 4_267_018)])
def test_number_of_parameters(name, expected):
    model = make_model(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert params["positions"].shape == (64, int(name.split("_")[2]))


def test_logits_match_a_reference_implementation():
    model = make_model("vit_1_64", num_classes=10)
    variables = _variables(model)
    params = variables["params"]
    logits, captured = jax.jit(
        lambda v: model.apply(v, IMAGES, capture_intermediates=True, mutable="intermediates")
    )(variables)
    captured = captured["intermediates"]
    hidden = captured["Conv_1"]["__call__"][0]
    tokens = hidden.reshape(3, 16, 64) + params["positions"]

    def dense(layer, inputs):
        return inputs @ layer["kernel"] + layer["bias"]

    def norm(layer, inputs):
        centred = inputs - inputs.mean(-1, keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return normed * layer["scale"] + layer["bias"]

    block = params["Block_0"]
    query, keys, value = jnp.split(
        dense(block["Dense_0"], norm(block["LayerNorm_0"], tokens)), 3, axis=-1
    )
    heads = []
    for head in (slice(0, 32), slice(32, 64)):
        scores = query[..., head] @ keys[..., head].swapaxes(1, 2) / 32**0.5
        heads.append(jax.nn.softmax(scores, axis=-1) @ value[..., head])
    tokens += dense(block["Dense_1"], jnp.concatenate(heads, axis=-1))
    hidden = jax.nn.gelu(
        dense(block["Dense_2"], norm(block["LayerNorm_1"], tokens)), approximate=False
    )
    tokens += dense(block["Dense_3"], hidden)
    expected = dense(params["Dense_0"], norm(params["LayerNorm_0"], tokens).mean(1))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_dropout_is_off_by_default_and_acts_in_training_only():
    assert make_model("vit_1_32", num_classes=10).dropout == 0
    model = make_model("vit_1_32", num_classes=10, dropout=0.5)
    variables = _variables(model)
    train = jax.jit(
        lambda noise_key: model.apply(variables, IMAGES, train=True, rngs={"dropout": noise_key})
    )
    # XLA compiles the generator rbg many times faster than the default one.
    first, again, other = (train(jax.random.key(seed, impl="rbg")) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    assert jax.jit(model.apply)(variables, IMAGES).shape == (3, 10)  # needs no key
