"""Scaling of PGD: time and memory against batch size, steps, images, model width and devices.

    python benchmarks/scaling.py --out results/performance

Each point is the median of three runs, after a warm-up run that compiles, of PGD on random images
and an untrained model. On a CPU, numbers of devices are measured too, each in a subprocess that
forces this many CPU devices. Memory is what XLA allocates for temporary buffers (activations) of
the compiled attack on one device's share of a batch, without inputs and outputs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from common import make_attack, make_problem

from jaxadv.attacks import pgd
from jaxadv.core.devices import set_up_cpu
from jaxadv.models import make_model
from jaxadv.models.classifier import make_logits_fn
from jaxadv.runs.workdir import provenance

REPETITIONS = 3
BASE = {"model": "bignet", "batch_size": 512, "num_steps": 10, "num_images": 512}
SMALL = {"batch_size": 64, "num_images": 64}
SWEEPS = {
    "batch": [{"batch_size": n, "num_images": n} for n in (64, 128, 256, 512, 1024, 2048)],
    "steps": [{"num_steps": n} for n in (1, 5, 10, 20, 40)],
    "images": [{"num_images": n} for n in (512, 1024, 2048, 4096)],
    "width": [
        *({"model": name} for name in ("net", "bignet", "biggernet")),
        *({"model": f"wrn_7_{width}", **SMALL} for width in (1, 2, 4)),
        *({"model": f"vit_3_{width}", **SMALL} for width in (64, 128, 256)),
    ],
}
DEVICES = (1, 2, 4, 8)


def main() -> None:
    """Measure all points, print a line for each, and write `scaling.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of scaling.json; by default none")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_up_cpu()
    if options.point:
        print(json.dumps(measure(options.point)))
        return
    began = time.monotonic()
    results: dict[str, list[dict]] = {sweep: [] for sweep in SWEEPS}
    for sweep, changes in SWEEPS.items():
        for change in changes:
            point = {**BASE, **change}
            results[sweep].append({**point, **measure(point)})
            _print(sweep, results[sweep][-1])
    if jax.default_backend() == "cpu":
        results["devices"] = []
        for num_devices in DEVICES:
            measured = {**BASE, "devices": num_devices, **_measure_in_subprocess(num_devices)}
            results["devices"].append(measured)
            _print("devices", measured)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"sweeps": results, "provenance": provenance(time.monotonic() - began)}
        (options.out / "scaling.json").write_text(json.dumps(record, indent=2) + "\n")


def measure(point: dict) -> dict:
    """Return the median seconds of an attack on all images, and the memory for a batch."""
    model = make_model(point["model"], 10)
    weights, split, _ = make_problem(model, point["num_images"])
    budget = {"eps": 8 / 255, "step_size": 2 / 255, "num_steps": point["num_steps"]}
    run = make_attack(
        model,
        weights,
        split,
        {"attack": "pgd", **budget, "eps": (budget["eps"],)},
        point["batch_size"],
    )
    seconds = []
    for _ in range(1 + REPETITIONS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)

    def attack(weights, images, labels):
        logits_fn = make_logits_fn(model, weights, np.arange(len(labels)))
        return pgd(jax.random.key(0), logits_fn, images, labels, **budget)

    share = point["batch_size"] // jax.device_count()
    shapes = (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights),
        jax.ShapeDtypeStruct((share, 32, 32, 3), np.float32),
        jax.ShapeDtypeStruct((share,), np.int32),
    )
    memory = jax.jit(attack).lower(*shapes).compile().memory_analysis()
    return {
        "seconds": float(np.median(seconds[1:])),
        "activation_bytes_of_a_device": memory.temp_size_in_bytes,
    }


def _measure_in_subprocess(num_devices: int) -> dict:
    """Measure the base point with this many CPU devices, which are fixed once JAX has started."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, __file__, "--point", json.dumps(BASE)]
    done = subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _print(sweep: str, measured: dict) -> None:
    gradients = measured["num_images"] * measured["num_steps"] / measured["seconds"]
    memory = measured["activation_bytes_of_a_device"] / 2**20
    settings = ", ".join(
        f"{name} {measured[name]}" for name in (*BASE, "devices") if name in measured
    )
    print(
        f"{sweep:8} {settings}: {measured['seconds']:.3f} s, {gradients:,.0f} gradients per s, "
        f"{memory:,.0f} MiB of activations per device",
        flush=True,
    )


if __name__ == "__main__":
    main()
