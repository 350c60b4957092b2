"""Shared by the benchmarks: random problems on untrained models, and interleaved measurements."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from jaxadv.adapters.trained import noise_models
from jaxadv.core.devices import pmap_batches, replicate
from jaxadv.core.types import HostBatch
from jaxadv.evaluation.attack_runner import run_attack
from jaxadv.evaluation.attack_suites import expand_suite
from jaxadv.models.classifier import make_logits_fn

REPETITIONS, FORWARD_PASSES = 5, 100

Run = Callable[[], int]
"""Do the measured work; return the number of gradients, queries or images that it processed."""


def make_problem(
    model: nn.Module, num_images: int, num_passes: int = FORWARD_PASSES
) -> tuple[PyTree, HostBatch, Run]:
    """Return the weights of an untrained model, random images, and a run of forward passes.

    Args:
      model: classifier of 32x32 RGB images.
      num_images: a multiple of the number of devices.
      num_passes: forward passes over all images per run; the images are on the devices already.

    Returns:
      The weights, replicated over the devices; the images, labelled with the classes that the model
      predicts; the run, which returns `num_passes * num_images`.
    """
    images = np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    floats, ids = images / np.float32(255), np.arange(num_images)
    weights = replicate(jax.jit(model.init)(jax.random.key(0), floats[:1]))

    def forward(weights: PyTree, images: Array, ids: Array) -> Array:
        return make_logits_fn(model, weights, ids)(jax.random.key(0), images)

    forward_on_devices = jax.pmap(forward, in_axes=(None, 0, 0))
    shards = jax.pmap(lambda *arrays: arrays)(*(_shard(array) for array in (floats, ids)))

    def run_forward_passes() -> int:
        for _ in range(num_passes):
            forward_on_devices(weights, *shards).block_until_ready()
        return num_passes * num_images

    logits = pmap_batches(forward, num_replicated=1, num_batches=2, sharded_output=True)
    labels = logits(weights, floats, ids).argmax(axis=1).astype(np.int32)
    return weights, HostBatch(images, labels), run_forward_passes


def _shard(array: np.ndarray) -> np.ndarray:
    return array.reshape(jax.device_count(), -1, *array.shape[1:])


def make_attack(
    model: nn.Module, weights: PyTree, split: HostBatch, attack: dict, batch_size: int | None = None
) -> Run:
    """Return a run of an attack on all images of a split.

    Args:
      model: the classifier.
      weights: its variables.
      split: images and labels.
      attack: the attack as in `config.evaluation.attacks`, with a single radius.
      batch_size: over all devices together; None is a single batch of all images.
    """
    (configured,) = expand_suite(ConfigDict({"attack": attack}))
    ids = np.arange(len(split.labels))
    size = batch_size or len(ids)
    on = noise_models(model, weights, seed=0)["on"]
    return lambda: int(run_attack(on, split, configured, ids, size, seed=0).queries.sum())


def measure_interleaved(runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Measure several runs, interleaved, so that load on the machine affects all of them alike.

    Each repetition executes every run once. A first repetition, which compiles, is not counted.

    Returns:
      For each run its rate per second in each of the `REPETITIONS` repetitions.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(-1, REPETITIONS):  # -1 is the warm-up
        for name, run in runs.items():
            began = time.perf_counter()
            count = run()
            if repetition >= 0:
                rates[name].append(count / (time.perf_counter() - began))
    return rates


def compare(title: str, runs: Mapping[str, Run]) -> None:
    """Measure several runs, interleaved, and print a line for each.

    A line has the median and the range of the rates, and the median over the repetitions of the
    ratio to the first run of the same repetition.
    """
    rates = measure_interleaved(runs)
    baseline = next(iter(rates))
    for name, values in rates.items():
        ratio = np.median(np.divide(values, rates[baseline]))
        print(
            f"{title:20} {name:28} {np.median(values):9,.0f} per s "
            f"({min(values):,.0f} to {max(values):,.0f}), {ratio:.2f} times {baseline}",
            flush=True,
        )
