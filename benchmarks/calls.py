"""What a call of an attack costs beyond the attack, and what many calls leave behind.

    python benchmarks/calls.py bignet --calls 100 --out results

For each attack: the time of a call whose budget holds no step, of the same function and of a fresh
closure with weights of its own; then how many compilations so many calls with fresh closures take,
and by how much the memory of the process grows from the tenth call to the last.
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
from jaxadv.models import make_model
from jaxadv.parallel import set_up_cpu
from jaxadv.provenance import provenance

BATCH = 64
KEY = jax.random.key
TURNS = 30
# Each with a budget that holds no step, or next to none: what is left is the call.
CALLS: dict[str, Callable] = {
    "pgd": lambda fn, x, y: pgd(KEY(0), fn, x, y, eps=0.03, step_size=0.01, num_steps=0),
    "fab": lambda fn, x, y: fab(KEY(0), fn, x, y, eps=0.03, num_queries=1).images,
    "nes": lambda fn, x, y: nes(KEY(0), fn, x, y, eps=0.03, step_size=0.01, num_queries=1).images,
    "square": lambda fn, x, y: square(KEY(0), fn, x, y, eps=0.03, num_queries=1).images,
}
COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Prints the figures of one model, and writes a JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bignet")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    set_up_cpu()
    began = time.monotonic()
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compilations.append(seconds) if event == COMPILED else None
    )
    model = make_model(options.model, 10)
    images = jnp.full((BATCH, 32, 32, 3), 0.5)
    labels = jnp.zeros(BATCH, jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])

    def fresh() -> Callable:
        """A new closure over new weights, in new memory."""
        weights = jax.tree.map(lambda array: jnp.array(np.array(array)), variables)
        return lambda key, images: model.apply(weights, images)

    figures: dict[str, dict] = {}
    one = fresh()
    for name, call in CALLS.items():
        same = _milliseconds(lambda call=call: call(one, images, labels))
        closures = [fresh() for _ in range(TURNS + 1)]
        new = _milliseconds(
            lambda call=call, closures=closures: call(closures.pop(), images, labels)
        )
        figures[name] = {"same_function_ms": same, "fresh_closure_ms": new}
        print(f"{name:>10}  same function {same:.2f} ms, fresh closure {new:.2f} ms", flush=True)
    whole = {
        **CALLS,
        "autoattack": lambda fn, x, y: autoattack(KEY(0), fn, x, y, eps=0.0, batch_size=64).images,
    }
    for name, call in whole.items():
        calls = options.calls if name != "autoattack" else max(options.calls // 10, 2)
        call(fresh(), images, labels)
        before, memory = len(compilations), []
        for _ in range(calls):
            jax.block_until_ready(call(fresh(), images, labels))
            gc.collect()
            memory.append(_resident())
        settled = memory[min(9, len(memory) - 2)]
        figures.setdefault(name, {}).update(
            calls=calls,
            compilations=len(compilations) - before,
            growth_mb=(memory[-1] - settled) / 2**20,
        )
        print(
            f"{name:>10}  {calls} calls with fresh closures: {len(compilations) - before} "
            f"compilations, {(memory[-1] - settled) / 2**20:+.1f} MB",
            flush=True,
        )
    if options.out:
        result = {"model": options.model, "batch": BATCH, "figures": figures}
        result["provenance"] = provenance(time.monotonic() - began)
        (options.out / "calls.json").write_text(json.dumps(result, indent=2) + "\n")


def _milliseconds(call: Callable) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
