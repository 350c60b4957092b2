"""Overhead of a call of an attack: time, compilations and memory of calls with new models.

    python benchmarks/calls.py bignet --calls 100 --out results

For each attack the benchmark measures:

- The time of a call that takes no step, or hardly any, with the same `logits_fn` in all calls, and
  with a new closure over new weights in each. It is the median of 30 calls, after a warm-up.
- The compilations during many calls with new closures (`--calls`; a tenth as many of AutoAttack),
  after a warm-up call, and the growth of the resident memory from the tenth call to the last.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from jaxadv.attacks import autoattack, fab, nes, pgd, square
from jaxadv.core.devices import set_up_cpu
from jaxadv.models import make_model
from jaxadv.runs.workdir import provenance

BATCH = 64
KEY = jax.random.key
REPETITIONS = 30
# With these budgets an attack takes no step, or hardly any, so that the overhead remains.
CALLS: dict[str, Callable] = {
    "pgd": lambda fn, x, y: pgd(KEY(0), fn, x, y, eps=0.03, step_size=0.01, num_steps=0),
    "fab": lambda fn, x, y: fab(KEY(0), fn, x, y, eps=0.03, num_queries=1).images,
    "nes": lambda fn, x, y: nes(KEY(0), fn, x, y, eps=0.03, step_size=0.01, num_queries=1).images,
    "square": lambda fn, x, y: square(KEY(0), fn, x, y, eps=0.03, num_queries=1).images,
}
COMPILATION_EVENT = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Measure the overhead of all attacks on a model, print it, and write `calls.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="bignet", help="by default bignet")
    parser.add_argument(
        "--calls", type=int, default=100, help="calls with new closures per attack; by default 100"
    )
    parser.add_argument("--out", type=Path, help="folder of calls.json; by default none")
    options = parser.parse_args()
    set_up_cpu()
    began = time.monotonic()
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compilations.append(seconds) if event == COMPILATION_EVENT else None
        )
    )
    model = make_model(options.model, 10)
    images = jnp.full((BATCH, 32, 32, 3), 0.5)
    labels = jnp.zeros(BATCH, jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    def new_closure() -> Callable:
        """Return a new closure over a copy of the weights."""
        weights = jax.tree.map(lambda array: jnp.array(np.array(array)), variables)
        return lambda key, images: model.apply(weights, images)

    results: dict[str, dict] = {}
    same_fn = new_closure()
    for name, call in CALLS.items():
        same = _milliseconds(lambda call=call: call(same_fn, images, labels))
        closures = [new_closure() for _ in range(REPETITIONS + 1)]
        new = _milliseconds(
            lambda call=call, closures=closures: call(closures.pop(), images, labels)
        )
        results[name] = {"same_function_ms": same, "fresh_closure_ms": new}
        print(f"{name:10} same function {same:.2f} ms, new closure {new:.2f} ms", flush=True)
    all_calls = {
        **CALLS,
        "autoattack": lambda fn, x, y: autoattack(KEY(0), fn, x, y, eps=0.0, batch_size=64).images,
    }
    for name, call in all_calls.items():
        calls = options.calls if name != "autoattack" else max(options.calls // 10, 2)
        call(new_closure(), images, labels)
        before, memory = len(compilations), []
        for _ in range(calls):
            jax.block_until_ready(call(new_closure(), images, labels))
            gc.collect()
            memory.append(_resident_bytes())
        growth_mb = (memory[-1] - memory[min(9, len(memory) - 2)]) / 2**20
        results.setdefault(name, {}).update(
            calls=calls,
            compilations=len(compilations) - before,
            growth_mb=growth_mb,
        )
        print(
            f"{name:10} {calls} calls with new closures: {len(compilations) - before} "
            f"compilations, memory {growth_mb:+.1f} MiB",
            flush=True,
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        # "figures" as in earlier files of this benchmark.
        record = {"model": options.model, "batch": BATCH, "figures": results}
        record["provenance"] = provenance(time.monotonic() - began)
        (options.out / "calls.json").write_text(json.dumps(record, indent=2) + "\n")


def _milliseconds(call: Callable) -> float:
    """Return the median duration of a call, after a warm-up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
