"""Queries per second of black-box attacks, beside the plain forward pass of as many images.

    python benchmarks/queries.py net bignet

All of one model run in turn, five times over; printed is the median with its range, and the median
of the ratios within each turn. The model is untrained and no example is ever fooled.
"""

import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxadv.battery import expand
from jaxadv.classifier import make_logits_fn
from jaxadv.crafting import craft
from jaxadv.models import make_model
from jaxadv.parallel import pmap_batches, replicate, use_all_cores
from jaxadv.types import Batch

BATCH, REPETITIONS = 512, 5
# So small a radius that no image crosses the boundary.
NOTHING = {"eps": (1e-6,), "num_queries": 105}
ATTACKS = {
    "NES": {"attack": "nes", "step_size": 1e-7, **NOTHING},
    "SPSA": {"attack": "nes", "step_size": 1e-7, "directions": "rademacher", **NOTHING},
    "Square": {"attack": "square", **NOTHING},
    "Square, L2": {"attack": "square", "norm": "l2", **NOTHING},
    "random search": {"attack": "random_search", **NOTHING},
}


def make_runs(name: str) -> dict[str, Callable[[], int]]:
    """Returns functions that compute some forward passes and return how many."""
    model = make_model(name, 10)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    floats, ids = images / np.float32(255), np.arange(BATCH)
    weights = replicate(jax.jit(model.init)(jax.random.key(0), floats[:1]))
    forward = pmap_batches(
        lambda weights, images, ids: make_logits_fn(model, weights, ids)(jax.random.key(0), images),
        num_replicated=1,
        num_batches=2,
        sharded_output=True,
    )
    split = Batch(images, forward(weights, floats, ids).argmax(axis=1).astype(np.int32))

    def passes() -> int:
        for _ in range(100):
            forward(weights, floats, ids)
        return 100 * BATCH

    def attack(config: dict) -> int:
        ((_, arguments),) = expand(ConfigDict({"a": config})).items()
        return int(craft(model, weights, split, arguments, ids, BATCH, seed=0)[1].sum())

    runs = {name: lambda config=config: attack(config) for name, config in ATTACKS.items()}
    return {"forward pass": passes, **runs}


def main() -> None:
    """Prints a table for each model named on the command line."""
    use_all_cores()
    for model in sys.argv[1:] or ["net"]:
        runs = make_runs(model)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for repetition in range(-1, REPETITIONS):  # the first compiles
            for name, run in runs.items():
                began = time.perf_counter()
                count = run()
                if repetition >= 0:
                    rates[name].append(count / (time.perf_counter() - began))
        for name, values in rates.items():
            ratio = np.median(np.divide(values, rates["forward pass"]))
            print(
                f"{model:10} {name:15} {np.median(values):9,.0f} per s "
                f"({min(values):,.0f} to {max(values):,.0f})  {ratio:.2f} of the forward pass"
            )


if __name__ == "__main__":
    main()
