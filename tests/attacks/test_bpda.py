"""BPDA on models that hide their gradient by rounding their input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import pgd
from jaxadv.attacks.bpda import bpda

KEY = jax.random.key(0)
MATRIX = jax.random.normal(jax.random.key(1), (12, 3))
IMAGES = jax.random.uniform(jax.random.key(2), (8, 2, 2, 3))
BUDGET = {"eps": 0.2, "step_size": 0.1, "num_steps": 5, "random_start": False}


def rounded(images):
    return jnp.round(images * 16) / 16


def classifier(transform):
    return lambda key, images: transform(images).reshape(len(images), 12) @ MATRIX


LABELS = classifier(rounded)(KEY, IMAGES).argmax(1)


def accuracy(images):
    return float((classifier(rounded)(KEY, images).argmax(1) == LABELS).mean())


def test_a_rounding_model_is_attacked_through_its_rounding():
    hidden = pgd(KEY, classifier(rounded), IMAGES, LABELS, **BUDGET)
    np.testing.assert_array_equal(hidden, IMAGES)  # no gradient
    found = pgd(KEY, classifier(bpda(rounded)), IMAGES, LABELS, **BUDGET)
    smooth = pgd(KEY, classifier(lambda images: images), IMAGES, LABELS, **BUDGET)
    assert accuracy(hidden) == 1
    assert accuracy(found) <= accuracy(smooth) < 0.5


def test_values_are_those_of_the_function_and_derivatives_those_of_backward():
    function = bpda(rounded, lambda images: 3 * images**2)
    np.testing.assert_array_equal(function(IMAGES), rounded(IMAGES))
    value, gradient = jax.value_and_grad(lambda images: function(images).sum())(IMAGES)
    assert float(value) == float(rounded(IMAGES).sum())
    np.testing.assert_allclose(gradient, 6 * IMAGES, rtol=1e-6)
    _, tangent = jax.jvp(function, (IMAGES,), (jnp.ones_like(IMAGES),))  # in forward mode too
    np.testing.assert_allclose(tangent, 6 * IMAGES, rtol=1e-6)
    mapped = jax.jit(jax.vmap(jax.grad(lambda image: function(image).sum())))(IMAGES)
    np.testing.assert_allclose(mapped, gradient, rtol=1e-6)


@pytest.mark.parametrize("fn", [jax.nn.relu, bpda(rounded)])
def test_a_derivative_that_the_function_has_is_replaced(fn):
    gradient = jax.grad(lambda images: bpda(fn, lambda x: 5 * x)(images).sum())(IMAGES)
    np.testing.assert_array_equal(gradient, jnp.full_like(IMAGES, 5.0))


def test_new_weights_of_an_approximation_take_effect():
    """Attacks keep traces of functions that cannot change."""
    slopes = {"now": 1.0}
    logits_fn = classifier(bpda(rounded, lambda images: slopes["now"] * images))
    first = pgd(KEY, logits_fn, IMAGES, LABELS, **BUDGET)
    slopes["now"] = -1.0
    second = pgd(KEY, logits_fn, IMAGES, LABELS, **BUDGET)
    assert float(jnp.abs(first - second).max()) > 0.1


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (lambda images: images[:1], r"float32 of shape \(1, 2, 2, 3\), but fn float32"),
        (lambda images: images.astype(jnp.float16), "backward returns float16"),
    ],
)
def test_an_approximation_of_another_shape_or_type_is_refused(backward, words):
    function = bpda(rounded, backward)
    with pytest.raises(ValueError, match=words):
        jax.grad(lambda images: function(images).sum())(IMAGES)
