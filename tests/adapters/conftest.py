"""The network of `small_cnn`, with the same weights, in each framework."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from small_cnn import (
    BIAS,
    DENSE,
    DENSE_BIAS,
    DENSE_CHW,
    IMAGES,
    KERNEL,
    KERNEL_OIHW,
    KEY,
    MEAN,
    NUM_CLASSES,
    OFFSET,
    SCALE,
    SHAPE,
    VARIANCE,
    Nnx,
)


@pytest.fixture
def nnx_model():
    model = Nnx()
    model.eval()
    return model


class EquinoxModel(NamedTuple):
    train: object  # in training mode
    model: object
    state: object


@pytest.fixture
def equinox_model():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        dense: eqx.nn.Linear

        def __init__(self):
            self.conv = eqx.nn.Conv2d(3, 4, 3, key=KEY)
            self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema")
            self.dropout = eqx.nn.Dropout()
            self.dense = eqx.nn.Linear(64, NUM_CLASSES, key=KEY)

        def __call__(self, image, state, key):
            x, state = self.norm(self.conv(image), state)
            x = self.dropout(jax.nn.relu(x), key=key)
            return self.dense(x.ravel()), state

    model, state = eqx.nn.make_with_state(Net)()
    values = KERNEL_OIHW, BIAS[:, None, None], SCALE, OFFSET, DENSE_CHW, DENSE_BIAS
    model = eqx.tree_at(
        lambda m: (
            *(m.conv.weight, m.conv.bias, m.norm.weight, m.norm.bias),
            *(m.dense.weight, m.dense.bias),
        ),
        model,
        tuple(map(jnp.asarray, values)),
    )
    state = state.set(model.norm.ema_first_time_index, jnp.asarray(False))
    state = state.set(model.norm.ema_state_index, (jnp.asarray(MEAN), jnp.asarray(VARIANCE)))
    return EquinoxModel(model, eqx.nn.inference_mode(model), state)


@pytest.fixture
def haiku_model():
    """A transformed function, its params and its state."""
    hk = pytest.importorskip("haiku")

    def net(images, is_training):
        x = hk.Conv2D(4, 3, padding="VALID")(images)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(NUM_CLASSES)(hk.Flatten()(x))

    model = hk.transform_with_state(net)
    params, state = model.init(KEY, IMAGES, is_training=True)
    row = (1, 1, 1, 4)
    params = {
        "conv2_d": {"w": KERNEL, "b": BIAS},
        "batch_norm": {"scale": SCALE.reshape(row), "offset": OFFSET.reshape(row)},
        "linear": {"w": DENSE, "b": DENSE_BIAS},
    }
    for name, value in (("mean", MEAN), ("var", VARIANCE)):
        state[f"batch_norm/~/{name}_ema"]["average"] = value.reshape(row)
    return model, jax.tree.map(jnp.asarray, params), state


@pytest.fixture(scope="session")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    return pytest.importorskip("keras")


@pytest.fixture
def keras_model(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(epsilon=1e-5),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(NUM_CLASSES),
        ]
    )
    model.set_weights([KERNEL, BIAS, SCALE, OFFSET, MEAN, VARIANCE, DENSE, DENSE_BIAS])
    return model


@pytest.fixture
def torch_model():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(64, NUM_CLASSES),
    )
    arrays = {
        **{"0.weight": KERNEL_OIHW, "0.bias": BIAS, "1.weight": SCALE, "1.bias": OFFSET},
        **{"1.running_mean": MEAN, "1.running_var": VARIANCE},
        **{"5.weight": DENSE_CHW, "5.bias": DENSE_BIAS},
    }
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    model.load_state_dict({**state, "1.num_batches_tracked": torch.tensor(1)})
    return model.eval()
