"""Certified accuracy over a split, on a linear model with known radii."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linear_classifier import Linear, make_problem
from ml_collections import ConfigDict

from jaxadv.core.types import UserError
from jaxadv.evaluation.smoothing import certify_split
from jaxadv.models.defences import RSE, InputNoise

SIGMA = 0.1
CERTIFICATION = ConfigDict(
    {
        "num_examples": 30,
        "num_selection": 50,
        "num_estimation": 1250,
        "failure": 0.001,
        "radii": (0.0, 0.05, 0.1),
    }
)


class Noisy(nn.Module):
    defence: InputNoise | RSE | None = InputNoise(sigma=SIGMA)
    nonfinite: bool = False  # NaN logits in about half of its forward passes

    @nn.compact
    def __call__(self, images, train=False):
        noise = jax.random.normal(self.make_rng("noise"), images.shape)
        logits = Linear(name="linear")(images + SIGMA * noise)
        return jnp.where(noise[0, 0, 0, 0] > 0, jnp.nan, logits) if self.nonfinite else logits


@pytest.fixture(scope="module")
def certified():
    return certify_noisy(batch_size=16)


def certify_noisy(batch_size, model=None, as_dtype=np.asarray):
    weights, split, _ = make_problem()
    split = split._replace(images=as_dtype(split.images))
    nested = {"params": {"linear": weights["params"]}}
    return certify_split(
        model or Noisy(), nested, split, CERTIFICATION, batch_size, seed=0, progress=False
    )


def test_certified_accuracy_is_below_that_of_the_known_radii(certified):
    weights, _, margins = make_problem()
    distances = (margins / np.linalg.norm(weights["params"]["w"]))[:30]
    results, certificate = certified
    assert [entry.radius for entry in results.radii] == [0.0, 0.05, 0.1]
    for entry in results.radii:
        known = (distances > entry.radius).mean()
        assert known - 0.15 <= entry.accuracy <= known
        assert entry.n == 30
    assert results.sigma == SIGMA
    assert results.abstained == (certificate.predictions == -1).sum()
    assert (certificate.radii <= np.abs(distances) + 1e-6).all()
    assert certificate.radii.max() > 0.15
    assert results.nonfinite_passes == results.nonfinite_examples == 0
    assert 0 < results.rounding_allowance < 1e-4


def test_certificates_do_not_depend_on_the_batch_size(certified):
    _, certificate = certify_noisy(batch_size=10)
    for one, other in zip(certificate, certified[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_without_noise_on_its_images_cannot_be_certified():
    for defence in (None, RSE(sigma_init=0.0)):
        with pytest.raises(UserError, match="only input_noise and rse can be certified"):
            certify_noisy(16, Noisy(defence=defence))


def test_nonfinite_forward_passes_are_counted_and_certify_nothing():
    results, certificate = certify_noisy(16, Noisy(nonfinite=True))
    assert results.nonfinite_examples == 30
    assert 0.45 < results.nonfinite_passes / (30 * 1300) < 0.55
    assert results.abstained == 30
    assert not certificate.radii.any()


def test_float_images_have_the_certificates_of_their_bytes(certified):
    _, certificate = certify_noisy(16, as_dtype=lambda images: images.astype(np.float32) / 255)
    for one, other in zip(certificate, certified[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    with pytest.raises(UserError, match="use floats from 0 to 1, or uint8"):
        certify_noisy(16, as_dtype=lambda images: images.astype(np.float32))
