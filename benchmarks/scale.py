"""How the time and the memory of PGD grow with batch, steps, images, width and devices.

    python benchmarks/scale.py --out results/performance

Each point is the median of three runs after one that compiles, of an untrained model on random
images. CPU devices are forced, each number of them in a process of its own. The memory is what XLA
sets aside for one device's share of the compiled attack: its activations, beside what goes in and
comes out; those of a gradient live only until the next step, so steps and images cost none.
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
from turns import make_attack, make_problem

from jaxadv.attacks import pgd
from jaxadv.classifier import make_logits_fn
from jaxadv.models import make_model
from jaxadv.parallel import set_up_cpu
from jaxadv.provenance import provenance

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
    """Prints a line for each point, and writes a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the JSON")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_up_cpu()
    if options.point:
        print(json.dumps(measure(options.point)))
        return
    began = time.monotonic()
    results = {
        sweep: [_told(sweep, {**BASE, **change}, measure({**BASE, **change})) for change in changes]
        for sweep, changes in SWEEPS.items()
    }
    if jax.default_backend() == "cpu":
        results["devices"] = [_told("devices", {**BASE, "devices": n}, _apart(n)) for n in DEVICES]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"sweeps": results, "provenance": provenance(time.monotonic() - began)}
        (options.out / "scale.json").write_text(json.dumps(record, indent=2) + "\n")


def measure(point: dict) -> dict:
    """Returns the median seconds of an attack on all images, and the memory of a batch."""
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


def _apart(num_devices: int) -> dict:
    """Measures the base in a process with so many CPU devices."""
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


def _told(sweep: str, point: dict, measured: dict) -> dict:
    gradients = point["num_images"] * point["num_steps"] / measured["seconds"]
    print(
        f"{sweep:8} {point}  {measured['seconds']:.3f} s  {gradients:,.0f} gradients per s  "
        f"{measured['activation_bytes_of_a_device'] / 2**20:,.0f} MiB for a device",
        flush=True,
    )
    return {**point, **measured}


if __name__ == "__main__":
    main()
