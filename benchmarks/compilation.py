"""Compile the training step of each architecture for a TPU v5e or an H100, on a CPU.

The compilers of the accelerators run ahead of time, without a device. They need an environment of
their own, for the TPU

    pip install -e . -c constraints.txt && pip install "jax[tpu]" -c constraints.txt
    PYTHONPATH=. python benchmarks/compilation.py v5e bignet wrn_13_10 --out results/models

and for the H100, with the version of JAX in constraints.txt and without CUDA itself

    pip install -e . -c constraints.txt
    pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
    PYTHONPATH=. python benchmarks/compilation.py h100 bignet wrn_13_10 --out results/models

The step is that of `configs/curriculum.py`: PGD with a traced number of steps on the whole batch of
128 images, AdamW and a moving average, at the precision `bfloat16`, with 1,000 train images on the
device. `jaxadv.core.devices.pmap_batches` maps it over devices; here `jax.shard_map` maps it over
a mesh of one accelerator along the same axis, which is the same program. Nothing is executed.

Each architecture is compiled in a separate process, with a limit of CPU time, which other jobs on
the machine hardly change.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from configs import curriculum
from jaxadv.config import set_defaults
from jaxadv.core.devices import AXIS, num_cores, traced_for
from jaxadv.core.types import DeviceBatch
from jaxadv.runs.workdir import provenance
from jaxadv.training.curriculum import Budget
from jaxadv.training.optimizer import make_schedule
from jaxadv.training.step import init_state, make_train_step, make_training_setup

BATCH, TRAIN_IMAGES, NUM_CLASSES = 128, 1000, 10
SHAPES = {"mnist_cnn": (28, 28, 1)}
DEFAULT_SHAPE = (32, 32, 3)  # of the images of all other architectures
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no search for a TPU in the cloud
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock, which a killed process leaves, guards a real TPU
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # no trial runs on a GPU
}
MIB = 2**20


def main() -> None:
    """Compile the training steps, print a line for each, and write `accelerators.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("accelerator", choices=ACCELERATORS)
    parser.add_argument("models", nargs="+", help="names of `jaxadv.models.make_model`")
    parser.add_argument(
        "--limit", type=int, default=900, help="CPU seconds per model; by default 900"
    )
    parser.add_argument("--out", type=Path, help="folder of accelerators.json; by default none")
    parser.add_argument("--here", action="store_true", help="compile one model in this process")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(compile_step(options.accelerator, *options.models)))
        return
    os.environ |= ENVIRONMENT  # of this process, before JAX starts, and of the others
    jax.config.update("jax_num_cpu_devices", num_cores())  # as `provenance` describes the machine
    for name in options.models:
        began = time.monotonic()
        result = _compile_in_process(options.accelerator, name, options.limit)
        print(f"{options.accelerator} {name:24} {result}", flush=True)
        if options.out:
            result["provenance"] = _provenance(time.monotonic() - began)
            _record(options.out / "accelerators.json", options.accelerator, name, result)


def _compile_in_process(accelerator: str, name: str, limit: int) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, __file__, accelerator, name, "--here"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
    )
    if process.returncode == -signal.SIGXCPU:
        return {"compiled": False, "error": f"did not finish in {limit} s of CPU time"}
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"compiled": False, "error": lines[-1]}
    return {"compiled": True, **json.loads(process.stdout.splitlines()[-1])}


def _provenance(seconds: float) -> dict[str, Any]:
    source = provenance(seconds)
    return source | {"device": f"compiled on {source['device']}"}


def _record(path: Path, accelerator: str, name: str, result: dict[str, Any]) -> None:
    """Add a result to a file, or replace the earlier one of the same accelerator and model."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(accelerator, {})[name] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def compile_step(accelerator: str, name: str) -> dict[str, Any]:
    """Compile a training step for an accelerator; return what its compiler says of the program.

    FLOPs of a loop count one iteration: one step of PGD. The GPU's compiler does not count them
    without a device.

    Args:
      accelerator: one of `ACCELERATORS`.
      name: of `jaxadv.models.make_model`.
    """
    config = curriculum.get_config()
    set_defaults(config)
    config.model.name = name
    config.train.batch_size = BATCH
    platform, find_devices = ACCELERATORS[accelerator]
    mesh = Mesh(find_devices()[:1], (AXIS,))
    with traced_for(platform):
        step, arguments = _mapped_step(config, SHAPES.get(name, DEFAULT_SHAPE), mesh)
        lowered = jax.jit(step, donate_argnums=0).lower(*arguments)
    began = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - began
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    params = arguments[0].variables["params"]
    return {
        "cpu_seconds": round(seconds, 1),
        "temporary_mib": round(memory.temp_size_in_bytes / MIB, 1),
        "arguments_mib": round(memory.argument_size_in_bytes / MIB, 1),
        "gflops": round(cost["flops"] / 1e9, 1) if cost else None,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": [BATCH, *SHAPES.get(name, DEFAULT_SHAPE)],
    }


def _mapped_step(config: ConfigDict, image_shape: tuple[int, ...], mesh: Mesh) -> tuple[Any, tuple]:
    """Return the training step, mapped over the mesh, and the shapes of its arguments."""
    schedule = make_schedule(config.optimizer, config.train.num_epochs, TRAIN_IMAGES // BATCH)
    setup = make_training_setup(config, NUM_CLASSES, schedule)
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    specs = (whole, whole, whole, split, split)
    step = jax.shard_map(
        make_train_step(setup), mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False
    )

    def placed(spec: PartitionSpec, tree: PyTree) -> PyTree:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    def examples(num: int) -> DeviceBatch:
        return DeviceBatch(np.empty((num, *image_shape), np.uint8), np.empty(num, np.int32))

    arguments = (
        jax.eval_shape(lambda: init_state(setup, image_shape)),
        examples(TRAIN_IMAGES),
        Budget(np.float32(0.03), np.float32(0.01), np.int32(8)),
        np.empty(BATCH, np.int32),
        examples(0),
    )
    return step, tuple(map(placed, specs, arguments))


def _v5e_devices() -> list[Any]:
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices


def _h100_devices() -> list[Any]:
    import jax_plugins.xla_cuda12 as plugin

    with suppress(RuntimeError):  # there is no CUDA, but the plugin is registered all the same
        plugin.initialize()
    description = Path(__file__).with_name("h100.txtpb").read_text()
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=description
    ).devices


ACCELERATORS = {"v5e": ("tpu", _v5e_devices), "h100": ("gpu", _h100_devices)}

if __name__ == "__main__":
    main()
