"""A function is traced again if a value that it can reach has changed."""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from linear_model import WEIGHTS, examples

from jaxadv.attacks import tracing
from jaxadv.attacks.snapshot import take_snapshot
from jaxadv.attacks.tracing import trace_model
from jaxadv.models import make_model

pow = 1.0  # shadows a builtin
KEY = jax.random.key(0)
IMAGES, _ = examples(n=4)
W = jnp.asarray(WEIGHTS, jnp.float32)
SCALE = 1.0  # changed by tests
NETS = types.SimpleNamespace(weights=W)


def flat(images):
    return images.reshape(len(images), -1)


def through_a_helper(key, images):
    return _helper(images)


def with_an_attribute(key, images):
    return with_an_attribute.scale * (flat(images) @ W)


def with_an_import(key, images):
    import types

    return types.scale * (flat(images) @ W)


class Layer(NamedTuple):
    weights: jax.Array

    def __call__(self, key, images):
        return SCALE * (flat(images) @ self.weights)


def _helper(images):
    return SCALE * (flat(images) @ W)


class Module(nn.Module):
    scale: float = 1.0

    @nn.compact
    def __call__(self, images):
        return self._rescaled(nn.Dense(5)(flat(images)))

    def _rescaled(self, logits):
        return SCALE * self.scale * logits


def same(one, other):
    return one is not None and other is not None and one.structure == other.structure


def logits(function):
    return trace_model(function, KEY, IMAGES)(KEY, IMAGES)


def changes():
    """Pairs of a change and the function that it affects, by name."""
    cell, listed, in_place, box = [1.0], {"w": W}, np.array(WEIGHTS, np.float32), NETS
    module = Module()
    variables = module.init(KEY, IMAGES)
    scale, zeros = 1.0, [np.float32(0.0)]
    with_an_attribute.scale, types.scale = 1.0, 1.0

    def nonlocal_scale():
        nonlocal scale
        scale = 2.0

    return {
        "a global of a helper": (
            lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 2.0),
            through_a_helper,
        ),
        "a global of a method": (
            lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 2.0),
            lambda key, images: module.apply(variables, images),
        ),
        "a constant": (
            lambda _: cell.__setitem__(0, 2.0),
            lambda key, images: cell[0] * (flat(images) @ W),
        ),
        "a cell": (lambda _: nonlocal_scale(), lambda key, images: scale * (flat(images) @ W)),
        "an entry": (
            lambda _: listed.update(w=2 * W),
            lambda key, images: flat(images) @ listed["w"],
        ),
        "an array of NumPy": (
            lambda _: np.multiply(in_place, 2, out=in_place),
            lambda key, images: flat(images) @ in_place,
        ),
        "an attribute": (
            lambda monkeypatch: monkeypatch.setattr(box, "weights", 2 * W),
            lambda key, images: flat(images) @ box.weights,
        ),
        "a jitted part's weights": (
            lambda _: listed.update(w=2 * W),
            lambda key, images: jax.jit(lambda x: x @ listed["w"])(flat(images)),
        ),
        "the code of a helper": (
            lambda monkeypatch: monkeypatch.setattr(
                _helper, "__code__", (lambda images: 2 * (flat(images) @ W)).__code__
            ),
            through_a_helper,
        ),
        "an argument of a partial": (
            lambda _: listed.update(w=2 * W),
            functools.partial(lambda weights, key, x: flat(x) @ weights["w"], listed),
        ),
        "a global with the name of a builtin": (
            lambda monkeypatch: monkeypatch.setitem(globals(), "pow", 2.0),
            lambda key, images: pow * (flat(images) @ W),
        ),
        "an attribute of a function": (
            lambda monkeypatch: monkeypatch.setattr(with_an_attribute, "scale", 2.0),
            with_an_attribute,
        ),
        "what a function imports": (
            lambda monkeypatch: monkeypatch.setattr(types, "scale", 2.0),
            with_an_import,
        ),
        "a global of a tuple's method": (
            lambda monkeypatch: monkeypatch.setitem(globals(), "SCALE", 2.0),
            Layer(W),
        ),
        "the sign of a zero": (
            lambda _: zeros.__setitem__(0, np.float32(-0.0)),
            lambda key, images: (2.0 if np.signbit(zeros[0]) else 1.0) * (flat(images) @ W),
        ),
        "a default": (
            lambda _: listed.update(w=2 * W),
            lambda key, images, weights=listed: flat(images) @ weights["w"],
        ),
    }


@pytest.mark.parametrize("name", changes())
def test_changes_are_detected(name, monkeypatch):
    change, function = changes()[name]
    before, snapshot = logits(function), take_snapshot(function)
    np.testing.assert_array_equal(logits(function), before)
    change(monkeypatch)
    np.testing.assert_allclose(logits(function), 2 * before, rtol=1e-6)
    after = take_snapshot(function)
    if same(snapshot, after):  # then the arrays must differ
        assert any(one is not other for one, other in zip(*(snapshot[1], after[1]), strict=True))


MODEL = make_model("net", 5)
VARIABLES = jax.jit(MODEL.init)(KEY, jnp.zeros((1, 32, 32, 3)))
# Without models of jaxadv, because the tests wrap these in type checks.
KNOWN = {
    "a closure": lambda weights: lambda key, images: MODEL.apply(weights, images),
    "jitted": lambda weights: jax.jit(lambda key, images: MODEL.apply(weights, images)),
    "a user's module": lambda weights: (
        lambda key, images: Module().apply(
            {"params": {"Dense_0": {"kernel": jnp.tile(W, (64, 1)), "bias": W[0]}}}, images
        )
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_common_models_have_snapshots(name):
    assert take_snapshot(KNOWN[name](VARIABLES)) is not None


@pytest.mark.parametrize("name", ["a closure", "jitted"])
def test_unchanged_functions_are_not_traced_again(name, monkeypatch):
    images = jnp.full((2, 32, 32, 3), 0.5)
    halved = jax.tree.map(lambda array: array / 2, VARIABLES)
    models = [KNOWN[name](weights) for weights in (VARIABLES, halved)]
    first, second = (trace_model(model, KEY, images) for model in models)
    assert second.program is first.program
    monkeypatch.setattr(tracing, "_trace_model", None)
    for model in models:
        again = trace_model(model, KEY, images)
        assert again.program is first.program
        np.testing.assert_allclose(again(KEY, images), model(KEY, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("read", [float, lambda array: np.asarray(array).item()])
def test_array_values_that_a_function_reads_are_detected(read):
    weights = {"scale": jnp.float32(1)}

    def function(key, images):
        return read(weights["scale"]) * (flat(images) @ W)

    before = logits(function)
    assert take_snapshot(function) is not None
    weights["scale"] = jnp.float32(2)
    np.testing.assert_allclose(logits(function), 2 * before, rtol=1e-6)


def test_flax_interceptors_are_detected():
    function = KNOWN["a closure"](VARIABLES)
    images = jnp.zeros((2, 32, 32, 3))
    plain = trace_model(function, KEY, images)

    def doubled(next_fn, args, kwargs, context):
        return 2 * next_fn(*args, **kwargs)

    with nn.intercept_methods(doubled):
        assert trace_model(function, KEY, images).program is not plain.program


def test_jax_settings_are_part_of_the_cache_key():
    function = KNOWN["a closure"](VARIABLES)
    images = jnp.zeros((2, 32, 32, 3))
    plain = trace_model(function, KEY, images)
    with jax.default_matmul_precision("highest"):
        precise = trace_model(function, KEY, images)
    assert plain.program is not precise.program
    assert trace_model(function, KEY, images).program is plain.program


UNKNOWN = {
    "an object": lambda key, images: flat(images) @ NETS.weights,
    "an iterator": functools.partial(lambda numbers, key, x: next(numbers) * flat(x), iter([1.0])),
    "a bound builtin": functools.partial(lambda get, key, x: flat(x) @ get("w"), {"w": W}.get),
    "an array of NumPy": lambda key, images: flat(images) @ WEIGHTS,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_mutable_values_have_no_snapshot(name):
    assert take_snapshot(UNKNOWN[name]) is None
