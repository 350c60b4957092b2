from itertools import product
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.core.rng import Stream, example_keys, stream


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


def test_streams_differ_by_seed_name_and_step():
    names = get_args(Stream)
    keys = [stream(*arguments) for arguments in product((0, 1, 7), names, (0, 1, 7))]
    assert len({bits(key).tobytes() for key in keys}) == len(keys) == 9 * len(names)


def test_a_stream_returns_the_same_key_for_the_same_arguments():
    np.testing.assert_array_equal(bits(stream(3, "attack", 5)), bits(stream(3, "attack", 5)))
    np.testing.assert_array_equal(bits(stream(3, "init")), bits(stream(3, "init", 0)))


def test_streams_of_neighbouring_seeds_do_not_overlap():
    # They would if the key were derived from the sum of seed and step.
    first = {bits(stream(0, "shuffle", step)).tobytes() for step in range(20)}
    second = {bits(stream(1, "shuffle", step)).tobytes() for step in range(20)}
    assert not first & second


def test_seed_and_step_can_be_traced():
    traced = jax.jit(lambda seed, step: stream(seed, "noise", step))(jnp.int32(3), jnp.int32(5))
    np.testing.assert_array_equal(bits(traced), bits(stream(3, "noise", 5)))


def test_the_key_of_an_example_does_not_depend_on_its_batch():
    key, ids = stream(0, "attack"), jnp.array([7, 0, 3])
    batch = bits(example_keys(key, ids))
    for i, example in enumerate(ids):
        np.testing.assert_array_equal(batch[i], bits(example_keys(key, example[None]))[0])
    np.testing.assert_array_equal(batch[::-1], bits(example_keys(key, ids[::-1])))


def test_keys_of_examples_differ():
    keys = bits(example_keys(stream(0, "attack"), jnp.arange(1000)))
    assert len(np.unique(keys, axis=0)) == 1000
