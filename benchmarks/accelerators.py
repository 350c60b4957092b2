"""Compile the programs of a run for a TPU v5e and an H100, ahead of time, on a CPU.

The compilers of both accelerators need no device. Each has an environment, so that a process loads
the packages of one alone:

    pip install -e ".[aot-tpu]" -c constraints.txt
    PYTHONPATH=. python benchmarks/accelerators.py v5e --out results/accelerators

    pip install -e ".[aot-cuda12]" -c constraints.txt
    PYTHONPATH=. python benchmarks/accelerators.py h100 --out results/accelerators

`--check` compiles the programs that have bounds, as CI does, and fails if a bound is exceeded.
`--table` prints the table of docs/accelerators.md and the predictions from the file in --out.

`jaxadv.core.devices.pmap_batches` alone maps over devices, with `jax.pmap`. Here `jax.shard_map`
takes its place, over a mesh of one to eight accelerators and along the same axis. Nothing is
executed: the programs return zeros. Other processes compile, with a limit of CPU time for each
entry, which other jobs on the machine hardly change. Programs are kept in the folder
JAXADV_COMPILED, if it is set, so that other counts of their costs compile nothing.
"""

import argparse
import gzip
import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from benchmarks.accelerator_programs import (
    BOUNDS,
    JOBS,
    NUM_IMAGES,
    PROGRAMS,
    Program,
)
from benchmarks.program_costs import Operation, Trips, count_flops, memory_traffic
from jaxadv.core.devices import AXIS, num_cores, traced_for
from jaxadv.core.types import first_line
from jaxadv.runs.workdir import provenance
from jaxadv.training.curriculum import linear_budget

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no search for a TPU in the cloud
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock, which a killed process leaves, guards a real TPU
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # no trial runs on a GPU
    "TF_CPP_MIN_LOG_LEVEL": "3",  # of the compilers' own messages, errors only
}
_START_SECONDS = 60  # of a process, beside its compiler
_PER_PROCESS = 6  # entries: the TPU's compiler keeps about 500 MB for each
_FOLDER_OF_COMPILED = "JAXADV_COMPILED"
MIB = 2**20
NUM_LARGEST = 10


class Target(NamedTuple):
    """An accelerator.

    Attributes:
      platform: name of its platform in JAX.
      chips: their numbers, of those that `devices` describes.
      devices: returns descriptions of its devices.
      bytes_per_second: of its main memory.
      flops_per_second: peak by the precision of products, from the makers' data sheets.
    """

    platform: str
    chips: range
    devices: Callable[[], list[Any]]
    bytes_per_second: float
    flops_per_second: dict[str, float]


def _v5e_devices() -> list[Any]:
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices


def _h100_devices() -> list[Any]:
    import jax_plugins.xla_cuda12 as plugin

    with suppress(RuntimeError):  # there is no CUDA, but the plugin is registered all the same
        plugin.initialize()
    description = Path(__file__).with_name("h100.txtpb").read_text()
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=description
    ).devices


_V5E_BF16 = 197e12
TARGETS = {
    # A float32 product is six bfloat16 products on a TPU.
    "v5e": Target(
        "tpu", range(8), _v5e_devices, 819e9,
        {"bfloat16": _V5E_BF16, "bfloat16 operands": _V5E_BF16, "float32": _V5E_BF16 / 6},
    ),
    # The precision "bfloat16" of JAX is TF32 for float32 operands on a GPU.
    "h100": Target(
        "gpu", range(1), _h100_devices, 3.35e12,
        {"bfloat16": 495e12, "bfloat16 operands": 989e12, "float32": 67e12},
    ),
}  # fmt: skip
# Of a v5e: four units of 128 x 128 multiply and add in each cycle.
_V5E_CYCLES_PER_SECOND = _V5E_BF16 / (4 * 128 * 128 * 2)


def main() -> None:
    """Compile programs, or print the table of those that were compiled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("programs", nargs="*", help="names of entries; by default all")
    parser.add_argument("--limit", type=int, default=900, help="CPU seconds for each entry")
    parser.add_argument("--out", type=Path, help="folder of TARGET.json; by default none")
    parser.add_argument("--missing", action="store_true", help="only what TARGET.json lacks")
    parser.add_argument("--check", action="store_true", help="check the bounds of CI")
    parser.add_argument("--table", action="store_true", help="print the tables of --out")
    parser.add_argument("--here", action="store_true", help="compile in this process")
    options = parser.parse_intermixed_args()
    known = BOUNDS if options.check else PROGRAMS
    if unknown := set(options.programs) - set(known):
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    path = options.out and options.out / f"{options.target}.json"
    if options.table and not (path and path.exists()):
        parser.error("--table needs --out with a folder of results")
    if options.here:
        _compile_here(options.target, options.programs, options.limit)
    elif options.table:
        print_tables(json.loads(path.read_text()), options.target)
    elif options.check:
        sys.exit("\n".join(_check(options.target, options.programs or list(BOUNDS))) or None)
    else:
        names = options.programs or list(PROGRAMS)
        compile_entries(options.target, names, options.limit, path, options.missing)


def compile_entries(
    target: str, names: list[str], limit: int, path: Path | None, only_missing: bool
) -> None:
    """Compile entries, print a line for each program, and write the results to a file."""
    os.environ |= ENVIRONMENT
    # JAX logs a traceback for a plugin without its GPU.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)
    jax.config.update("jax_num_cpu_devices", num_cores())  # as `provenance` describes the machine
    stored = json.loads(path.read_text()) if path and path.exists() else {}
    if only_missing:
        names = [name for name in names if name not in stored]
    too_large = [name for name in names if PROGRAMS[name].chips > len(TARGETS[target].chips)]
    if too_large:
        print(f"{target} is one chip and leaves out {', '.join(too_large)}")
        names = [name for name in names if name not in too_large]
    began = time.monotonic()
    for name, results in _compile_in_processes(target, names, limit):
        if path:
            source = provenance(time.monotonic() - began)
            source["device"] = f"compiled on {source['device']}"
            stored[name] = {"programs": results, "provenance": source}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(stored, indent=1) + "\n")
        began = time.monotonic()


def _check(target: str, names: list[str]) -> list[str]:
    """Compile entries and return a sentence for each bound that they exceed."""
    os.environ |= ENVIRONMENT
    limit = int(max(BOUNDS[name][target][0] for name in names)) + _START_SECONDS
    return [
        failure
        for name, results in _compile_in_processes(target, names, limit)
        for failure in check_bounds(name, target, results)
    ]


def check_bounds(name: str, target: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence for each bound that the program of an entry exceeds."""
    (result,) = results.values()
    if "error" in result:
        return [f"{target}: {name} does not compile: {result['error']}"]
    seconds, mib = BOUNDS[name][target]
    measured = {
        "cpu_seconds": (seconds, "CPU seconds to compile"),
        "temporary_mib": (mib, "MiB of temporary memory"),
    }
    return [
        f"{target}: {name} needs {result[key]:.1f} {what}, more than {bound:g}"
        for key, (bound, what) in measured.items()
        if result[key] > bound
    ]


def _full_name(name: str, part: str) -> str:
    return f"{name}: {part}" if part else name


def _summary(result: dict[str, Any]) -> str:
    if "error" in result:
        return result["error"]
    return (
        f"compiled in {result['cpu_seconds']:6.1f} CPU s, {result['temporary_mib']:8.1f} MiB "
        f"temporary, {result['gflops']:10.1f} GFLOP, {result['traffic_mib']:10.1f} MiB moved"
    )


def _compile_in_processes(
    target: str, names: list[str], limit: int
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield each entry with its results; a process compiles entries until one of them ends it."""
    left = list(names)
    while left:
        num_chips = PROGRAMS[left[0]].chips
        group = takewhile(
            lambda name, chips=num_chips: PROGRAMS[name].chips == chips, left[:_PER_PROCESS]
        )
        command = [sys.executable, __file__, target, *group, "--here", "--limit", str(limit)]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                yield _printed(target, left.pop(0), json.loads(line))
            code = process.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"exit code {code}"])[-1]
        if code:
            if code == -signal.SIGXCPU:
                last = f"did not finish in {limit} s of CPU time"
            yield _printed(target, left.pop(0), {"": {"error": last[:300]}})


def _printed(
    target: str, name: str, results: dict[str, dict[str, Any]]
) -> tuple[str, dict[str, dict[str, Any]]]:
    for part, result in results.items():
        print(f"{target:5} {_full_name(name, part):50} {_summary(result)}", flush=True)
    return name, results


def _compile_here(target: str, names: list[str], limit: int) -> None:
    """Print the results of each entry as a line of JSON, within a limit of CPU seconds for each."""
    jax.config.update("jax_num_cpu_devices", PROGRAMS[names[0]].chips)
    for name in names:
        soon = int(time.process_time()) + limit
        resource.setrlimit(resource.RLIMIT_CPU, (soon, resource.RLIM_INFINITY))
        try:
            results = compile_entry(target, name)
        except ModuleNotFoundError as error:
            results = {"": {"error": f"{error}: install the extra of {target}, see --help"}}
        except Exception as error:  # of the compilers
            results = {"": {"error": f"{type(error).__name__}: {first_line(error)}"}}
        print(json.dumps(results), flush=True)


@dataclass
class Recording:
    """The programs of an entry so far.

    Attributes:
      program: the entry.
      accelerator: where it runs.
      costs: of each program.
      outputs: the shapes of the outputs of each program.
    """

    program: Program
    accelerator: Target
    costs: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[Any, PyTree] = field(default_factory=dict)


# The last one is that of the entry that is being compiled. jaxadv caches mapped functions, which
# may serve several entries.
_recordings: list[Recording] = []


def compile_entry(target: str, name: str) -> dict[str, dict[str, Any]]:
    """Compile the programs of an entry in this process; return what they cost, by their names.

    JAX must have as many CPU devices as the entry has chips.
    """
    program, accelerator = PROGRAMS[name], TARGETS[target]
    mesh = Mesh(accelerator.devices()[: program.chips], (AXIS,))
    _recordings.append(Recording(program, accelerator))

    def compiling_pmap(fn: Callable, **options: Any) -> Callable:
        return _compiling(fn, mesh, options)

    with traced_for(accelerator.platform), mock.patch.object(jax, "pmap", compiling_pmap):
        further = program.call() or {}
    costs = _recordings.pop().costs
    if len(costs) != len(program.names):
        raise ValueError(f"{name} has {len(costs)} programs, not {len(program.names)}")
    if "activations" in further:
        costs[0]["activations_mib"] = round(further["activations"] / MIB, 1)
    return dict(zip(program.names, costs, strict=True))


def _compiling(fn: Callable, mesh: Mesh, options: dict[str, Any]) -> Callable:
    """Return a stand-in for `jax.pmap(fn)`, which compiles for the mesh and returns zeros."""
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    is_split = options["out_axes"] == 0

    def of_device(first: PyTree, rest: dict[str, PyTree]) -> PyTree:
        batches = jax.tree.map(lambda array: array[0], rest["batches"])
        output = fn(first, {**rest, "batches": batches})
        return jax.tree.map(lambda array: array[None], output) if is_split else output

    mapped = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, {"replicated": whole, "batches": split}),
        out_specs=split if is_split else whole,
        check_vma=False,
    )
    jitted = jax.jit(mapped, donate_argnums=options["donate_argnums"])

    def placed(tree: PyTree, spec: PartitionSpec) -> PyTree:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda tree: tree, tree),
        )

    def call(first: PyTree, rest: dict[str, PyTree]) -> PyTree:
        specs = {"replicated": whole, "batches": split}
        arguments = (
            placed(first, whole), {name: placed(rest[name], specs[name]) for name in specs}
        )  # fmt: skip
        recording = _recordings[-1]
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arguments)
        key = id(jitted), str(shapes)
        if key not in recording.outputs:
            program, number = recording.program, len(recording.costs)
            costs, recording.outputs[key] = compile_program(
                jitted,
                arguments,
                program.trips[min(number, len(program.trips) - 1)],
                program.precision,
                recording.accelerator,
            )
            recording.costs.append(costs)
        outputs = recording.outputs[key]
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)

    return call


def compile_program(
    jitted: Any, arguments: tuple, trips: Trips, precision: str, accelerator: Target
) -> tuple[dict[str, Any], PyTree]:
    """Compile a program; return its costs and the shapes of its outputs.

    Only the compiler for the TPU estimates the time of its instructions.
    """
    traced = jitted.trace(*arguments)
    compiled = _compile(traced.lower(), accelerator.platform)
    text = compiled.pop("hlo")
    operations = memory_traffic(text, trips)
    costs = _costs(count_flops(traced.jaxpr.jaxpr, trips), operations)
    fixed = _costs(count_flops(traced.jaxpr.jaxpr, (0,)), memory_traffic(text, (0,)))
    return {
        **compiled,
        "trips": trips,
        **costs,
        **roofline(costs, precision, accelerator),
        "without_trips": fixed,
        "largest": largest(operations),
    }, traced.out_info


def _compile(lowered: Any, platform: str) -> dict[str, Any]:
    """Compile a program once, or read it from the folder of compiled programs if there is one."""
    text = lowered.as_text()  # which may be the same for two platforms
    folder = os.environ.get(_FOLDER_OF_COMPILED)
    name = f"{platform}-{hashlib.sha256(text.encode()).hexdigest()}.json.gz"
    path = Path(folder) / name if folder else None
    if text not in _compiled:
        if path and path.exists():
            _compiled[text] = json.loads(gzip.decompress(path.read_bytes()))
        else:
            _compiled[text] = _compile_now(lowered)
    if path and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(json.dumps(_compiled[text]).encode()))
    return dict(_compiled[text])


_compiled: dict[str, dict[str, Any]] = {}


def _compile_now(lowered: Any) -> dict[str, Any]:
    began = time.process_time()
    compiled = lowered.compile()
    seconds, memory = time.process_time() - began, compiled.memory_analysis()
    return {
        "cpu_seconds": round(seconds, 1),
        "temporary_mib": round(memory.temp_size_in_bytes / MIB, 1),
        "arguments_mib": round(memory.argument_size_in_bytes / MIB, 1),
        "hlo": compiled.as_text(),
    }


def _costs(flops: float, operations: list[Operation]) -> dict[str, float]:
    cycles = sum(one.cycles for one in operations)
    return {
        "gflops": round(flops / 1e9, 3),
        "traffic_mib": round(sum(one.bytes for one in operations) / MIB, 2),
        "compiler_ms": round(1e3 * cycles / _V5E_CYCLES_PER_SECOND, 4),
    }


def roofline(costs: dict[str, float], precision: str, accelerator: Target) -> dict[str, float]:
    """Return the milliseconds of products at the chip's peak, and of traffic at its bandwidth."""
    products = costs["gflops"] / accelerator.flops_per_second[precision] * 1e12
    traffic = costs["traffic_mib"] * MIB / accelerator.bytes_per_second * 1e3
    return {"products_ms": round(products, 4), "traffic_ms": round(traffic, 4)}


def predict_job(stored: dict[str, dict[str, Any]], name: str, target: str) -> str:
    """Return the predicted time of all training steps of a config on CIFAR-10.

    The validation after each epoch and the evaluation are not included.

    Args:
      stored: results of a target.
      name: entry of `JOBS`.
      target: of `TARGETS`.
    """
    config, program = JOBS[name](), PROGRAMS[name]
    (result,) = stored[name]["programs"].values()
    num_images = round(NUM_IMAGES * (1 - config.data.validation_fraction))
    num_epochs, num_updates = config.train.num_epochs, num_images // config.train.batch_size
    seconds = {"products_ms": 0.0, "traffic_ms": 0.0, "compiler_ms": 0.0}
    for epoch in range(num_epochs):
        num_steps = linear_budget(config.attack, epoch, num_epochs).num_steps
        costs = {
            key: fixed + (result[key] - fixed) * num_steps / result["trips"][0]
            for key, fixed in result["without_trips"].items()
        }
        costs |= roofline(costs, program.precision, TARGETS[target])
        for key in seconds:
            seconds[key] += num_updates * costs[key] / 1e3
    parts = [
        f"{seconds['products_ms']:.1f} s for products at the peak",
        f"{seconds['traffic_ms']:.1f} s for traffic",
        *([f"{seconds['compiler_ms']:.1f} s by the compiler"] if seconds["compiler_ms"] else []),
    ]
    return f"{target}, {name}: {', '.join(parts)}"


def largest(operations: list[Operation]) -> list[dict[str, Any]]:
    """Return the largest operations, by estimated cycles or else by traffic, with their share."""
    by_cycles = any(one.cycles for one in operations)

    def cost(one: Operation) -> float:
        return one.cycles if by_cycles else one.bytes

    def source(one: Operation) -> str:
        return one.source.split("/", 1)[-1] or one.name

    total = sum(map(cost, operations)) or 1.0
    merged = [
        (sum(map(cost, group)), name)
        for name, group in groupby(sorted(operations, key=source), key=source)
        for group in [list(group)]
    ]
    ordered = sorted(merged, reverse=True)[:NUM_LARGEST]
    return [{"operation": name, "share": round(part / total, 4)} for part, name in ordered]


def print_tables(stored: dict[str, dict[str, Any]], target: str) -> None:
    """Print the Markdown table of the programs of a target, and the predictions."""
    print(format_table(stored))
    for name in JOBS:
        if name in stored and all("error" not in one for one in stored[name]["programs"].values()):
            print(predict_job(stored, name, target))


def format_table(stored: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table of the programs of a target."""
    lines = [
        "| program | CPU s | temporary MiB | activations MiB | GFLOP | MiB moved | products ms | "
        "traffic ms | compiler's ms | ten largest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part, result in _rows(stored):
        if "error" in result:
            lines.append(f"| {_full_name(name, part)} | {result['error']} | | | | | | | | |")
            continue
        share = sum(one["share"] for one in result["largest"])
        cells = (
            _full_name(name, part),
            f"{result['cpu_seconds']:.0f}",
            f"{result['temporary_mib']:,.0f}",
            f"{result['activations_mib']:,.0f}" if "activations_mib" in result else "",
            f"{result['gflops']:,.1f}",
            f"{result['traffic_mib']:,.0f}",
            f"{result['products_ms']:,.2f}",
            f"{result['traffic_ms']:,.2f}",
            f"{result['compiler_ms']:,.2f}" if result["compiler_ms"] else "",
            f"{share:.1%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(stored: dict[str, dict[str, Any]]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    for name in PROGRAMS:
        for part, result in stored.get(name, {}).get("programs", {}).items():
            yield name, part, result


if __name__ == "__main__":
    main()
