"""What the benchmarks share: attacks on an untrained model, and runs that take turns."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from jaxadv.classifier import make_logits_fn
from jaxadv.crafting import craft, expand
from jaxadv.parallel import pmap_batches, replicate
from jaxadv.types import Batch

REPETITIONS, PASSES = 5, 100

Run = Callable[[], int]
"""Does some work, and returns how many gradients or queries it took."""


def make_problem(
    model: nn.Module, batch: int, num_passes: int = PASSES
) -> tuple[PyTree, Batch, Run]:
    """Returns weights, random images labelled as the model sees them, and passes over them.

    Each run of these takes `num_passes` over images that lie on the devices.
    """
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    floats, ids = images / np.float32(255), np.arange(batch)
    weights = replicate(jax.jit(model.init)(jax.random.key(0), floats[:1]))

    def forward(weights: PyTree, images: Array, ids: Array) -> Array:
        return make_logits_fn(model, weights, ids)(jax.random.key(0), images)

    on_devices = jax.pmap(forward, in_axes=(None, 0, 0))
    shares = jax.pmap(lambda *arrays: arrays)(*(_shares(array) for array in (floats, ids)))

    def passes() -> int:
        for _ in range(num_passes):
            on_devices(weights, *shares).block_until_ready()
        return num_passes * batch

    logits = pmap_batches(forward, num_replicated=1, num_batches=2, sharded_output=True)
    labels = logits(weights, floats, ids).argmax(axis=1).astype(np.int32)
    return weights, Batch(images, labels), passes


def _shares(array: np.ndarray) -> np.ndarray:
    return array.reshape(jax.device_count(), -1, *array.shape[1:])


def make_attack(
    model: nn.Module, weights: PyTree, split: Batch, attack: dict, batch_size: int | None = None
) -> Run:
    """Returns an attack on all images, at once if nothing else is said."""
    ((_, arguments),) = expand(ConfigDict({"a": attack})).items()
    ids = np.arange(len(split.labels))
    size = batch_size or len(ids)
    return lambda: int(craft(model, weights, split, arguments, ids, size, seed=0).queries.sum())


def take_turns(runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Runs all in turn, several times over, and returns the rates of each."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(-1, REPETITIONS):  # the first compiles
        for name, run in runs.items():
            began = time.perf_counter()
            count = run()
            if repetition >= 0:
                rates[name].append(count / (time.perf_counter() - began))
    return rates


def compare(title: str, runs: Mapping[str, Run]) -> None:
    """Runs all in turn, several times over, and prints a line for each.

    It has the median and the range of the rate, and the median of its ratio, within a turn, to
    that of the first.
    """
    rates = take_turns(runs)
    baseline = next(iter(rates))
    for name, values in rates.items():
        ratio = np.median(np.divide(values, rates[baseline]))
        print(
            f"{title:20} {name:20} {np.median(values):9,.0f} per s "
            f"({min(values):,.0f} to {max(values):,.0f})  {ratio:.2f} of {baseline}"
        )
