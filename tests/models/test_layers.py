import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxadv.attacks import pgd
from jaxadv.core.convolution import convolution
from jaxadv.core.devices import traced_for
from jaxadv.models import layers, make_model
from jaxadv.models.layers import Conv
from jaxadv.models.ops import ACTIVATIONS, pooled_convolution

pytestmark = pytest.mark.slow  # compiles much

# size, height, width, in_channels, out_channels, strides, padding
CASES = {
    "first of bignet": (5, 32, 32, 3, 12, 1, "VALID"),
    "second of bignet": (5, 14, 14, 12, 32, 1, "VALID"),
    "stride 1, even": (3, 8, 8, 16, 17, 1, "SAME"),
    "stride 1, odd": (3, 7, 5, 3, 4, 1, "SAME"),
    "stride 1, even kernel": (2, 6, 7, 3, 4, 1, "SAME"),
    "stride 1, many channels": (5, 7, 6, 32, 64, 1, "VALID"),
    "stride 2, even": (3, 8, 6, 5, 7, 2, "SAME"),
    "stride 2, odd": (3, 7, 9, 5, 7, 2, "SAME"),
    "stride 2, one row unread": (3, 8, 8, 5, 7, 2, "VALID"),
    "stride 2, wide kernel": (5, 9, 8, 5, 7, 2, "SAME"),
    "stride 3": (3, 10, 8, 5, 7, 3, "SAME"),
    "1x1": (1, 6, 5, 3, 4, 1, "SAME"),
    "1x1, stride 2, even": (1, 6, 8, 3, 4, 2, "SAME"),
    "1x1, stride 2, odd": (1, 7, 5, 3, 4, 2, "VALID"),
    "1x1, padded": (1, 6, 5, 3, 4, 1, 1),
    "stride 2, padded as in PyTorch": (3, 8, 7, 5, 7, 2, 1),
}


def _reference(images, kernel, strides, padding):
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    return lax.conv_general_dilated(
        images, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_convolution_and_its_gradients_match_lax(case):
    size, height, width, in_channels, out_channels, strides, padding = case
    images, kernel = _arrays(
        (2, height, width, in_channels), (size, size, in_channels, out_channels)
    )

    def value_and_gradients(function):
        outputs, vjp = jax.vjp(function, images, kernel)
        return outputs, *vjp(jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape))

    def ours(images, kernel):
        return convolution(images, kernel, strides=strides, padding=padding)

    def expected(images, kernel):
        return _reference(images, kernel, strides, padding)

    actual, wanted = jax.jit(lambda: (value_and_gradients(ours), value_and_gradients(expected)))()
    for got, want in zip(actual, wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("case", ["first of bignet", "stride 1, even", "stride 2, odd"])
def test_input_gradient_has_no_dilated_or_transposed_convolution(case):
    # Attacks on a CPU are slow with a convolution of a dilated gradient, or with a kernel that XLA
    # transposes. Without the barrier XLA would restore the latter.
    size, height, width, in_channels, out_channels, strides, padding = CASES[case]
    images, kernel = _arrays(
        (2, height, width, in_channels), (size, size, in_channels, out_channels)
    )

    def loss(images):
        return convolution(images, kernel, strides=strides, padding=padding).sum()

    text = jax.jit(jax.grad(loss)).lower(images).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert "stablehlo.optimization_barrier" in text
    for line in convolutions:
        assert "lhs_dilate = [1, 1]" in line or "lhs_dilate" not in line
        assert "x[0, 1, i, o]->" in line


# size, height, width, in_channels, out_channels, padding
POOLED = {
    "first of bignet": (5, 32, 32, 3, 12, "VALID"),
    "blocked, padded": (5, 8, 6, 3, 4, "SAME"),
    "blocked, odd": (5, 9, 7, 3, 4, "SAME"),
    "blocked, odd output": (5, 9, 12, 3, 4, "VALID"),
    "not blocked": (3, 7, 8, 3, 4, "SAME"),
}


@pytest.mark.parametrize("accelerator", ["cpu", "tpu"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("case", POOLED.values(), ids=POOLED.keys())
def test_a_pooled_convolution_matches_separate_operations(case, activation, accelerator):
    size, height, width, in_channels, out_channels, padding = case
    arguments = _arrays(
        (2, height, width, in_channels), (size, size, in_channels, out_channels), (out_channels,)
    )

    def value_and_gradients(function):
        outputs, vjp = jax.vjp(function, *arguments)
        return outputs, *vjp(jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape))

    def ours(images, kernel, bias):
        return pooled_convolution(images, kernel, bias, activation, padding=padding)

    def expected(images, kernel, bias):
        outputs = _reference(images, kernel, 1, padding) + bias
        return nn.max_pool(ACTIVATIONS[activation](outputs), (2, 2), (2, 2))

    with traced_for(accelerator):
        both = jax.jit(lambda: (value_and_gradients(ours), value_and_gradients(expected)))
        actual, wanted = both()
    for got, want in zip(actual, wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


def test_few_channels_use_a_convolution_of_stride_two():
    arguments = _arrays((2, 32, 32, 3), (5, 5, 3, 12), (12,))
    pooled = jax.jit(lambda *arrays: pooled_convolution(*arrays, "relu", padding="VALID"))
    text = pooled.lower(*arguments).as_text()
    assert "(tensor<2x32x32x3xf32>, tensor<6x6x3x48xf32>)" in text


@pytest.mark.parametrize("case", ["second of bignet", "stride 2, odd", "1x1, stride 2, odd"])
def test_convolution_supports_vmap_over_kernels_and_images(case):
    size, height, width, in_channels, out_channels, strides, padding = CASES[case]
    images, kernels = _arrays(
        (3, 2, height, width, in_channels), (3, size, size, in_channels, out_channels)
    )

    def gradient(images, kernel):
        def loss(images):
            return (convolution(images, kernel, strides=strides, padding=padding) ** 2).sum()

        return jax.grad(loss)(images)

    mapped = jax.jit(jax.vmap(gradient))(images, kernels)
    for index in range(3):
        want = jax.jit(gradient)(images[index], kernels[index])
        np.testing.assert_allclose(
            mapped[index], want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max())
        )


def test_other_backends_use_the_convolution_of_xla():
    images, kernel = _arrays((1, 6, 6, 3), (5, 5, 3, 4))
    with traced_for("gpu"):
        jaxpr = jax.make_jaxpr(lambda x, k: convolution(x, k))(images, kernel)
        pooled = jax.make_jaxpr(lambda x, k: pooled_convolution(x, k, jnp.zeros(4), "relu"))(
            images, kernel
        )
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv_general_dilated"]
    names = [equation.primitive.name for equation in pooled.eqns]
    assert next(name for name in names if name != "broadcast_in_dim") == "conv_general_dilated"
    assert "optimization_barrier" not in names
    # Windows of six axes would be padded to tiles on a TPU.
    assert max(variable.aval.ndim for one in pooled.eqns for variable in one.outvars) == 4


@pytest.fixture(params=["cpu", "tpu"])
def accelerator(request):
    with traced_for(request.param):
        yield


def max_pool(images):
    """A max pool of non-negative images, as a pooled convolution."""
    return pooled_convolution(images, jnp.ones((1, 1, 1, 1)), jnp.zeros(1), "relu")


@pytest.mark.usefixtures("accelerator")
def test_max_pool_takes_the_maximum_of_each_window_and_drops_odd_edges():
    images = jnp.arange(2 * 5 * 5, dtype=jnp.float32).reshape(2, 5, 5, 1)
    expected = [[[6, 8], [16, 18]], [[31, 33], [41, 43]]]
    np.testing.assert_array_equal(max_pool(images)[..., 0], jnp.array(expected, jnp.float32))


@pytest.mark.usefixtures("accelerator")
def test_max_pool_sends_the_gradient_to_the_maximum_and_shares_it_at_ties():
    images = jnp.array([[2, 3, 1, 1], [4, 1, 1, 1], [6, 6, 5, 2], [6, 2, 2, 5]], jnp.float32)
    scale = jnp.array([[1, 4], [3, 2]], jnp.float32)

    def loss(images):
        return (max_pool(images[None, :, :, None])[0, :, :, 0] * scale).sum()

    expected = [[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [1, 0, 0, 1]]
    np.testing.assert_array_equal(jax.grad(loss)(images), jnp.array(expected, jnp.float32))


def test_conv_adds_a_bias_and_is_initialised_he_normal():
    (images,) = _arrays((2, 4, 4, 32))
    layer = Conv(64, size=3)
    params = jax.jit(layer.init)(jax.random.key(0, impl="rbg"), images)["params"]
    assert params["kernel"].std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
    shifted = {**params, "bias": params["bias"] + jnp.arange(64.0)}
    difference = layer.apply({"params": shifted}, images) - layer.apply({"params": params}, images)
    np.testing.assert_allclose(
        difference, jnp.broadcast_to(jnp.arange(64.0), (2, 4, 4, 64)), atol=1e-4
    )


def test_gelu_is_the_exact_one():
    # 1 Phi(1), the normal distribution function; the tanh form gives 0.84119.
    assert float(ACTIVATIONS["gelu"](jnp.float32(1))) == pytest.approx(0.8413447, abs=1e-6)


@pytest.mark.parametrize("name", ["net", "biggernet", "wrn_7_1"])
def test_an_attack_gives_the_same_images_with_plain_convolutions(name, monkeypatch):
    model = make_model(name, 10)
    images = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def attack(norm, eps):
        return pgd(
            jax.random.key(2), lambda key, images: model.apply(variables, images), images,
            jnp.arange(4), eps=eps, step_size=eps / 4, num_steps=5, norm=norm,
        )  # fmt: skip

    def plain_pooled_convolution(images, kernel, bias, activation, *, padding):
        outputs = ACTIVATIONS[activation](_reference(images, kernel, 1, padding) + bias)
        return nn.max_pool(outputs, (2, 2), (2, 2))

    budgets = {"l2": 1.0, "linf": 8 / 255}
    ours = {norm: attack(norm, eps) for norm, eps in budgets.items()}
    monkeypatch.setattr(
        layers, "convolution", lambda x, k, *, strides, padding: _reference(x, k, strides, padding)
    )
    monkeypatch.setattr(layers, "pooled_convolution", plain_pooled_convolution)
    plain = {norm: attack(norm, eps) for norm, eps in budgets.items()}
    np.testing.assert_allclose(ours["l2"], plain["l2"], atol=1e-5)
    # Rounding decides the sign of gradients near 0.
    assert np.isclose(ours["linf"], plain["linf"], atol=1e-5).mean() > 0.999
    assert np.abs(ours["linf"] - images).max() > 0.03
