"""The classifier as attacks see it: its noise, its training mode, and conversion of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv.core.images import check_images, to_float
from jaxadv.core.rng import stream
from jaxadv.core.types import UserError
from jaxadv.models import make_model
from jaxadv.models.classifier import make_logits_fn, make_training_logits_fn, without_noise
from jaxadv.models.defences import PNI, RSE, Dropout, InputNoise


class Noisy(nn.Module):
    """A model that returns a random number of each key collection as its logits."""

    @nn.compact
    def __call__(self, images, train=False):
        names = ("noise", "dropout", "weight_noise")
        samples = [jax.random.normal(self.make_rng(name)) for name in names]
        return jnp.broadcast_to(jnp.stack(samples), (len(images), 3))


def test_noise_depends_on_the_example_and_weight_noise_only_on_the_key():
    def sample(key, ids):
        images = jnp.zeros((len(ids), 2, 2, 1))
        return make_logits_fn(Noisy(), {}, ids)(key, images)

    key = stream(0, "score")
    ids = jnp.array([5, 2, 9])
    example, dropped, weight = sample(key, ids).T
    assert len({*example.tolist()}) == len({*dropped.tolist()}) == 3
    assert len({*weight.tolist()}) == 1
    np.testing.assert_array_equal(sample(key, ids[1:]), sample(key, ids)[1:])
    assert not (sample(stream(0, "score", 1), ids) == sample(key, ids)).any()


def test_without_noise_gives_the_plain_model():
    for defence in (PNI(), RSE(), InputNoise(), Dropout()):
        noisy = make_model("net", 10, defence=defence, dropout=0.3)
        images = to_float(jnp.zeros((2, 32, 32, 3), jnp.uint8) + 90)
        variables = jax.jit(noisy.init)(stream(0, "init"), images)
        plain = make_model("net", 10, dropout=0.3)
        ids = jnp.arange(2)
        off_fn = make_logits_fn(without_noise(noisy), variables, ids)
        on_fn = make_logits_fn(noisy, variables, ids)
        off, on = (jax.jit(fn)(stream(0, "score"), images) for fn in (off_fn, on_fn))
        np.testing.assert_allclose(off, jax.jit(plain.apply)(variables, images), atol=1e-6)
        assert np.abs(on - off).max() > 1e-3


class Normed(nn.Module):
    """Batch norm and dropout, which differ in training."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(images)
        return nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))


def test_training_mode_uses_batch_statistics_and_dropout():
    images = jnp.linspace(0, 1, 8 * 2 * 2 * 3).reshape(8, 2, 2, 3)
    model = Normed(axis_name="devices")
    variables = Normed().init(jax.random.key(0), images)
    logits_fn = make_training_logits_fn(model, variables, jnp.arange(8))
    found = logits_fn(stream(0, "score"), images)
    dropped = found == 0
    assert 0.2 < dropped.mean() < 0.8
    assert (logits_fn(stream(0, "score", 1), images) == 0).tolist() != dropped.tolist()
    normed = (images - images.mean((0, 1, 2))) / jnp.sqrt(images.var((0, 1, 2)) + 1e-5)
    expected = jnp.where(dropped, 0, 2 * normed.mean((1, 2)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


BYTES = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)


def test_uint8_images_are_divided_by_255():
    np.testing.assert_array_equal(to_float(jnp.asarray(BYTES)), jnp.asarray(BYTES, "float32") / 255)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("convert", [to_float, jax.jit(to_float)], ids=["host", "compiled"])
def test_float_images_keep_their_values(dtype, convert):
    images = jnp.asarray(BYTES / 255, dtype)
    np.testing.assert_array_equal(convert(images), images.astype("float32"))
    assert convert(images).dtype == jnp.float32


@pytest.mark.parametrize("convert", [to_float, jax.jit(to_float)], ids=["host", "compiled"])
def test_rounding_errors_are_clipped(convert):
    images = jnp.asarray([-3e-8, 0.5, 1.0000001]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(convert(images).ravel(), [0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES.astype(np.float32), "float32 with values from 0 to 255: use floats from 0 to 1"),
        (BYTES / 127.5 - 1, "with values from -1 to 1: "),
        (np.full((1, 2, 2, 1), np.nan), "1 of 1 images contain NaN, the first is number 0: "),
        (BYTES.astype(np.int32), "the images are int32: use uint8 from 0 to 255"),
        (BYTES > 100, "the images are bool: "),
        (BYTES[..., 0], r"shape \(4, 8, 8\): .* one channel for grayscale images"),
    ],
)
def test_invalid_images_are_refused_in_one_line(images, message):
    for refuse in (check_images, lambda images: to_float(jnp.asarray(images))):
        with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
            refuse(images)


def test_compiled_functions_refuse_other_dtypes():
    with pytest.raises(UserError, match="the images are int32"):
        jax.jit(to_float)(jnp.asarray(BYTES, "int32"))


def test_dropout_masks_differ_between_devices():
    images = jnp.full((4, 2, 2, 3), 0.5)
    variables = Normed().init(jax.random.key(0), images)

    def share(first):
        ids = first + 2 * jnp.arange(4)  # as on two devices
        return make_training_logits_fn(Normed(), variables, ids)

    noisy = images + jnp.linspace(0, 0.4, 4)[:, None, None, None]
    one, other = (share(first)(stream(0, "score"), noisy) == 0 for first in (0, 1))
    assert one.tolist() != other.tolist()
