"""DeepMind's wide residual network in Haiku, whose weights become a state dict."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import state_dict_shapes, variable_shapes

from jaxadv.core.types import UserError
from jaxadv.models.dm_wide_resnet import DMWideResNet
from jaxadv.models.haiku_names import to_state_dict
from jaxadv.models.state_dicts import to_variables

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
DEPTH, WIDTH, NUM_CLASSES = 16, 2, 3
IMAGES = jnp.asarray(np.random.default_rng(1).random((2, 8, 8, 3), np.float32))


@pytest.fixture(scope="module")
def haiku_network():
    """Return the network with SiLU as a transformed function, with its modules' published names."""
    hk = pytest.importorskip("haiku")

    def conv(features, size, stride, name):
        return hk.Conv2D(features, size, stride=stride, with_bias=False, name=name)

    def norm(name):
        return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.99, name=name)

    class Block(hk.Module):
        def __init__(self, features, stride, has_shortcut, name):
            super().__init__(name=name)
            self.norms = [norm(f"batchnorm_{index}") for index in range(2)]
            self.convs = [
                conv(features, 3, stride, name="conv_0"), conv(features, 3, 1, name="conv_1")
            ]  # fmt: skip
            self.shortcut = conv(features, 1, stride, name="shortcut") if has_shortcut else None

        def __call__(self, inputs, is_training):
            activated = jax.nn.swish(self.norms[0](inputs, is_training))
            hidden = self.convs[0](activated)
            hidden = self.convs[1](jax.nn.swish(self.norms[1](hidden, is_training)))
            return hidden + (self.shortcut(activated) if self.shortcut else inputs)

    class WideResNet(hk.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(16, 3, 1, name="init_conv"), norm("batchnorm")
            self.dense = hk.Linear(NUM_CLASSES, name="logits")
            self.blocks = [
                Block(
                    16 * 2**stage * WIDTH,
                    2 if stage and not index else 1,
                    index == 0,
                    name=f"resnet_lay_{stage}_block_{index}",
                )
                for stage in range(3)
                for index in range((DEPTH - 4) // 6)
            ]

        def __call__(self, images, is_training):
            hidden = self.conv(images)
            for block in self.blocks:
                hidden = block(hidden, is_training)
            hidden = jax.nn.swish(self.norm(hidden, is_training))
            return self.dense(hidden.mean((1, 2)))

    return hk.transform_with_state(
        lambda images, is_training: WideResNet()(
            (images - np.array(MEAN)) / np.array(STD), is_training
        )
    )


def randomised(tree, seed):
    """Return random arrays of the shapes in a tree, positive as variances and scales are."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.uniform(0.05, 0.3, leaf.shape).astype(np.float32), tree
    )


def test_logits_are_those_of_the_haiku_network(haiku_network):
    params, state = randomised(
        jax.eval_shape(lambda: haiku_network.init(jax.random.key(0), IMAGES, is_training=True)),
        seed=0,
    )
    model = DMWideResNet(NUM_CLASSES, DEPTH, WIDTH, mean=MEAN, std=STD)
    state_dict = to_state_dict(params, state)
    assert {k: v.shape for k, v in state_dict.items()} == state_dict_shapes(model, (8, 8, 3))
    variables = to_variables(state_dict, variable_shapes(model, (8, 8, 3)))
    expected, _ = jax.jit(
        lambda images: haiku_network.apply(params, state, None, images, is_training=False)
    )(IMAGES)
    logits = jax.jit(model.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    ("params", "state", "words"),
    [
        ({"linear": {"w": np.zeros((2, 3))}}, {}, "'linear' is not a module"),
        ({"net/~/logits": {"gain": np.zeros(3)}}, {}, "'net/~/logits' has 'gain'"),
        ({}, {"net/~/norm/~/ema": {"average": np.zeros(3)}}, "'net/~/norm/~/ema' has 'ema'"),
        ({}, {"norm": {"average": np.zeros(3)}}, "'' is not a module"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(params, state, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        to_state_dict(params, state)
    assert "\n" not in str(error.value)
