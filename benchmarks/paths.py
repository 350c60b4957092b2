"""A training step with and without the project's convolutions, on one device and on all cores.

    PYTHONPATH=. python benchmarks/paths.py --out results/performance

Two jobs, in the middle of their curriculum: `configs/curriculum.py:digits` and the same on CIFAR-10
(with random bytes for images, which take as long). "plain" is XLA's convolution and Flax's pooling
as one writes them first. Each way runs in a process of its own; a step is the median of ten.
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
from flax import linen as nn

from configs import curriculum
from jaxadv.curriculum import linear_budget
from jaxadv.models import layers
from jaxadv.models.activations import ACTIVATIONS
from jaxadv.parallel import pmap_batches, replicate, set_up_cpu
from jaxadv.provenance import provenance
from jaxadv.recipe import make_recipe
from jaxadv.train_step import init_state, make_train_step
from jaxadv.types import Batch

NUM_STEPS = 10
JOBS = {"digits": 1380, "cifar10": 48_000}  # images of an epoch
WAYS = {
    "plain, one device": ("plain", 1),
    "plain, all cores": ("plain", None),
    "jaxadv, one device": ("jaxadv", 1),
    "jaxadv, all cores": ("jaxadv", None),
}


def main() -> None:
    """Prints a line for each job and way, and writes a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_up_cpu()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    began, results = time.monotonic(), {}
    for job, num_images in JOBS.items():
        for way, (path, num_devices) in WAYS.items():
            measured = _apart(job, path, num_devices)
            measured["epoch_seconds"] = measured["step_seconds"] * (
                num_images // measured["batch_size"]
            )
            results[f"{job}, {way}"] = measured
            print(
                f"{job:8} {way:20} {measured['step_seconds'] * 1000:8.1f} ms a step  "
                f"{measured['epoch_seconds']:8.1f} s an epoch  "
                f"first step after {measured['first_step_seconds']:.1f} s",
                flush=True,
            )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"jobs": results, "provenance": provenance(time.monotonic() - began)}
        (options.out / "paths.json").write_text(json.dumps(record, indent=2) + "\n")


def measure(job: str, path: str) -> dict:
    """Returns the seconds of the first step, which compiles, and of one after it."""
    if path == "plain":
        layers.convolution = _plain_convolution
        layers.pooled_convolution = _plain_pooled_convolution
    config = curriculum.get_config(job)
    size, num_epochs = config.train.batch_size, config.train.num_epochs
    recipe = make_recipe(config, 10, lambda step: config.optimizer.learning_rate)
    step = pmap_batches(make_train_step(recipe), num_replicated=3, num_batches=2, donate_first=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
    split = Batch(images, generator.integers(0, 10, 1024).astype(np.int32))
    state, data = replicate(init_state(recipe, (32, 32, 3))), replicate(split)
    budget = linear_budget(config.attack, num_epochs // 2, num_epochs)
    nothing = Batch(images[:0], split.labels[:0])
    seconds = []
    for _ in range(1 + NUM_STEPS):
        began = time.perf_counter()
        state, metrics = step(state, data, budget, generator.integers(0, 1024, size), nothing)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return {
        "model": config.model.name,
        "batch_size": size,
        "attack_steps": int(budget.num_steps),
        "first_step_seconds": seconds[0],
        "step_seconds": float(np.median(seconds[1:])),
    }


def _plain_convolution(images, kernel, *, strides=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _plain_pooled_convolution(images, kernel, bias, activation, *, padding):
    outputs = _plain_convolution(images, kernel, padding=padding) + bias
    return nn.max_pool(ACTIVATIONS[activation](outputs), (2, 2), (2, 2))


def _apart(job: str, path: str, num_devices: int | None) -> dict:
    environment = dict(os.environ)
    if num_devices:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, __file__, "--one", job, path]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
