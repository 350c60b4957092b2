import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.normal import _bits, normal


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_bits_are_those_of_jax(seed):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(_bits(key, 1001), jax.random.bits(key, (1001,)))


@pytest.mark.parametrize("shape", [(), (7,), (3, 100, 333)])
def test_draws_are_those_of_jax(shape):
    key = jax.random.key(3)
    draws = normal(key, shape)
    assert draws.shape == shape
    np.testing.assert_allclose(draws, jax.random.normal(key, shape), rtol=1e-6, atol=1e-6)


def test_keys_may_be_mapped():
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(lambda key: normal(key, (5,)))(keys)
    np.testing.assert_allclose(mapped, jnp.stack([normal(key, (5,)) for key in keys]), atol=1e-6)


def test_another_generator_is_left_to_jax():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(normal(key, (5,)), jax.random.normal(key, (5,)))
