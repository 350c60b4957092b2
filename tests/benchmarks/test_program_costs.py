"""FLOPs and memory traffic of programs with known costs."""

import jax
import jax.numpy as jnp
import pytest
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

    # A 3x3 kernel over 8 pixels has 22 products a row without those with the padding.
    assert flops(conv, images, kernel) == 2 * 2 * 22 * 22 * 3 * 7
    gradient = jax.grad(lambda images: conv(images, kernel).sum())
    assert flops(gradient, images) == 2 * 2 * 22 * 22 * 3 * 7
    # With stride 2 there are 11, also in the gradient, whose images are dilated with zeros.
    strided = jax.grad(lambda images, kernel: conv(images, kernel, (2, 2)).sum(), argnums=(0, 1))
    assert flops(strided, images, kernel) == 2 * (2 * 2 * 11 * 11 * 3 * 7)


def test_flops_of_unused_products_do_not_count():
    x, w = jnp.ones((4, 5)), jnp.ones((5, 6))

    def fn(x, w):
        unused = x @ w
        return x + 1, unused.shape[0]

    assert flops(jax.jit(fn), x, w) == 0
    inner = jax.jit(lambda x, w: (x @ w, x + 1))
    assert flops(lambda x, w: inner(x, w)[1], x, w) == 0
    assert flops(lambda x, w: inner(x, w)[0], x, w) == 2 * 4 * 5 * 6


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


def test_traffic_of_a_loop_that_counts_to_a_constant():
    hlo = """HloModule jit_f

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[], f32[8,128]{1,0}) parameter(0)
  %x = f32[8,128]{1,0} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
  %exp.1 = f32[8,128]{1,0} exponential(%x)
  ROOT %out = (s32[], f32[8,128]{1,0}) tuple(%i, %exp.1)
}

%condition (arg.1: (s32[], f32[8,128])) -> pred[] {
  %arg.1 = (s32[], f32[8,128]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)} constant(37)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

ENTRY %main (start: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %start = (s32[], f32[8,128]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,128]{1,0}) while(%start), condition=%condition, body=%body
}
"""
    (exponential,) = memory_traffic(hlo, trips=(10,))
    assert exponential.bytes == 37 * 2 * 4096


def entry(*instructions):
    lines = "\n".join(f"  {line}" for line in instructions)
    return f"HloModule f\n\n{FUSED}\nENTRY %main (p: f32[1024,1024]) -> f32[4] {{\n{lines}\n}}\n"


FUSED = """
%updated (param_0: f32[1024,1024], param_1: f32[1,1024], param_2: s32[]) -> f32[1024,1024] {
  %param_0 = f32[1024,1024]{1,0} parameter(0)
  %param_1 = f32[1,1024]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %update = f32[1024,1024]{1,0} dynamic-update-slice(%param_0, %param_1, %param_2, %param_2)
}

%small (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  ROOT %negated = f32[1024]{0} negate(%a)
}

%large (b: f32[1024,1024]) -> f32[1024,1024] {
  %b = f32[1024,1024]{1,0} parameter(0)
  ROOT %negated.1 = f32[1024,1024]{1,0} negate(%b)
}
"""
BIG = "%p = f32[1024,1024]{1,0} parameter(0)"
ROW = "%row = f32[1,1024]{1,0} parameter(1)"
INDEX = "%i = s32[] parameter(2)"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("%s = f32[4,1024]{1,0} slice(%p), slice={[0:4], [0:1024]}", 2 * 4 * 4096),
        ("%s = f32[4,1024]{1,0} dynamic-slice(%p, %i, %i)", 2 * 4 * 4096 + 2 * 4),
        ("%u = f32[1024,1024]{1,0} dynamic-update-slice(%p, %row, %i, %i)", 2 * 4096),
        ("%u = f32[1024,1024]{1,0} fusion(%p, %row, %i), calls=%updated", 3 * 4096 + 4),
        (
            "%c = (f32[1024,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, u32[]) copy-start(%p)",
            4 * 2**20,
        ),
        (
            "%c = ((f32[1024,1024]{1,0}), f32[4,1024]{1,0:S(1)}, s32[]) slice-start(%p)",
            4 * 4096,
        ),
        (
            "%c = f32[1024]{0} conditional(%i, %row, %p), branch_computations={%small, %large}",
            2 * 4 * 2**20,
        ),
        ("%c = f32[1024,1024]{1,0} call(%p), to_apply=%large", 2 * 4 * 2**20),
    ],
)
def test_traffic_of_an_instruction(instruction, expected):
    operations = memory_traffic(entry(BIG, ROW, INDEX, instruction), trips=())
    assert sum(one.bytes for one in operations) == expected


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
