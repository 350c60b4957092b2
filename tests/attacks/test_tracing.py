"""New weights of a model are used, and models of equal structure compile once."""

import gc
import re
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, ids_of, images_of, run, run_autoattack, skip_other_norms
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from linear_model import WEIGHTS, apply, examples

from jaxadv.attacks import BlackBox, pgd
from jaxadv.attacks.batching import _attack_step
from jaxadv.attacks.nes import _nes
from jaxadv.attacks.pgd import _pgd
from jaxadv.attacks.tracing import trace_model

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
IMAGES, LABELS = examples(n=8, low=0.3, high=0.7)
W = jnp.asarray(WEIGHTS, jnp.float32)
every_attack = pytest.mark.parametrize("name", CALLS)


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


class Net:
    def __init__(self, weights):
        self.weights = weights

    def logits(self, key, images):
        return images.reshape(len(images), -1) @ self.weights


class Linear(nnx.Module):
    def __init__(self, weights):
        self.weights = nnx.Param(weights)

    def __call__(self, key, images):
        return images.reshape(len(images), -1) @ self.weights[...]


@every_attack
def test_functions_are_attacked_with_their_current_weights(name):
    weights = -W

    def logits_fn(key, images):
        return images.reshape(len(images), -1) @ weights

    run(name, logits_fn, IMAGES, LABELS)
    weights = W
    equal(run(name, logits_fn, IMAGES, LABELS), run(name, partial(apply, W), IMAGES, LABELS))


@every_attack
def test_models_that_change_in_place_are_attacked_with_their_current_weights(name):
    expected = run(name, partial(apply, W), IMAGES, LABELS)
    net, module = Net(-W), Linear(-W)
    for model in (net.logits, module):
        run(name, model, IMAGES, LABELS)
    net.weights = W
    module.weights[...] = W
    equal(run(name, net.logits, IMAGES, LABELS), expected)
    equal(run(name, module, IMAGES, LABELS), expected)
    equal(run(name, jax.tree_util.Partial(apply, W), IMAGES, LABELS), expected)


@pytest.mark.parametrize(("name", "kernel"), [("pgd", _pgd), ("nes", _nes)])
def test_new_closures_of_equal_structure_compile_once(name, kernel):
    def attack(scale):
        weights = scale * W
        inner = jax.jit(lambda flat: flat @ weights)  # its constants are inside of it
        relu = lambda key, images: jax.nn.relu(inner(images.reshape(len(images), -1)))  # noqa: E731
        run(name, relu, IMAGES, LABELS)
        return weakref.ref(weights)

    attack(0.0)
    before = kernel.__wrapped__._cache_size()
    weights = [attack(float(scale)) for scale in range(1, 10)]
    assert kernel.__wrapped__._cache_size() == before
    gc.collect()
    assert [ref() for ref in weights] == [None] * 9  # no weights are kept


@pytest.mark.parametrize("loop", ["scan", "fori_loop", "cond", "checkpoint"])
def test_jitted_functions_inside_loops_are_traced(loop):
    weights = jnp.eye(48) * 0.5 + 0.01
    inner = jax.jit(lambda flat: jnp.tanh(flat @ weights))
    layers = {
        "scan": lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=3)[0],
        "fori_loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, c: inner(c), x),
        "cond": lambda x: jax.lax.cond(x.sum() > 0, inner, lambda x: x, x),
        "checkpoint": jax.checkpoint(inner),
    }[loop]

    def model(key, images):
        return layers(images.reshape(len(images), -1)) @ W

    traced = trace_model(model, KEY, IMAGES)
    np.testing.assert_allclose(traced(KEY, IMAGES), model(KEY, IMAGES), rtol=1e-5)
    weights, inner = -weights, jax.jit(lambda flat: jnp.tanh(-(flat @ weights)) * 2)
    traced = trace_model(model, KEY, IMAGES)
    np.testing.assert_allclose(traced(KEY, IMAGES), model(KEY, IMAGES), rtol=1e-5)


def test_autoattack_keeps_no_weights():
    def attack(scale):
        weights = scale * W
        run_autoattack(lambda key, images: apply(weights, key, images), IMAGES, LABELS)
        return weakref.ref(weights)

    attack(0.0)
    before = _attack_step.cache_info().currsize
    weights = [attack(1.0), attack(2.0)]
    assert _attack_step.cache_info().currsize == before
    gc.collect()
    assert [ref() for ref in weights] == [None] * 2


def test_different_operations_are_different_programs():
    def scaled(key, images):
        return 2 * apply(W, key, images)

    @jax.custom_jvp
    def straight(logits):
        return jnp.round(logits)

    other = jax.custom_jvp(straight.fun)
    straight.defjvp(lambda primals, tangents: (jnp.round(primals[0]), tangents[0]))
    other.defjvp(lambda primals, tangents: (jnp.round(primals[0]), 2 * tangents[0]))
    models = [
        partial(apply, W),
        scaled,
        lambda key, images: straight(apply(W, key, images)),
        lambda key, images: other(apply(W, key, images)),
        lambda key, images: apply(W, key, images) + jax.random.normal(key),
    ]
    programs = [trace_model(model, KEY, IMAGES).program for model in models]
    assert len(set(programs)) == len(models)
    assert [trace_model(model, KEY, IMAGES).program for model in models] == programs


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab"])
def test_weights_in_custom_derivatives_are_current(name):
    def model(weights):
        @jax.custom_vjp
        def logits(flat):
            return flat @ weights

        logits.defvjp(lambda flat: (flat @ weights, None), lambda _, g: (g @ weights.T,))
        return lambda key, images: logits(images.reshape(len(images), -1))

    for weights in (W, -W, W):
        equal(
            run(name, model(weights), IMAGES, LABELS),
            run(name, partial(apply, weights), IMAGES, LABELS),
        )


# These have their own operations in L1.
IN_L1 = [(name, {"norm": "l1"}) for name in ("pgd", "apgd", "fab", "fmn", "square")]
WITH_ODI = [(name, {"num_odi_steps": 1}) for name in ("pgd", "apgd")]


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in CALLS), *IN_L1, *WITH_ODI], ids=str
)
@pytest.mark.parametrize("how", ["jit", "vmap", "scan", "shard_map"])
def test_results_inside_transformations_are_the_same(name, changes, how):
    def attack(weights, images, labels, ids):
        model = partial(apply, weights)
        return run(name, model, images, labels, **ids_of(name, ids), **changes)

    ids = jnp.arange(8)
    expected = images_of(attack(W, IMAGES, LABELS, ids))
    if how == "jit":
        found = images_of(jax.jit(attack)(W, IMAGES, LABELS, ids))
    elif how == "vmap":
        halves = [array.reshape(2, 4, *array.shape[1:]) for array in (IMAGES, LABELS, ids)]
        found = images_of(jax.vmap(partial(attack, W))(*halves)).reshape(IMAGES.shape)
    elif how == "scan":

        def body(carry, batch):
            return carry, images_of(attack(W, *batch))

        halves = [array.reshape(2, 4, *array.shape[1:]) for array in (IMAGES, LABELS, ids)]
        found = jax.lax.scan(body, 0, tuple(halves))[1].reshape(IMAGES.shape)
    else:
        mesh = Mesh(np.array(jax.devices()), ("i",))
        rows, whole = PartitionSpec("i"), PartitionSpec()
        mapped = jax.shard_map(
            attack, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows
        )
        found = images_of(jax.jit(mapped)(W, IMAGES, LABELS, ids))
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in CALLS), *WITH_ODI], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_64_bit_mode_and_strict_promotion(name, changes, norm):
    skip_other_norms(name, norm)
    if changes and norm == "l1":
        pytest.skip("ODI is not for L1")
    changes = changes if name == "n_fgsm" else {"norm": norm, **changes}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        images, labels = IMAGES.astype(jnp.float64), LABELS.astype(jnp.int64)
        found = images_of(run(name, partial(apply, W), images, labels, **changes))
    assert np.isfinite(found).all()
    limit = CALLS[name]["eps"] if name in ("ddn", "cw", "hop_skip_jump", "sparse_rs") else 0.1
    assert np.abs(np.asarray(found) - np.asarray(IMAGES)).max() <= limit + 1e-6


def of_another_framework(key, images, name="tensorflow.keras"):
    scope = {"__name__": name}
    exec("def forward(images): return images.flatten(1, 2, 3)", scope)
    return scope["forward"](images)


INVALID_MODELS = {
    "another framework": (of_another_framework, "wrap a model of another framework in a BlackBox"),
    "torch": (partial(of_another_framework, name="torch.nn"), "pass jaxadv.wrap(model)"),
    "a tuple": (lambda key, x: (apply(W, key, x), {}), "returns 2 values: return only the logits"),
    "a dict": (
        lambda key, x: {"logits": apply(W, key, x)},
        "returns a dict: return only the logits",
    ),
    "one argument": (lambda x: apply(W, None, x), "but must take (key, images)"),
    "numpy": (lambda key, x: np.asarray(x), "wrap it in a BlackBox"),
    "a branch": (lambda key, x: apply(W, key, x) if x.max() > 0 else x, "wrap it in a BlackBox"),
    "no function": (3, "pass a function (key, images) -> logits"),
    "integers": (
        lambda key, x: apply(W, key, x).astype(int),
        "logits are int32: they must be floats",
    ),
    "one class": (
        lambda key, x: apply(W, key, x)[:, :1],
        "logits have 1 classes: they must have 2 or more",
    ),
}


@pytest.mark.parametrize(("model", "message"), INVALID_MODELS.values(), ids=INVALID_MODELS)
def test_invalid_models_raise_one_line(model, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        trace_model(model, KEY, IMAGES)
    assert "\n" not in str(raised.value)


def test_modules_in_training_mode_raise_an_error():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, key, images):
            return self.norm(images).reshape(len(images), -1) @ W

    model = Normed()
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        trace_model(model, KEY, IMAGES)
    model.eval()
    trace_model(model, KEY, IMAGES)


def test_unhashable_callables_are_accepted():
    class Unhashable(Net):
        __hash__ = None

        def __call__(self, key, images):
            return self.logits(key, images)

    options = {"eps": 0.1, "step_size": 0.05, "num_steps": 2}
    equal(
        pgd(KEY, Unhashable(W), IMAGES, LABELS, **options),
        pgd(KEY, partial(apply, W), IMAGES, LABELS, **options),
    )


def test_black_boxes_have_no_gradients():
    with pytest.raises(ValueError, match="a BlackBox, which has no gradients"):
        trace_model(BlackBox(len), KEY, IMAGES)
