"""The benchmark of accelerators, with the CPU as the accelerator."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import accelerators
from benchmarks.accelerator_programs import attack
from benchmarks.accelerators import (
    BOUNDS,
    PROGRAMS,
    Program,
    Target,
    check_bounds,
    compile_entry,
    largest,
)
from benchmarks.program_costs import Operation
from jaxadv.core.devices import AXIS, pmap_batches
from jaxadv.models import factory

CPU = Target("cpu", range(2), jax.devices, 1e9, {"float32": 1e12})
WEIGHTS, ROWS = np.ones((512, 512), np.float32), np.ones((2048, 512), np.float32)
PRODUCT = 2 * 1024 * 512 * 512 / 1e9  # GFLOP of a device: half of the rows


def steps(weights, rows):
    rows = rows @ weights
    return lax.fori_loop(0, jnp.int32(weights[0, 0]), lambda _, rows: rows @ weights, rows)


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
    assert result["gflops"] == pytest.approx(11 * PRODUCT, rel=1e-3)
    assert result["without_trips"]["gflops"] == pytest.approx(PRODUCT, rel=1e-3)
    # Each product reads and writes 2 MiB of rows, and reads 1 MiB of weights.
    traffic = result["traffic_mib"] - result["without_trips"]["traffic_mib"]
    assert 10 * 5 <= traffic <= 10 * 10


def test_gradients_of_all_classes_are_traced_for_a_tpu():
    """Of kernels JAX cannot batch them along the examples and the classes; attacks need none."""
    tpu = CPU._replace(platform="tpu")
    program = Program(
        partial(attack, "net", "deepfool", norm="l2", num_steps=1), trips=((1,),), chips=2
    )
    with (
        mock.patch.dict(accelerators.TARGETS, cpu=tpu),
        mock.patch.dict(accelerators.PROGRAMS, entry=program),
    ):
        assert compile_entry("cpu", "entry")[""]["gflops"] > 0


def test_an_entry_with_another_number_of_programs_is_an_error():
    with (
        mock.patch.dict(accelerators.TARGETS, cpu=CPU),
        mock.patch.dict(accelerators.PROGRAMS, entry=Program(lambda: None)),
        pytest.raises(ValueError, match="entry has 0 programs, not 1"),
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


def test_the_time_of_a_training_is_predicted_from_its_step():
    name = "train configs/wrn_28_10.py"
    costs = {"gflops": 1e3, "traffic_mib": 0.0, "compiler_ms": 0.0}
    step = {**costs, "trips": [10], "without_trips": {**costs, "gflops": 500.0}}
    # 400 epochs of 95 batches in 49,000 images; a TFLOP takes 1 / 495 s.
    predicted = accelerators.predict_job({name: {"programs": {"": step}}}, name, "h100")
    assert predicted == f"h100, {name}: {400 * 95 / 495:.1f} s for products at the peak, " + (
        "0.0 s for traffic"
    )


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


def test_every_named_model_has_a_training_step():
    named = set(factory._MODELS) | {"wrn_13_10", "vit_3_128", "wideresnet_28_10"}
    assert {f"train {model}" for model in named} <= set(PROGRAMS)


def test_entries_may_share_a_mapped_function():
    mapped = []

    def call():
        if not mapped:
            mapped.append(pmap_batches(steps, num_replicated=1, num_batches=1))
        mapped[0](WEIGHTS, ROWS)

    entries = {"first": Program(call), "second": Program(call, trips=((3,),))}
    with (
        mock.patch.dict(accelerators.TARGETS, cpu=CPU),
        mock.patch.dict(accelerators.PROGRAMS, entries),
    ):
        first, second = (compile_entry("cpu", name)[""] for name in entries)
    assert second["gflops"] == pytest.approx(4 * PRODUCT, rel=1e-3)
    assert first["gflops"] == pytest.approx(2 * PRODUCT, rel=1e-3)
