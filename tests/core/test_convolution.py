import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxadv.core.convolution import convolution
from jaxadv.core.devices import traced_for

# size, height, width, in_channels, strides, padding
CASES = {
    "first of bignet": (5, 32, 32, 3, 1, "VALID"),
    "first of wrn": (3, 9, 8, 3, 1, "SAME"),
    "even kernel, stride 2": (4, 9, 8, 1, 2, "SAME"),
    "one row unread": (2, 7, 9, 4, 2, "VALID"),
    "1x1": (1, 6, 5, 3, 2, "SAME"),
}


def _arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_few_channels_on_a_tpu_match_lax_in_values_and_gradients(case):
    size, height, width, channels, strides, padding = case
    images, kernel = _arrays((2, height, width, channels), (size, size, channels, 6))

    def value_and_gradients(function):
        outputs, vjp = jax.vjp(function, images, kernel)
        return outputs, *vjp(jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape))

    def ours(images, kernel):
        return convolution(images, kernel, strides=strides, padding=padding)

    def expected(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    with traced_for("tpu"):
        actual = jax.jit(lambda: value_and_gradients(ours))()
    wanted = jax.jit(lambda: value_and_gradients(expected))()
    for got, want in zip(actual, wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize(
    ("platform", "channels", "wide"), [("tpu", 3, 12), ("tpu", 16, 16), ("gpu", 3, 3)]
)
def test_only_a_tpu_gets_channels_of_zeros_in_the_kernel_gradient_of_few(platform, channels, wide):
    images, kernel = _arrays((2, 8, 8, channels), (3, 3, channels, 6))
    with traced_for(platform):
        gradient = jax.jit(jax.grad(lambda kernel: convolution(images, kernel).sum()))
        text = gradient.lower(kernel).as_text()
    # The sum is linear, so its gradient needs no forward pass.
    (convolved,) = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert f"(tensor<2x8x8x{wide}xf32>" in convolved
