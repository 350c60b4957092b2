"""What the runs of a study cost: gradient evaluations, and the time that this device would take."""

import json
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
from jaxadv.classifier import is_declared_stochastic, make_classifier
from jaxadv.crafting import craft, expand, num_queries
from jaxadv.curriculum import gradient_evaluations
from jaxadv.files import write_json
from jaxadv.page import read_json
from jaxadv.provenance import provenance
from jaxadv.study.plan import Run, training_config
from jaxadv.types import Batch

_SIZES = {"cifar10": (50_000, 10_000), "digits": (1437, 360)}  # images of the splits
_UPDATE = 3  # gradients that an update, and forward passes that a gradient, takes as long as
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

    A training ends with the evaluation of its best checkpoint and of its last. A model with noise
    is attacked on every image, and seen in many passes after each attack.

    Args:
      run: of a classifier.
      trained: config of the training, which that of an evaluation started from.
    """
    config, data = run.config, trained.data
    num_train, num_test = _SIZES[data.name]
    held_out = round(data.validation_fraction * num_train)
    available = num_test if config.evaluation.split == "test" else held_out
    judged = min(config.evaluation.num_examples or available, available)
    attacks = expand(config.evaluation.attacks).values()
    attacking = judged * sum(map(num_queries, attacks))
    weighed = _STANDING * attacking
    if is_declared_stochastic(make_classifier(trained.model, num_classes=10)):
        weighed = attacking + judged * len(attacks) * config.evaluation.num_passes / _UPDATE
    if config.mode == "evaluate":
        return attacking, weighed
    gradients = gradient_evaluations(config.attack, config.train.num_epochs, config.train.loss)
    learned = num_train - held_out
    updates = (_UPDATE - 1) * config.train.num_epochs
    return (
        round(learned * gradients) + 2 * attacking,
        learned * (gradients + updates) + 2 * weighed,
    )


def estimate(runs: Iterable[Run], plan: Mapping[str, Run], results: Path) -> dict[str, Cost]:
    """Returns the cost of runs, once a gradient of each model was timed on this device.

    The estimates are kept in `costs.json`, for the page.

    Args:
      runs: of the plan; the time of a GAN is not foretold.
      plan: all runs.
      results: folder of the study's results.
    """
    costs: dict[str, Cost] = {}
    for run in tqdm(list(runs), desc="Timing a gradient of each model", leave=False):
        if run.config.mode in ("gan", "sample"):
            costs[run.name] = Cost(0, None)
            continue
        trained = training_config(run, plan)
        gradients, weighed = cost_in_gradients(run, trained)
        seconds = weighed * _seconds_per_gradient(trained.model.to_json(sort_keys=True))
        costs[run.name] = Cost(gradients, seconds)
    results.mkdir(parents=True, exist_ok=True)
    listed = read_json(results / "costs.json").get("costs", {})
    source = provenance(0.0)["device"]
    listed |= {name: {**cost._asdict(), "device": source} for name, cost in costs.items()}
    write_json(results / "costs.json", {"costs": listed})
    return costs


def table(runs: Iterable[Run], costs: Mapping[str, Cost], done: set[str]) -> Table:
    """Returns the dry run: what each run costs, and all that are planned and not done."""
    rows = Table(title=Text("What the runs cost on this device; a GAN's time is not foretold"))
    rows.add_column("run", no_wrap=True)
    for heading in ("gradients", "estimated time"):
        rows.add_column(heading, justify="right")
    rows.add_column("state")
    left = 0.0
    for run in runs:
        cost = costs[run.name]
        seconds = "" if cost.seconds is None else formats.duration(cost.seconds)
        gradients = f"{cost.gradients:.1e}" if cost.gradients else ""
        state = "done" if run.name in done else "" if run.planned else "not planned"
        rows.add_row(Text(run.name), gradients, seconds, state)
        left += 0.0 if state else cost.seconds or 0.0
    rows.add_section()
    rows.add_row("not done yet", "", formats.duration(left), "")
    return rows


@cache
def _seconds_per_gradient(model: str) -> float:
    """Returns the time of an image's gradient in a batch over all devices."""
    classifier = make_classifier(ConfigDict(json.loads(model)), num_classes=10)
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
