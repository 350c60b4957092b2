"""The classifier as attacks see it: what its noise follows from, and what is left without it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxadv.classifier import (
    make_logits_fn,
    make_training_logits_fn,
    to_float,
    without_noise,
)
from jaxadv.models import make_model
from jaxadv.models.defences import PNI, RSE, Dropout, InputNoise
from jaxadv.prng import stream


class Noisy(nn.Module):
    """One draw from each collection as the logits: of the example, of dropout, of the weights."""

    @nn.compact
    def __call__(self, images, train=False):
        names = ("noise", "dropout", "weight_noise")
        draws = [jax.random.normal(self.make_rng(name)) for name in names]
        return jnp.broadcast_to(jnp.stack(draws), (len(images), 3))


def test_noise_follows_the_example_and_noise_of_weights_the_key_alone():
    def draws(key, ids):
        images = jnp.zeros((len(ids), 2, 2, 1))
        return make_logits_fn(Noisy(), {}, ids)(key, images)

    key = stream(0, "score")
    ids = jnp.array([5, 2, 9])
    example, dropped, weight = draws(key, ids).T
    assert len({*example.tolist()}) == len({*dropped.tolist()}) == 3
    assert len({*weight.tolist()}) == 1
    np.testing.assert_array_equal(draws(key, ids[1:]), draws(key, ids)[1:])
    assert not (draws(stream(0, "score", 1), ids) == draws(key, ids)).any()


def test_noise_off_is_the_plain_model():
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
    """Batch norm and dropout: what training changes."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(images)
        return nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))


def test_a_model_as_in_training_has_statistics_of_its_batch_and_drops_out():
    images = jnp.linspace(0, 1, 8 * 2 * 2 * 3).reshape(8, 2, 2, 3)
    model = Normed(axis_name="devices")
    variables = Normed().init(jax.random.key(0), images)
    logits_fn = make_training_logits_fn(model, variables)
    found = logits_fn(stream(0, "score"), images)
    dropped = found == 0
    assert 0.2 < dropped.mean() < 0.8
    assert (logits_fn(stream(0, "score", 1), images) == 0).tolist() != dropped.tolist()
    normed = (images - images.mean((0, 1, 2))) / jnp.sqrt(images.var((0, 1, 2)) + 1e-5)
    expected = jnp.where(dropped, 0, 2 * normed.mean((1, 2)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
