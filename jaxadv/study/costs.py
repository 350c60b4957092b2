"""What the runs of a study cost: gradient evaluations, and the time that this device would take."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from jaxadv import formats
from jaxadv.classifier import is_declared_stochastic, make_classifier
from jaxadv.crafting import expand, num_queries
from jaxadv.curriculum import durations, gradient_evaluations
from jaxadv.files import write_json
from jaxadv.provenance import provenance
from jaxadv.study import timing
from jaxadv.study.plan import Run, training_config
from jaxadv.study.records import read_notes

_SIZES = {"cifar10": (50_000, 10_000), "digits": (1437, 360)}  # images of the splits
_GRADIENT = 3  # forward passes that take as long
_STANDING = 0.5  # share of the images that an attack is assumed to meet on its way


class Cost(NamedTuple):
    """What a run costs.

    Attributes:
      gradients: of one image by a classifier, or forward passes of attacks that take no gradients;
        at most.
      seconds: on this device.
    """

    gradients: int
    seconds: float


def cost_in_gradients(run: Run, trained: ConfigDict) -> tuple[int, float]:
    """Returns the gradient evaluations of a run, and how many of an image's gradients they weigh.

    A training ends with the evaluation of its best checkpoint and of its last. A model with noise
    is attacked on every image, and seen in many passes after each attack.

    Args:
      run: a training or an evaluation of a classifier.
      trained: config of the training, which that of an evaluation started from.
    """
    config = run.config
    learned, held_out, tested = _sizes(trained.data)
    available = tested if config.evaluation.split == "test" else held_out
    judged = min(config.evaluation.num_examples or available, available)
    attacks = expand(config.evaluation.attacks).values()
    attacking = judged * sum(map(num_queries, attacks))
    weighed = _STANDING * attacking
    if is_declared_stochastic(make_classifier(trained.model, num_classes=10)):
        weighed = attacking + judged * len(attacks) * config.evaluation.num_passes / _GRADIENT
    if config.mode == "evaluate":
        return attacking, weighed
    gradients = round(learned * sum(gradient_evaluations(config)))
    return gradients + 2 * attacking, learned * sum(durations(config)) + 2 * weighed


def _sizes(data: ConfigDict) -> tuple[int, int, int]:
    """Returns how many images are learned, held out of the train split, and in the test split."""
    num_train, num_test = _SIZES[data.name]
    held_out = round(data.validation_fraction * num_train)
    return num_train - held_out, held_out, num_test


def estimate(runs: Iterable[Run], plan: Mapping[str, Run], results: Path) -> dict[str, Cost]:
    """Returns the cost of runs, once what they are made of was timed on this device.

    The estimates are kept in `costs.json`, for the page.

    Args:
      runs: of the plan; of a GAN that is its judge's training and its own steps, of samples the
        drawing of them, without what the judge then says of them.
      plan: all runs.
      results: folder of the study's results.
    """
    costs: dict[str, Cost] = {}
    for run in tqdm(list(runs), desc="Timing each model", leave=False):
        costs[run.name] = _cost(run, plan)
    results.mkdir(parents=True, exist_ok=True)
    listed = read_notes(results / "costs.json").get("costs", {})
    source = provenance(0.0)["device"]
    listed |= {name: {**cost._asdict(), "device": source} for name, cost in costs.items()}
    write_json(results / "costs.json", {"costs": listed})
    return costs


def _cost(run: Run, plan: Mapping[str, Run]) -> Cost:
    config = run.config
    if config.mode == "sample":
        return Cost(0, config.sampling.num_images * timing.seconds_per_sample(config))
    if config.mode == "gan":
        judge = config.judge.classifier
        learned, _, _ = _sizes(judge.data)
        seconds = learned * sum(durations(judge)) * timing.seconds_per_gradient(judge.model)
        return Cost(0, seconds + config.train.num_steps * timing.seconds_per_gan_step(config))
    trained = training_config(run, plan)
    gradients, weighed = cost_in_gradients(run, trained)
    return Cost(gradients, weighed * timing.seconds_per_gradient(trained.model))


def table(runs: Iterable[Run], costs: Mapping[str, Cost], done: set[str]) -> Table:
    """Returns the dry run: what each run costs, and all that are planned and not done."""
    rows = Table(title=Text("What the runs cost on this device"))
    rows.add_column("run", no_wrap=True)
    for heading in ("gradients", "estimated time"):
        rows.add_column(heading, justify="right")
    rows.add_column("state")
    left = 0.0
    for run in runs:
        cost = costs[run.name]
        seconds = formats.duration(cost.seconds)
        gradients = f"{cost.gradients:.1e}" if cost.gradients else ""
        state = "done" if run.name in done else "" if run.planned else "not planned"
        rows.add_row(Text(run.name), gradients, seconds, state)
        left += 0.0 if state else cost.seconds
    rows.add_section()
    rows.add_row("not done yet", "", formats.duration(left), "")
    return rows
