"""Time of a training step with `jaxadv.models.ops`, and with XLA's convolution and Flax's pooling.

    PYTHONPATH=. python benchmarks/conv_ops.py --out results/performance

The step is that of `configs/curriculum.py`, for digits and for CIFAR-10, in the middle of the
curriculum, on random images. Each combination of a job, an implementation of the convolutions and a
number of devices runs in a separate process, since the number of devices is fixed once JAX has
started. The time of a step is the median of ten, after a first step that compiles. The time of an
epoch is that of a step times the steps per epoch.
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

from jaxadv.config import set_defaults
from jaxadv.configs import curriculum
from jaxadv.core.devices import pmap_batches, replicate, set_up_cpu
from jaxadv.core.types import HostBatch
from jaxadv.data.resident import make_resident
from jaxadv.models import layers
from jaxadv.models.ops import ACTIVATIONS
from jaxadv.runs.workdir import provenance
from jaxadv.training.curriculum import linear_budget
from jaxadv.training.setup import make_training_setup
from jaxadv.training.step import init_state, make_train_step

NUM_STEPS = 10
JOBS = {"digits": 1380, "cifar10": 48_000}  # images per epoch
# Name of a variant: implementation of the convolutions, and number of devices. None is one device
# per core.
VARIANTS = {
    "plain, one device": ("plain", 1),
    "plain, all cores": ("plain", None),
    "jaxadv, one device": ("jaxadv", 1),
    "jaxadv, all cores": ("jaxadv", None),
}


def main() -> None:
    """Measure all variants of each job, print a line for each, and write `conv_ops.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of conv_ops.json; by default none")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_up_cpu()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    began, results = time.monotonic(), {}
    for job, num_images in JOBS.items():
        for variant, (ops, num_devices) in VARIANTS.items():
            measured = _measure_in_subprocess(job, ops, num_devices)
            measured["epoch_seconds"] = measured["step_seconds"] * (
                num_images // measured["batch_size"]
            )
            results[f"{job}, {variant}"] = measured
            print(
                f"{job:8} {variant:20} {measured['step_seconds'] * 1000:8.1f} ms per step, "
                f"{measured['epoch_seconds']:8.1f} s per epoch, "
                f"{measured['first_step_seconds']:.1f} s for the first step",
                flush=True,
            )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"jobs": results, "provenance": provenance(time.monotonic() - began)}
        (options.out / "conv_ops.json").write_text(json.dumps(record, indent=2) + "\n")


def measure(job: str, ops: str) -> dict:
    """Return the seconds of the first step, which compiles, and the median of those after it.

    Args:
      job: variant of `configs/curriculum.py`.
      ops: "jaxadv", or "plain" for XLA's convolution and Flax's pooling.
    """
    if ops == "plain":
        layers.convolution = _plain_convolution
        layers.pooled_convolution = _plain_pooled_convolution
    config = curriculum.get_config(job)
    set_defaults(config)
    size, num_epochs = config.train.batch_size, config.train.num_epochs
    setup = make_training_setup(config, 10, steps_per_epoch=100)
    step = pmap_batches(make_train_step(setup), num_replicated=3, num_batches=2, donate_first=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (1024, 32, 32, 3), dtype=np.uint8)
    split = HostBatch(images, generator.integers(0, 10, 1024).astype(np.int32))
    state, data = replicate(init_state(setup, (32, 32, 3))), make_resident(split)
    budget = linear_budget(config.attack, num_epochs // 2, num_epochs)
    no_synthetic = HostBatch(images[:0], split.labels[:0])
    seconds = []
    for _ in range(1 + NUM_STEPS):
        began = time.perf_counter()
        indices = generator.integers(0, 1024, size)
        state, metrics = step(state, data, budget, indices, no_synthetic)
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


def _measure_in_subprocess(job: str, ops: str, num_devices: int | None) -> dict:
    environment = dict(os.environ)
    if num_devices:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, __file__, "--one", job, ops]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
