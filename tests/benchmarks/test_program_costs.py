"""FLOPs and memory traffic of programs with known costs."""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.program_costs import count_flops, memory_traffic, residual_bytes


def flops(fn, *args, trips=()):
    return count_flops(jax.make_jaxpr(fn)(*args).jaxpr, trips)


def test_flops_of_products_and_convolutions():
    x, w = jnp.ones((4, 5)), jnp.ones((5, 6))
    assert flops(jnp.matmul, x, w) == 2 * 4 * 5 * 6
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 7))

    def conv(images, kernel, strides=(1, 1)):
        return lax.conv_general_dilated(
            images, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    forward = 2 * 2 * 8 * 8 * 9 * 3 * 7
    assert flops(conv, images, kernel) == forward
    # The gradient of a strided convolution has as many products as the convolution.
    strided = jax.grad(lambda images: conv(images, kernel, (2, 2)).sum())
    assert flops(strided, images) == forward / 4


def test_flops_of_unused_products_do_not_count():
    x, w = jnp.ones((4, 5)), jnp.ones((5, 6))

    def fn(x, w):
        unused = x @ w
        return x + 1, unused.shape[0]

    assert flops(jax.jit(fn), x, w) == 0


def test_flops_of_loops_count_their_trips():
    w = jnp.ones((5, 5))

    def scanned(x):
        return lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    def traced(x, n):
        return lax.fori_loop(0, n, lambda _, x: scanned(x), x)

    x = jnp.ones((5, 5))
    assert flops(jax.jit(scanned), x) == 7 * 250
    assert flops(traced, x, 3, trips=(3,)) == 3 * 7 * 250

    def nested(x, n, m):
        return lax.fori_loop(0, m, lambda _, x: traced(x, n), x)

    assert flops(nested, x, 3, 2, trips=(2, 3)) == 2 * 3 * 7 * 250
    assert flops(nested, x, 3, 2, trips=(2,)) == 2 * 7 * 250


def test_traffic_of_a_program_with_a_loop():
    hlo = """HloModule jit_f, is_scheduled=true

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
  %exp.1 = f32[8,128]{1,0:T(8,128)S(1)} exponential(%x), backend_config={"estimated_cycles":"50"}
  %neg.1 = f32[8,128]{1,0:T(8,128)} negate(%exp.1)
  ROOT %out = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i, %neg.1)
}

%condition (arg.1: (s32[], f32[8,128])) -> pred[] {
  %arg.1 = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%fused (param_0: u8[1000,128], param_1: s32[8]) -> u8[8,128] {
  %param_0 = u8[1000,128]{1,0} parameter(0)
  %param_1 = s32[8]{0} parameter(1)
  ROOT %gather.1 = u8[8,128]{1,0} gather(%param_0, %param_1), slice_sizes={1,128}
}

ENTRY %main (data: u8[1000,128], rows: s32[8], x: f32[3,5]) -> f32[8,128] {
  %data = u8[1000,128]{1,0} parameter(0)
  %rows = s32[8]{0} parameter(1)
  %x.1 = f32[3,5]{1,0:T(8,128)} parameter(2)
  %taken = u8[8,128]{1,0} fusion(%data, %rows), kind=kLoop, calls=%fused
  %padded = f32[3,5]{1,0:T(8,128)} negate(%x.1), metadata={op_name="jit(f)/neg"}
  %start = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%rows, %padded)
  %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
    found = {one.name: one for one in memory_traffic(hlo, trips=(10,))}
    assert set(found) == {"taken", "padded", "exp.1", "neg.1"}
    assert found["taken"].bytes == 8 * 128 + 8 * 128 + 8 * 4  # not the whole of 1,000 rows
    assert found["padded"].bytes == 2 * 8 * 128 * 4  # padded to a tile
    assert found["padded"].source == "jit(f)/neg"
    assert found["exp.1"].bytes == 10 * 4096  # its result stays on the chip
    assert found["exp.1"].cycles == 500
    assert found["neg.1"].bytes == 10 * 4096


def test_traffic_of_a_compiled_program():
    def fn(x):
        return lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=5)[0]

    x = jnp.ones((64, 64))
    operations = memory_traffic(jax.jit(fn).lower(x).compile().as_text(), trips=())
    total = sum(one.bytes for one in operations)
    # Each product and each sine reads and writes at least one array.
    assert 5 * 4 * x.nbytes <= total <= 5 * 8 * x.nbytes


def test_residuals_of_a_product_are_its_factors():
    x, w = jnp.ones((4, 5)), jnp.ones((5, 6))
    assert residual_bytes(jnp.matmul, x, w) == x.nbytes + w.nbytes
