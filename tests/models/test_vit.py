import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.models import make_model

IMAGES = jax.random.uniform(jax.random.key(1), (3, 16, 16, 3))


def _init(name="vit_2_64", **options):
    model = make_model(name, num_classes=10, **options)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES)


@pytest.mark.parametrize(("name", "expected"), [("vit_3_128", 680_202), ("vit_5_256", 4_267_018)])
def test_number_of_parameters(name, expected):
    model = make_model(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert params["positions"].shape == (64, int(name.split("_")[2]))


def test_a_block_is_that_of_the_paper():
    model, variables = _init("vit_1_64")
    params = variables["params"]
    _, captured = jax.jit(
        lambda v: model.apply(v, IMAGES, capture_intermediates=True, mutable="intermediates")
    )(variables)
    captured = captured["intermediates"]
    hidden = jax.nn.gelu(captured["Conv_1"]["__call__"][0], approximate=False)
    hidden = jax.lax.reduce_window(
        hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    tokens = hidden.reshape(3, 16, 64) + params["positions"]

    def dense(layer, inputs):
        return inputs @ layer["kernel"] + layer["bias"]

    def norm(inputs):
        centred = inputs - inputs.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

    block = params["Block_0"]
    query, key, value = jnp.split(dense(block["Dense_0"], norm(tokens)), 3, axis=-1)
    heads = []
    for head in (slice(0, 32), slice(32, 64)):
        scores = query[..., head] @ key[..., head].swapaxes(1, 2) / 32**0.5
        heads.append(jax.nn.softmax(scores, axis=-1) @ value[..., head])
    tokens += dense(block["Dense_1"], jnp.concatenate(heads, axis=-1))
    hidden = jax.nn.gelu(dense(block["Dense_2"], norm(tokens)), approximate=False)
    tokens += dense(block["Dense_3"], hidden)
    np.testing.assert_allclose(captured["Block_0"]["__call__"][0], tokens, atol=1e-4)


def test_positions_matter_and_attention_mixes_all_tokens():
    model, variables = _init()

    @jax.jit
    def input_gradient(images):
        return jax.grad(lambda images: model.apply(variables, images)[0, 0])(images)

    gradient = input_gradient(IMAGES)
    assert bool((gradient[0] != 0).all())
    assert bool((gradient[1:] == 0).all())

    apply = jax.jit(model.apply)
    nowhere = {**variables["params"], "positions": 0 * variables["params"]["positions"]}
    assert not np.allclose(apply(variables, IMAGES), apply({"params": nowhere}, IMAGES), atol=1e-4)


def test_dropout_is_off_by_itself_and_acts_in_training_only():
    assert make_model("vit_2_64", num_classes=10).dropout == 0
    model, variables = _init(dropout=0.5)
    train = jax.jit(lambda key: model.apply(variables, IMAGES, train=True, rngs={"dropout": key}))
    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    assert jax.jit(model.apply)(variables, IMAGES).shape == (3, 10)  # needs no key
