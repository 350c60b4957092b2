"""Run-time checks of the types and shapes of arguments and results."""

import jax.numpy as jnp
import pytest
from checked_types import checked
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from jaxadv.core.losses import cross_entropy


def test_a_wrong_shape_raises_an_error():
    with pytest.raises(TypeCheckError, match="labels"):
        cross_entropy(jnp.zeros((4, 10)), jnp.zeros((3,), int))


def test_nested_functions_are_checked_at_each_call():
    def outer(value):
        @jaxtyped(typechecker=checked)
        def inner(x: Float[Array, "n"]) -> Float[Array, "n"]:
            return value

        return inner

    x = jnp.zeros(3)
    assert outer(x)(x) is x
    with pytest.raises(TypeCheckError):
        outer(jnp.zeros(4))(x)
    with pytest.raises(TypeCheckError):
        outer(x)(jnp.zeros((3, 1)))


def test_checks_are_created_once_per_signature():
    def make(kind):
        def inner(x: kind):
            pass

        return inner

    assert checked(make(int)) is checked(make(int))
    assert checked(make(int)) is not checked(make(str))
