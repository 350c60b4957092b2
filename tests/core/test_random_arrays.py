import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from jaxadv.core.rng import _random_bits, normal, rademacher, uniform


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_random_bits_equal_those_of_jax(seed):
    key = jax.random.key(seed)
    count = jnp.concatenate([jnp.zeros(1001, jnp.uint32), jnp.arange(1001, dtype=jnp.uint32)])
    expected = threefry_2x32(jax.random.key_data(key), count)
    np.testing.assert_array_equal(jnp.concatenate(_random_bits(key, 1001)), expected)


def test_normal_equals_the_box_muller_transform_in_double_precision():
    key = jax.random.key(3)
    first, second = (np.asarray(word, np.uint32) for word in _random_bits(key, 500))
    radius = np.sqrt(-2 * np.log(1 - (first >> 9) / 2**23))
    angle = (second >> 9) / 2**23 * np.pi / 2
    cosine = radius * np.cos(angle) * np.where(second & 1, -1, 1)
    sine = radius * np.sin(angle) * np.where(second & 2, -1, 1)
    samples = normal(key, (1000,))
    np.testing.assert_allclose(samples, np.concatenate([cosine, sine]), rtol=1e-5, atol=2e-6)


def test_normal_samples_are_normal_and_uncorrelated():
    samples = np.asarray(normal(jax.random.key(7), (2, 100_000)))
    assert stats.kstest(samples.ravel(), "norm").pvalue > 0.01
    # Both values of a pair share a radius: neither they nor their squares may be correlated.
    for one, other in [samples, samples**2, (samples[0, 1:], samples[0, :-1])]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(100_000)
    assert 4 < np.abs(samples).max() < 5.9


def test_uniform_samples_are_uniform_and_uncorrelated():
    samples = np.asarray(uniform(jax.random.key(7), (2, 100_000)))
    assert stats.kstest(samples.ravel(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    for one, other in [samples, (samples[0, 1:], samples[0, :-1])]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(100_000)
    assert -1 <= samples.min() < -0.9999
    assert 0.9999 < samples.max() < 1


def test_rademacher_samples_are_balanced_and_uncorrelated():
    signs = np.asarray(rademacher(jax.random.key(7), (100, 3333)))
    assert set(np.unique(signs)) == {-1, 1}
    bound = 4 / np.sqrt(signs.size)
    assert abs(signs.mean()) < bound
    for lag in (1, 32, 3333):
        assert abs(np.mean(signs.ravel()[lag:] * signs.ravel()[:-lag])) < bound


@pytest.mark.parametrize("sample", [normal, rademacher, uniform])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 3)])
def test_any_shape_is_sampled(sample, shape):
    samples = sample(jax.random.key(0), shape)
    assert samples.shape == shape
    assert samples.dtype == jnp.float32


def test_keys_can_be_mapped_with_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda key: normal(key, (5,)))(keys)
    np.testing.assert_allclose(mapped, jnp.stack([normal(key, (5,)) for key in keys]), atol=1e-6)


def test_keys_of_other_generators_use_jax_random_bits():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(jnp.stack(_random_bits(key, 5)), jax.random.bits(key, (2, 5)))
    assert jnp.isfinite(normal(key, (5,))).all()
