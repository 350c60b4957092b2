"""One small network with batch norm and dropout, in NumPy and Flax."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

SHAPE = (6, 6, 3)
NUM_CLASSES = 5
NUM_PARAMETERS = 3 * 3 * 3 * 4 + 4 + 4 + 4 + 64 * 5 + 5
KEY = jax.random.key(0)

_generator = np.random.default_rng(0)


def _normal(*shape):
    return _generator.normal(size=shape).astype(np.float32)


KERNEL, BIAS = _normal(3, 3, 3, 4), _normal(4)
SCALE, OFFSET, MEAN = _normal(4), _normal(4), _normal(4)
VARIANCE = _generator.uniform(1, 2, 4).astype(np.float32)
DENSE, DENSE_BIAS = _normal(64, NUM_CLASSES) / 8, _normal(NUM_CLASSES)
IMAGES = jnp.asarray(_generator.uniform(size=(8, *SHAPE)).astype(np.float32))
LABELS = jnp.asarray(_generator.integers(NUM_CLASSES, size=8, dtype=np.int32))

# For frameworks with the channels first, in which a flat image has another order.
KERNEL_OIHW = np.ascontiguousarray(KERNEL.transpose(3, 2, 0, 1))
DENSE_CHW = np.ascontiguousarray(
    DENSE.reshape(4, 4, 4, NUM_CLASSES).transpose(3, 2, 0, 1).reshape(NUM_CLASSES, 64)
)


def expected_logits(images):
    """The network in evaluation mode, in NumPy."""
    images = np.asarray(images, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
    x = np.einsum("nhwcij,ijco->nhwo", windows, KERNEL) + BIAS
    x = (x - MEAN) / np.sqrt(VARIANCE + 1e-5) * SCALE + OFFSET
    return np.maximum(x, 0).reshape(len(x), -1) @ DENSE + DENSE_BIAS


def assert_logits(classifier, images, expected):
    np.testing.assert_allclose(classifier(KEY, jnp.asarray(images)), expected, atol=1e-4)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, train: bool):
        x = nn.Conv(4, (3, 3), padding="VALID")(images)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(NUM_CLASSES)(x.reshape(len(x), -1))


VARIABLES = {
    "params": {
        "Conv_0": {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(BIAS)},
        "BatchNorm_0": {"scale": jnp.asarray(SCALE), "bias": jnp.asarray(OFFSET)},
        "Dense_0": {"kernel": jnp.asarray(DENSE), "bias": jnp.asarray(DENSE_BIAS)},
    },
    "batch_stats": {"BatchNorm_0": {"mean": jnp.asarray(MEAN), "var": jnp.asarray(VARIANCE)}},
}


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(4, epsilon=1e-5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(64, NUM_CLASSES, rngs=rngs)
        self.conv.kernel[...], self.conv.bias[...] = KERNEL, BIAS
        self.norm.scale[...], self.norm.bias[...] = SCALE, OFFSET
        self.norm.mean[...], self.norm.var[...] = MEAN, VARIANCE
        self.dense.kernel[...], self.dense.bias[...] = DENSE, DENSE_BIAS

    def __call__(self, images):
        x = self.dropout(nnx.relu(self.norm(self.conv(images))))
        return self.dense(x.reshape(len(x), -1))
