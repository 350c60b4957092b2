"""What the runs of a study cost: gradient evaluations, and the time that this device would take."""

import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from jaxadv import formats
from jaxadv.classifier import make_classifier
from jaxadv.crafting import craft, expand, num_queries
from jaxadv.curriculum import gradient_evaluations
from jaxadv.files import write_json
from jaxadv.provenance import provenance
from jaxadv.study.plan import Run
from jaxadv.types import Batch

_SIZES = {"cifar10": (50_000, 10_000), "digits": (1437, 360)}  # images of the splits
_UPDATE = 3  # gradients that an update takes as long as: the kernels' own, and what feeds it
_STANDING = 0.5  # share of the images that an attack is assumed to meet on its way
_BATCH = 64  # images that a gradient is timed on


class Cost(NamedTuple):
    """What a run costs.

    Attributes:
      gradients: of one image, or forward passes of attacks that take no gradients; at most.
      seconds: on this device; None where it was not foretold.
    """

    gradients: int
    seconds: float | None


def cost_in_gradients(run: Run, trained: ConfigDict) -> tuple[int, float]:
    """Returns the gradient evaluations of a run, and how many of an image's gradients they weigh.

    A training ends with the evaluation of its best checkpoint and of its last.

    Args:
      run: of a classifier.
      trained: config of the training, which that of an evaluation started from.
    """
    config, data = run.config, trained.data
    num_train, num_test = _SIZES[data.name]
    held_out = round(data.validation_fraction * num_train)
    available = num_test if config.evaluation.split == "test" else held_out
    judged = min(config.evaluation.num_examples or available, available)
    attacking = judged * sum(map(num_queries, expand(config.evaluation.attacks).values()))
    if config.mode == "evaluate":
        return attacking, _STANDING * attacking
    gradients = gradient_evaluations(config.attack, config.train.num_epochs, config.train.loss)
    learned, attacking = num_train - held_out, 2 * attacking
    updates = (_UPDATE - 1) * config.train.num_epochs
    weighed = learned * (gradients + updates) + _STANDING * attacking
    return round(learned * gradients) + attacking, weighed


def estimate(runs: Iterable[Run], results: Path) -> dict[str, Cost]:
    """Returns the cost of each run, once a gradient of each model was timed on this device.

    The estimates are kept in `costs.json`, for the page.

    Args:
      runs: of one study; a GAN's is not foretold.
      results: folder of the study's results.
    """
    runs = list(runs)
    by_name = {run.name: run for run in runs}
    costs: dict[str, Cost] = {}
    for run in tqdm(runs, desc="Timing a gradient of each model", leave=False):
        if run.config.mode in ("gan", "sample"):
            costs[run.name] = Cost(0, None)
            continue
        trained = by_name[str(run.needs)].config if run.config.mode == "evaluate" else run.config
        gradients, weighed = cost_in_gradients(run, trained)
        seconds = weighed * _seconds_per_gradient(trained.model.to_json(sort_keys=True))
        costs[run.name] = Cost(gradients, seconds)
    results.mkdir(parents=True, exist_ok=True)
    listed = {name: cost._asdict() for name, cost in costs.items()}
    write_json(results / "costs.json", {"costs": listed, "provenance": provenance(0.0)})
    return costs


def table(costs: Mapping[str, Cost], done: set[str]) -> Table:
    """Returns the dry run: what each run costs, and all that are not done."""
    rows = Table(title=Text("What the runs cost on this device"))
    rows.add_column("run")
    for heading in ("gradient evaluations", "estimated time"):
        rows.add_column(heading, justify="right")
    rows.add_column("state")
    for name, cost in costs.items():
        seconds = "" if cost.seconds is None else formats.duration(cost.seconds)
        gradients = f"{cost.gradients:.2e}" if cost.gradients else ""
        rows.add_row(Text(name), gradients, seconds, "done" if name in done else "")
    left = sum(cost.seconds or 0.0 for name, cost in costs.items() if name not in done)
    rows.add_section()
    rows.add_row("not done yet", "", formats.duration(left), "")
    return rows


@cache
def _seconds_per_gradient(model: str) -> float:
    """Returns the time of an image's gradient in a batch over all devices."""
    classifier = make_classifier(ConfigDict.from_json(model), num_classes=10)
    images: Any = np.zeros((_BATCH, 32, 32, 3), np.uint8)
    weights = jax.jit(classifier.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    split: Any = Batch(images, jnp.zeros(_BATCH, jnp.int32))

    def seconds(num_steps: int) -> float:
        attack = {"attack": "pgd", "noise": "on", "eps": 0.03, "step_size": 0.01}
        began = time.monotonic()
        craft(
            classifier, weights, split, {**attack, "num_steps": num_steps}, np.arange(_BATCH),
            _BATCH, seed=0,
        )  # fmt: skip
        return time.monotonic() - began

    seconds(1)  # compiles
    num_steps = max(1, min(50, round(1 / seconds(1))))
    return seconds(num_steps) / (num_steps * _BATCH)
