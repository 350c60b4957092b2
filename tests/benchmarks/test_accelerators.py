"""The benchmark of accelerators, with the CPU as the accelerator."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import accelerators
from benchmarks.accelerators import BOUNDS, Program, Target, check_bounds, compile_entry, largest
from benchmarks.program_costs import Operation
from jaxadv.core.devices import AXIS, pmap_batches

CPU = Target("cpu", jax.devices, 1e9, {"float32": 1e12})
WEIGHTS, ROWS = np.ones((4, 4), np.float32), np.arange(24, dtype=np.float32).reshape(6, 4)


def steps(weights, rows):
    def step(_, rows):
        return rows @ weights

    return lax.fori_loop(0, jnp.int32(weights.sum()), step, rows)


def whole_output(weights, rows):
    return lax.pmean(steps(weights, rows).sum(), AXIS)


@pytest.mark.parametrize(("fn", "is_split"), [(steps, True), (whole_output, False)])
def test_programs_are_compiled_and_give_zeros_in_the_shapes_of_pmap(fn, is_split):
    def call():
        mapped = pmap_batches(fn, num_replicated=1, num_batches=1, sharded_output=is_split)
        return mapped(WEIGHTS, ROWS)

    expected, outputs = call(), []
    program = Program(lambda: outputs.append(call()), trips=((10,),), chips=2)
    with (
        mock.patch.dict(accelerators.TARGETS, cpu=CPU),
        mock.patch.dict(accelerators.PROGRAMS, entry=program),
    ):
        (result,) = compile_entry("cpu", "entry").values()
    assert np.shape(outputs[0]) == np.shape(expected)
    assert not np.any(outputs[0])
    # Of one device: three rows.
    assert result["gflops"] == pytest.approx(10 * 2 * 3 * 4 * 4 / 1e9, abs=1e-3)
    assert result["without_trips"]["gflops"] == 0
    assert result["traffic_mib"] >= 0


def test_an_entry_with_another_number_of_programs_is_an_error():
    with (
        mock.patch.dict(accelerators.TARGETS, cpu=CPU),
        mock.patch.dict(accelerators.PROGRAMS, entry=Program(lambda: None)),
        pytest.raises(SystemExit, match="0 programs, not 1"),
    ):
        compile_entry("cpu", "entry")


def test_a_program_beyond_its_bounds_is_reported():
    name = next(iter(BOUNDS))
    seconds, mib = BOUNDS[name]["v5e"]
    fine = {"cpu_seconds": seconds, "temporary_mib": mib}
    assert check_bounds(name, "v5e", {"": fine}) == []
    (sentence,) = check_bounds(name, "v5e", {"": {**fine, "temporary_mib": 562.0}})
    assert sentence == f"v5e: {name} needs 562.0 MiB of temporary memory, more than {mib}"
    (sentence,) = check_bounds(name, "v5e", {"": {"error": "did not finish in 900 s"}})
    assert "does not compile: did not finish in 900 s" in sentence


def test_the_largest_operations_have_their_share():
    operations = [
        Operation("a.1", "fusion", "jit(f)/conv", 10, 60),
        Operation("a.2", "fusion", "jit(f)/conv", 10, 20),
        Operation("b", "copy", "", 80, 20),
    ]
    assert largest(operations) == [
        {"operation": "conv", "share": 0.8},
        {"operation": "b", "share": 0.2},
    ]
