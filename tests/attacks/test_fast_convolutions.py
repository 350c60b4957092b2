"""Models with fast convolutions and max pools have the same logits and input gradients."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.sharding import Mesh, PartitionSpec

from jaxadv.attacks import apgd, fast_convolutions, pgd
from jaxadv.attacks.fast_convolutions import plain_convolutions, with_fast_convolutions
from jaxadv.attacks.pgd import _pgd
from jaxadv.attacks.tracing import trace_model
from jaxadv.core.devices import traced_for
from jaxadv.models import make_model

pytestmark = pytest.mark.slow  # compiles much

KEY = jax.random.key(0)
NHWC = ("NHWC", "HWIO", "NHWC")
NCHW = ("NCHW", "OIHW", "NCHW")


def random(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def primitives(jaxpr):
    """Return the names of all primitives, also of inner operations, in order."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    names += primitives(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    names += primitives(inner)
    return names


def count(operations, name="custom_vjp_call"):
    return primitives(operations.jaxpr).count(name)


def assert_same(function, images, *, replaced=None, tolerance=1e-5):
    """Check the output and the input gradient, and how many operations were replaced."""
    plain = jax.make_jaxpr(function)(images)
    fast = with_fast_convolutions(plain)
    if replaced is not None:
        assert count(fast) - count(plain) == replaced
    assert fast.in_avals == plain.in_avals
    assert fast.out_avals == plain.out_avals
    assert all(a is b for a, b in zip(fast.consts, plain.consts, strict=True))

    def value_and_gradient(operations):
        def run(images):
            return jaxpr_as_fun(operations)(images)[0]

        output, pull = jax.vjp(run, images)
        weights = jnp.sin(jnp.arange(output.size)).reshape(output.shape).astype(output.dtype)
        return output, pull(weights)[0]

    results = jax.jit(lambda: (value_and_gradient(fast), value_and_gradient(plain)))()
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        scale = np.abs(expected).max() + 1e-30
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def convolution(
    images_shape,  # NHWC
    kernel_shape,  # HWIO
    layout=NHWC,
    strides=(1, 1),
    padding="SAME",
    dilation=(1, 1),
    groups=1,
    dtype=jnp.float32,
    **options,
):
    """Return a function of one convolution, with images in the layout."""
    images, kernel = random(*images_shape, dtype=dtype), random(*kernel_shape, dtype=dtype, seed=1)
    images = images.transpose(["NHWC".index(axis) for axis in layout[0]])
    kernel = kernel.transpose(["HWIO".index(axis) for axis in layout[1]])

    def function(images):
        return lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=layout,
            feature_group_count=groups,
            **options,
        )

    return function, images


KNOWN = {
    "3x3": {},
    "3x3 valid": {"padding": "VALID"},
    "rectangular": {"kernel_shape": (2, 5, 4, 6)},
    "rectangular, strides": {"kernel_shape": (2, 5, 4, 6), "strides": (2, 3)},
    "strides": {"strides": (2, 2)},
    "strides, 1 and 2": {"strides": (1, 2), "padding": "VALID"},
    "stride larger than kernel": {"strides": (4, 5), "padding": "VALID"},
    "7x7, stride 2": {"kernel_shape": (7, 7, 4, 6), "strides": (2, 2), "padding": [(3, 3), (3, 3)]},
    "1x1": {"kernel_shape": (1, 1, 4, 6)},
    "1x1, strides": {"kernel_shape": (1, 1, 4, 6), "strides": (2, 3)},
    "1x1, padding": {"kernel_shape": (1, 1, 4, 6), "padding": [(1, 0), (0, 2)]},
    "wide padding": {"padding": [(4, 5), (3, 6)]},
    "negative padding": {"padding": [(-1, 2), (1, -2)]},
    "negative padding, strides": {"padding": [(-1, 2), (1, -2)], "strides": (2, 2)},
    "dilation": {"dilation": (2, 3)},
    "dilation, valid": {"dilation": (2, 2), "padding": "VALID"},
    "whole image": {"kernel_shape": (9, 8, 4, 6), "padding": "VALID"},
    "2 groups": {"kernel_shape": (3, 3, 2, 6), "groups": 2},
    "2 groups, strides": {"kernel_shape": (3, 3, 2, 6), "groups": 2, "strides": (2, 2)},
    "2 groups, 1x1": {"kernel_shape": (1, 1, 2, 6), "groups": 2},
    "depthwise": {"kernel_shape": (3, 3, 1, 4), "groups": 4},
    "depthwise, multiplied": {"kernel_shape": (3, 2, 1, 12), "groups": 4},
    "depthwise, strides": {"kernel_shape": (3, 3, 1, 4), "groups": 4, "strides": (2, 3)},
    "depthwise, all": {
        "kernel_shape": (3, 2, 1, 8),
        "groups": 4,
        "strides": (2, 3),
        "dilation": (2, 1),
        "padding": [(3, -1), (0, 4)],
    },
    "many groups": {
        "images_shape": (2, 5, 4, 96),
        "kernel_shape": (3, 3, 8, 24),
        "groups": 12,
    },
    "one part per group": {
        "images_shape": (2, 5, 4, 80),
        "kernel_shape": (3, 3, 40, 6),
        "groups": 2,
    },
    "one channel": {"images_shape": (2, 9, 8, 1), "kernel_shape": (3, 3, 1, 6)},
    "one image": {"images_shape": (1, 9, 8, 4)},
    "precision": {"precision": "highest"},
}
DEFAULTS = {"images_shape": (3, 9, 8, 4), "kernel_shape": (3, 3, 4, 6)}


@pytest.mark.parametrize("case", KNOWN.values(), ids=KNOWN)
def test_convolutions_are_replaced_and_equal(case):
    function, images = convolution(**{**DEFAULTS, **case})
    groups, size = case.get("groups", 1), case.get("kernel_shape", (3, 3))[:2]
    if size == (1, 1) and groups == 1 and "padding" not in case:
        assert_same(function, images, replaced=0)  # a matrix product
        assert count(with_fast_convolutions(jax.make_jaxpr(function)(images)), "dot_general") == 1
    else:
        parts = {"many groups": 3, "one part per group": 2}
        (name,) = (name for name, value in KNOWN.items() if value is case)
        assert_same(function, images, replaced=parts.get(name, 1))


@pytest.mark.parametrize(
    "layout",
    [NCHW, ("NHWC", "OIHW", "NCHW"), ("CWNH", "IOHW", "WNCH"), ("HWNC", "WHOI", "CHWN")],
    ids="-".join,
)
def test_convolutions_of_any_layout_are_replaced(layout):
    case = {**DEFAULTS, "layout": layout, "strides": (1, 2), "padding": [(1, 0), (2, 1)]}
    assert_same(*convolution(**case), replaced=1)


@pytest.mark.parametrize("seed", range(8))
def test_random_convolutions_are_equal(seed):
    generator = np.random.default_rng(seed)
    pick = generator.integers
    groups = int(generator.choice([1, 2, 3]))
    group_size = int(pick(1, 4))
    dilated = bool(pick(2))
    function, images = convolution(
        (int(pick(1, 4)), int(pick(7, 12)), int(pick(7, 12)), groups * group_size),
        (int(pick(1, 4)), int(pick(1, 4)), group_size, groups * int(pick(1, 4))),
        layout=tuple("".join(generator.permutation(list(axes))) for axes in NHWC),
        strides=(1, 1) if dilated else tuple(pick(1, 4, 2).tolist()),
        padding=[tuple(pair) for pair in pick(0, 4, (2, 2)).tolist()],
        dilation=tuple(pick(1, 3, 2).tolist()) if dilated else (1, 1),
        groups=groups,
    )
    assert_same(function, images)
    fast = with_fast_convolutions(jax.make_jaxpr(function)(images))
    assert count(fast) + count(fast, "dot_general") > 0


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2), ("float64", 1e-12)]
)
def test_other_types_are_replaced(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        for case in ({}, {"strides": (2, 2)}, {"kernel_shape": (3, 3, 1, 4), "groups": 4}):
            function, images = convolution(**{**DEFAULTS, **case}, dtype=jnp.dtype(dtype))
            assert_same(function, images, replaced=1, tolerance=tolerance)
        pool = partial(max_pool, window=(1, 3, 2, 1), strides=(1, 2, 2, 1), padding="SAME")
        assert_same(pool, images, replaced=1, tolerance=tolerance)


def test_paddings_with_a_negative_start_are_right():
    # XLA's own convolution reads beyond the images here: openxla/xla#48713.
    images, kernel = random(3, 9, 8, 4), random(3, 3, 4, 6)

    def function(images):
        return lax.conv_general_dilated(
            images, kernel, (1, 1), [(-1, 1), (-2, 0)], dimension_numbers=NHWC
        )

    def expected(images):
        padded = jnp.pad(images[:, 1:, 2:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        return lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=NHWC)

    fast = with_fast_convolutions(jax.make_jaxpr(function)(images))
    assert count(fast) == 1
    np.testing.assert_allclose(
        jaxpr_as_fun(fast)(images)[0], expected(images), rtol=1e-5, atol=1e-5
    )


def test_precision_is_kept():
    function, images = convolution(**DEFAULTS, precision="highest")
    fast = with_fast_convolutions(jax.make_jaxpr(function)(images))
    gradient = jax.make_jaxpr(jax.grad(lambda x: jaxpr_as_fun(fast)(x)[0].sum()))(images)
    text = str(gradient)
    assert text.count("conv_general_dilated") == text.count("Precision.HIGHEST, Precision.HIGHEST")


def one_dimension(images):
    return lax.conv_general_dilated(
        images[:, 0], random(3, 4, 6), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )


def in_single_precision(images):
    return lax.conv_general_dilated(
        images.astype(jnp.bfloat16),
        random(3, 3, 4, 6, dtype=jnp.bfloat16),
        (1, 1),
        "SAME",
        dimension_numbers=NHWC,
        preferred_element_type=jnp.float32,
    )


def max_pool(images, window, strides=None, padding="VALID"):
    return lax.reduce_window(images, -jnp.inf, lax.max, window, strides or window, padding)


LEFT_ALONE = {
    "dilated images": lambda x: lax.conv_general_dilated(
        x, random(3, 3, 4, 6), (1, 1), [(1, 1)] * 2, lhs_dilation=(2, 2), dimension_numbers=NHWC
    ),
    "strides and dilation": lambda x: lax.conv_general_dilated(
        x, random(3, 3, 4, 6), (2, 2), "SAME", rhs_dilation=(2, 2), dimension_numbers=NHWC
    ),
    "batch groups": lambda x: lax.conv_general_dilated(
        x, random(3, 3, 4, 6), (1, 1), "SAME", batch_group_count=3, dimension_numbers=NHWC
    ),
    "large depthwise kernel": lambda x: lax.conv_general_dilated(
        x, random(9, 8, 1, 4), (1, 1), "SAME", feature_group_count=4, dimension_numbers=NHWC
    ),
    "one dimension": one_dimension,
    "other output type": in_single_precision,
    "no output": lambda x: lax.conv_general_dilated(
        x, random(10, 3, 4, 6), (1, 1), "VALID", dimension_numbers=NHWC
    ),
    "dilated pool": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 2, 1)
    ),
    "wide pool": lambda x: max_pool(x, (1, 9, 8, 1)),
    "average pool": lambda x: linen.avg_pool(x, (2, 2), (2, 2)),
    "custom derivative": jax.custom_jvp(lambda x: convolution(**DEFAULTS)[0](x)),
}
LEFT_ALONE["custom derivative"].defjvp(lambda primals, tangents: (primals[0], tangents[0]))


@pytest.mark.parametrize("function", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_other_operations_are_left_alone(function):
    operations = jax.make_jaxpr(function)(random(3, 9, 8, 4))
    fast = with_fast_convolutions(operations)
    assert primitives(fast.jaxpr) == primitives(operations.jaxpr)
    for found, expected in zip(fast.jaxpr.eqns, operations.jaxpr.eqns, strict=True):
        assert found is expected or found.primitive.name == "jit"


# Shape, window, strides and padding.
POOLS = {
    "2x2": ((3, 8, 6, 4), (1, 2, 2, 1), None, "VALID"),
    "odd": ((3, 9, 7, 4), (1, 2, 2, 1), None, "VALID"),
    "odd, padded": ((3, 9, 7, 4), (1, 2, 2, 1), None, "SAME"),
    "3x2": ((3, 9, 7, 4), (1, 3, 2, 1), None, "VALID"),
    "channels first": ((3, 4, 9, 7), (1, 1, 2, 2), None, "VALID"),
    "over channels": ((3, 4, 4, 6), (1, 1, 1, 3), None, "VALID"),
    "overlap": ((3, 9, 8, 4), (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "overlap, channels first": (
        (2, 3, 9, 7),
        (1, 1, 3, 2),
        (1, 1, 2, 1),
        [(0, 0)] * 2 + [(1, 0), (0, 1)],
    ),
    "stride 1": ((2, 6, 7, 3), (1, 3, 3, 1), (1, 1, 1, 1), "SAME"),
    "gaps": ((2, 9, 8, 3), (1, 2, 1, 1), (1, 3, 2, 1), "VALID"),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
def test_max_pools_are_replaced_and_ties_go_to_the_first(case, ties):
    shape, window, strides, padding = case
    images = random(*shape)
    if ties:  # after ReLU most windows have them, and windows of equal values
        images = jnp.maximum(jnp.round(images), 0)
    pool = partial(max_pool, window=window, strides=strides, padding=padding)
    assert_same(pool, images, replaced=1, tolerance=1e-6)


def test_zeros_of_both_signs_and_nan_in_a_max_pool():
    images = jnp.array([0.0, -0.0, -0.0, 0.0, jnp.nan, 1.0]).reshape(1, 1, 6, 1)
    fast = with_fast_convolutions(jax.make_jaxpr(partial(max_pool, window=(1, 1, 2, 1)))(images))
    output, pull = jax.vjp(lambda x: jaxpr_as_fun(fast)(x)[0], images)
    assert np.isnan(output.ravel()).tolist() == [False, False, True]
    assert pull(jnp.ones_like(output))[0].ravel().tolist() == [1, 0, 1, 0, 1, 0]


CONVOLVE, IMAGES = convolution((2, 6, 6, 4), (3, 3, 4, 4))
DEPTHWISE, _ = convolution((2, 6, 6, 4), (3, 3, 1, 4), groups=4, strides=(2, 2))
STRIDED, _ = convolution((2, 6, 6, 4), (3, 3, 4, 4), strides=(2, 2))
HALVED = partial(max_pool, window=(1, 2, 2, 1))


def upsampled(images):
    return jnp.tanh(images.repeat(2, 1).repeat(2, 2))


INSIDE = {
    "jit": (1, jax.jit(CONVOLVE)),
    "jit in jit": (1, jax.jit(lambda x: 2 * jax.jit(CONVOLVE)(x))),
    "checkpoint": (1, jax.checkpoint(lambda x: jnp.tanh(CONVOLVE(x)))),
    "scan": (1, lambda x: lax.scan(lambda c, k: (k * CONVOLVE(c), c.sum()), x, jnp.ones(3))[0]),
    "fori_loop": (1, lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(CONVOLVE(c)), x)),
    "cond": (1, lambda x: lax.cond(x[0, 0, 0, 0] < 9, CONVOLVE, lambda x: x, x)),
    "switch": (2, lambda x: lax.switch(1, [lambda x: x, CONVOLVE, jax.jit(CONVOLVE)], x)),
    "vmap": (1, jax.vmap(lambda x: CONVOLVE(x[None])[0])),
    "scan of other forms": (
        3,
        lambda x: lax.scan(
            lambda c, _: (upsampled(DEPTHWISE(c)) + upsampled(STRIDED(c) + HALVED(c)), None),
            x,
            length=2,
        )[0],
    ),
    "twice": (2, lambda x: CONVOLVE(CONVOLVE(x))),
}


@pytest.mark.parametrize(("replaced", "function"), INSIDE.values(), ids=INSIDE)
def test_operations_inside_others_are_replaced(replaced, function):
    assert_same(function, IMAGES, replaced=replaced)


def test_a_while_loop_is_replaced():
    def function(x):
        return lax.while_loop(lambda c: CONVOLVE(c).max() < 1e3, lambda c: CONVOLVE(c) + 1, x)

    operations = jax.make_jaxpr(function)(IMAGES)
    fast = with_fast_convolutions(operations)
    assert count(fast) == 2
    np.testing.assert_allclose(jaxpr_as_fun(fast)(IMAGES)[0], function(IMAGES), rtol=1e-5)


def test_kernels_that_depend_on_the_images_have_their_gradient():
    def convolve(x, kernel, **options):
        return lax.conv_general_dilated(
            x,
            kernel,
            padding="SAME",
            dimension_numbers=NHWC,
            **{"window_strides": (1, 1), **options},
        )

    def kernel(x, depth=4):
        return jnp.tanh(x[0, :3, :3, :depth, None] * random(1, 1, 1, 4))

    assert_same(lambda x: convolve(x, kernel(x)), IMAGES, replaced=1)
    assert_same(lambda x: convolve(x, kernel(x), rhs_dilation=(2, 2)), IMAGES, replaced=1)
    assert_same(lambda x: convolve(x, kernel(x), window_strides=(2, 2)), IMAGES, replaced=1)
    for depth in (1, 2):
        groups = {"feature_group_count": 4 // depth}
        assert_same(lambda x, g=groups, d=depth: convolve(x, kernel(x, d), **g), IMAGES, replaced=1)


def test_models_that_take_gradients_themselves():
    def energy(x):
        return jnp.tanh(max_pool(jnp.tanh(CONVOLVE(x)), (1, 2, 2, 1))).sum()

    def function(x):
        return CONVOLVE(x - 0.1 * jax.grad(energy)(x))

    plain = jax.make_jaxpr(function)(IMAGES)
    assert count(with_fast_convolutions(plain)) >= 2
    assert_same(function, IMAGES)


def fail(*arguments):
    raise RuntimeError


NO_GRADIENT = jax.custom_vjp(CONVOLVE)
NO_GRADIENT.defvjp(lambda images: (CONVOLVE(images), ()), fail)


@pytest.mark.parametrize(
    "rule",
    [fail, lambda _: fail, lambda _: lambda images, kernel: NO_GRADIENT(images)],
    ids=["rule", "operation", "gradient"],
)
def test_an_error_leaves_the_operation_alone(rule, monkeypatch):
    monkeypatch.setitem(fast_convolutions._FAST_FORMS, "conv_general_dilated", rule)
    operations = jax.make_jaxpr(CONVOLVE)(IMAGES)
    assert with_fast_convolutions(operations).jaxpr.eqns == operations.jaxpr.eqns


def test_other_backends_and_the_switch_leave_all_operations_alone():
    operations = jax.make_jaxpr(CONVOLVE)(IMAGES)
    with plain_convolutions():
        assert with_fast_convolutions(operations) is operations
    assert with_fast_convolutions(operations) is not operations
    with traced_for("gpu"):
        assert with_fast_convolutions(operations) is operations


def test_this_package_s_models_are_left_alone():
    model = make_model("net", 10)
    images = random(2, 32, 32, 3)
    variables = jax.eval_shape(model.init, KEY, images)
    operations = jax.make_jaxpr(model.apply)(variables, images)
    assert primitives(with_fast_convolutions(operations).jaxpr) == primitives(operations.jaxpr)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, images):
        x = linen.relu(linen.Conv(8, (3, 3))(images))
        x = linen.max_pool(x, (2, 2), (2, 2))
        x = linen.BatchNorm(use_running_average=True)(linen.Conv(8, (3, 3), (2, 2))(x))
        x = linen.relu(linen.Conv(8, (3, 3), feature_group_count=8)(x))
        return linen.Dense(4)(x.reshape(len(x), -1))


def linen_model():
    variables = Linen().init(jax.random.key(1), jnp.zeros((1, 12, 12, 3)))
    return 4, lambda key, images: Linen().apply(variables, images)


def nnx_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.second = nnx.Conv(8, 8, (3, 3), (2, 2), rngs=rngs)
            self.dense = nnx.Linear(72, 4, rngs=rngs)

        def __call__(self, key, images):
            x = nnx.max_pool(nnx.relu(self.first(images)), (2, 2), (2, 2))
            x = nnx.relu(self.second(x))
            return self.dense(x.reshape(len(x), -1))

    return 3, Net(nnx.Rngs(1))


def equinox_model():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(1), 3)
    net = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 8, 3, stride=2, padding=1, key=keys[1]),
            eqx.nn.Lambda(lambda x: jax.nn.relu(x).reshape(-1)),
            eqx.nn.Linear(72, 4, key=keys[2]),
        ]
    )
    return 3, lambda key, images: jax.vmap(net)(images.transpose(0, 3, 1, 2))


def haiku_model():
    hk = pytest.importorskip("haiku")

    def net(images):
        x = hk.max_pool(jax.nn.relu(hk.Conv2D(8, 3)(images)), (2, 2, 1), (2, 2, 1), "VALID")
        x = jax.nn.relu(hk.Conv2D(8, 3, stride=2)(x))
        return hk.Linear(4)(x.reshape(len(x), -1))

    transformed = hk.without_apply_rng(hk.transform(net))
    params = transformed.init(jax.random.key(1), jnp.zeros((1, 12, 12, 3)))
    return 3, lambda key, images: transformed.apply(params, images)


def keras_model():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras uses another backend: set KERAS_BACKEND=jax")
    net = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    return 3, lambda key, images: net(images, training=False)


MODELS = {
    "linen": linen_model,
    "nnx": nnx_model,
    "equinox": equinox_model,
    "haiku": haiku_model,
    "keras": keras_model,
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return request.param()


IMAGES_OF_MODELS = jnp.asarray(np.random.default_rng(0).random((8, 12, 12, 3)), jnp.float32)


def test_models_of_other_libraries_are_replaced_and_equal(model):
    num_operations, logits_fn = model
    assert_same(lambda x: logits_fn(KEY, x), IMAGES_OF_MODELS, replaced=num_operations)
    traced = trace_model(logits_fn, KEY, IMAGES_OF_MODELS)
    assert primitives(traced.program._jaxpr).count("custom_vjp_call") >= num_operations


def attacked(logits_fn, **changes):
    labels = jnp.argmax(logits_fn(KEY, IMAGES_OF_MODELS), axis=1)
    arguments = {"eps": 0.05, "step_size": 0.02, "num_steps": 4, **changes}
    images = pgd(KEY, logits_fn, IMAGES_OF_MODELS, labels, **arguments)
    return images, jnp.argmax(logits_fn(KEY, images), axis=1) != labels


def test_attacks_find_the_same_and_the_switch_works():
    _, logits_fn = linen_model()
    before = _pgd.__wrapped__._cache_size()
    fast = attacked(logits_fn)
    with plain_convolutions():
        plain = attacked(logits_fn)
    assert _pgd.__wrapped__._cache_size() == before + 2  # both programs were compiled
    np.testing.assert_allclose(fast[0], plain[0], atol=1e-6)
    np.testing.assert_array_equal(fast[1], plain[1])
    assert fast[1].sum() > 0


def test_compiled_functions_follow_the_switch():
    _, logits_fn = linen_model()
    counts = []

    @jax.jit
    def function(images):
        counts.append(primitives(trace_model(logits_fn, KEY, images).program._jaxpr))
        return images

    function(IMAGES_OF_MODELS)
    with plain_convolutions():
        function(IMAGES_OF_MODELS)
    assert [names.count("custom_vjp_call") for names in counts] == [4, 0]


def test_noise_samples_under_vmap():
    _, net = linen_model()

    def logits_fn(key, images):
        return net(key, images + 0.1 * jax.random.normal(key, images.shape))

    fast = attacked(logits_fn, num_noise_samples=2)
    with plain_convolutions():
        plain = attacked(logits_fn, num_noise_samples=2)
    np.testing.assert_allclose(fast[0], plain[0], atol=1e-6)


def test_noisy_kernels_under_vmap():
    kernel = random(3, 3, 3, 4)

    def logits_fn(key, images):
        noisy = kernel + 0.1 * jax.random.normal(key, kernel.shape)
        maps = lax.conv_general_dilated(images, noisy, (1, 1), "SAME", dimension_numbers=NHWC)
        return jnp.tanh(maps).sum((1, 2))

    fast = attacked(logits_fn, num_noise_samples=2)
    with plain_convolutions():
        plain = attacked(logits_fn, num_noise_samples=2)
    np.testing.assert_allclose(fast[0], plain[0], atol=1e-6)


@pytest.mark.parametrize("how", ["pmap", "shard_map", "disable_jit"])
def test_attacks_inside_transformations_are_the_same(how):
    _, logits_fn = linen_model()
    labels = jnp.argmax(logits_fn(KEY, IMAGES_OF_MODELS), axis=1)

    def attack(images, labels, ids):
        arguments = {"eps": 0.05, "num_steps": 3, "example_ids": ids}
        return apgd(KEY, logits_fn, images, labels, **arguments).images

    arrays = IMAGES_OF_MODELS, labels, jnp.arange(8)
    expected = attack(*arrays)
    if how == "pmap":
        halves = [array.reshape(2, 4, *array.shape[1:]) for array in arrays]
        found = jax.pmap(attack)(*halves).reshape(IMAGES_OF_MODELS.shape)
    elif how == "shard_map":
        mesh, rows = Mesh(np.array(jax.devices()), ("i",)), PartitionSpec("i")
        mapped = jax.shard_map(attack, mesh=mesh, in_specs=rows, out_specs=rows)
        found = jax.jit(mapped)(*arrays)
    else:
        with jax.disable_jit():
            operations = trace_model(logits_fn, KEY, IMAGES_OF_MODELS)
            found = operations(KEY, IMAGES_OF_MODELS)
        expected = logits_fn(KEY, IMAGES_OF_MODELS)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_new_weights_compile_once():
    def attack(scale):
        variables = jax.tree.map(
            lambda x: scale * x, Linen().init(jax.random.key(1), IMAGES_OF_MODELS[:1])
        )
        return attacked(lambda key, images: Linen().apply(variables, images))

    attack(1.0)
    before = _pgd.__wrapped__._cache_size()
    attack(2.0)
    assert _pgd.__wrapped__._cache_size() == before
