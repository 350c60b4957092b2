"""Cost of the study's runs: gradient evaluations, and the estimated time on this device."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from jaxadv.adapters.trained import noise_models
from jaxadv.core.devices import pmap_batches, replicate
from jaxadv.core.files import write_json
from jaxadv.core.progress import progress_bar
from jaxadv.core.types import HostBatch
from jaxadv.data.resident import make_resident
from jaxadv.evaluation.attack_runner import run_attack
from jaxadv.evaluation.attack_suites import ConfiguredAttack, expand_suite
from jaxadv.gan.sampling import make_sampler
from jaxadv.gan.step import init_state, make_averaging, make_gan_setup, make_gan_step
from jaxadv.models.classifier import is_declared_stochastic, make_classifier
from jaxadv.reports import formats
from jaxadv.runs.workdir import provenance
from jaxadv.study.plan import Run, training_config
from jaxadv.study.records import read_json_file
from jaxadv.training.curriculum import durations, gradient_evaluations

_SIZES = {"cifar10": (50_000, 10_000), "digits": (1437, 360)}  # images of train and test split
_PASSES_PER_GRADIENT = 3  # forward passes that take as long as a gradient
_ATTACKED_SHARE = 0.5  # assumed share of the images that an attack works on
_BATCH_SIZE = 64  # for timing
_SHAPE = (32, 32, 3)
_NUM_CLASSES = 10


class Cost(NamedTuple):
    """Cost of a run.

    Attributes:
      gradients: largest number of gradient evaluations of single images by a classifier; for
        black-box attacks, of forward passes.
      seconds: estimated time on this device.
    """

    gradients: int
    seconds: float


def cost_in_gradients(run: Run, trained: ConfigDict) -> tuple[int, float]:
    """Return the largest number of gradient evaluations of a run, and its time in gradients.

    A training includes the evaluations of its best and of its last checkpoint. Models with a random
    defence are attacked on every image and take several forward passes after each attack.

    Args:
      run: a training or an evaluation of a classifier.
      trained: config of the training; for an evaluation, of the training that it starts from.
    """
    config = run.config
    num_train, num_held_out, num_test = _split_sizes(trained.data)
    available = num_test if config.evaluation.split == "test" else num_held_out
    num_images = min(config.evaluation.num_examples or available, available)
    attacks = expand_suite(config.evaluation.attacks)
    gradients = num_images * sum(attack.max_queries for attack in attacks)
    duration = _ATTACKED_SHARE * gradients
    if is_declared_stochastic(make_classifier(trained.model, num_classes=_NUM_CLASSES)):
        passes = num_images * len(attacks) * config.evaluation.num_passes
        duration = gradients + passes / _PASSES_PER_GRADIENT
    if config.mode == "evaluate":
        return gradients, duration
    in_training = round(num_train * sum(gradient_evaluations(config)))
    return in_training + 2 * gradients, num_train * sum(durations(config)) + 2 * duration


def _split_sizes(data: ConfigDict) -> tuple[int, int, int]:
    """Return the number of images to train on, of held-out and of test images."""
    num_train, num_test = _SIZES[data.source]
    num_held_out = round(data.validation_fraction * num_train)
    return num_train - num_held_out, num_held_out, num_test


def estimate(runs: Iterable[Run], plan: Mapping[str, Run], results: Path) -> dict[str, Cost]:
    """Return the cost of runs, after timing their models on this device.

    The cost of a GAN is that of its steps and of its evaluator's training. The cost of samples
    does not include their evaluation. The estimates are kept in `costs.json` for the page.

    Args:
      runs: of the plan.
      plan: all runs.
      results: folder of the study's results.
    """
    costs: dict[str, Cost] = {}
    for run in progress_bar(list(runs), title="Timing each model", leave=False):
        costs[run.name] = _cost(run, plan)
    results.mkdir(parents=True, exist_ok=True)
    kept = read_json_file(results / "costs.json").get("costs", {})
    device = provenance(0.0)["device"]
    kept |= {name: {**cost._asdict(), "device": device} for name, cost in costs.items()}
    write_json(results / "costs.json", {"costs": kept})
    return costs


def _cost(run: Run, plan: Mapping[str, Run]) -> Cost:
    config = run.config
    if config.mode == "sample":
        return Cost(0, config.sampling.num_images * seconds_per_sample(config))
    if config.mode == "gan":
        evaluator = config.evaluator.classifier
        num_train, _, _ = _split_sizes(evaluator.data)
        seconds = num_train * sum(durations(evaluator)) * seconds_per_gradient(evaluator.model)
        return Cost(0, seconds + config.train.num_steps * seconds_per_gan_step(config))
    trained = training_config(run, plan)
    gradients, duration = cost_in_gradients(run, trained)
    return Cost(gradients, duration * seconds_per_gradient(trained.model))


def cost_table(runs: Iterable[Run], costs: Mapping[str, Cost], done: set[str]) -> Table:
    """Return the table of a dry run: the cost of each run, and of all that are not done.

    Args:
      runs: to show.
      costs: by name.
      done: names of runs that are done.
    """
    table = Table(title=Text("Cost of the runs on this device"))
    table.add_column("run", no_wrap=True)
    for heading in ("gradients", "estimated time"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    remaining = 0.0
    for run in runs:
        cost = costs[run.name]
        seconds = formats.duration(cost.seconds)
        gradients = f"{cost.gradients:.1e}" if cost.gradients else ""
        state = "done" if run.name in done else "" if run.planned else "not planned"
        table.add_row(Text(run.name), gradients, seconds, state)
        remaining += 0.0 if state else cost.seconds
    table.add_section()
    table.add_row("not done", "", formats.duration(remaining), "")
    return table


def seconds_per_gradient(model: ConfigDict) -> float:
    """Return the time per image of a gradient in an attack, on a batch over all devices.

    Args:
      model: `config.model`.
    """
    return _seconds_per_gradient(model.to_json(sort_keys=True))


@cache
def _seconds_per_gradient(model: str) -> float:
    classifier = make_classifier(ConfigDict(json.loads(model)), num_classes=_NUM_CLASSES)
    weights = jax.jit(classifier.init)(jax.random.key(0), jnp.zeros((1, *_SHAPE)))
    target, ids = noise_models(classifier, weights, seed=0)["on"], np.arange(_BATCH_SIZE)

    def attack(num_steps: int) -> Callable[[], Any]:
        arguments = {"step_size": 0.01, "num_steps": num_steps}
        pgd = ConfiguredAttack("pgd", "pgd", eps=0.03, arguments=arguments)
        return lambda: run_attack(target, _images(_BATCH_SIZE), pgd, ids, _BATCH_SIZE, seed=0)

    num_steps = max(1, min(50, round(1 / _seconds(attack(1)))))
    return _seconds(attack(num_steps)) / (num_steps * _BATCH_SIZE)


def seconds_per_gan_step(config: ConfigDict) -> float:
    """Return the time of one step of the generator with the discriminator's steps before it.

    Args:
      config: of configs/gan.py.
    """
    setup = make_gan_setup(config, _NUM_CLASSES, _SHAPE[-1])
    step = pmap_batches(make_gan_step(setup), num_replicated=2, num_batches=1)
    indices = np.arange(config.train.num_discriminator_steps * config.train.batch_size)
    state, data = replicate(init_state(setup, _SHAPE)), make_resident(_images(len(indices)))
    return _seconds(lambda: step(state, data, indices))


def seconds_per_sample(config: ConfigDict) -> float:
    """Return the time per sample of a GAN, in a batch over all devices.

    Args:
      config: of configs/gan.py.
    """
    setup, size = make_gan_setup(config, _NUM_CLASSES, _SHAPE[-1]), config.sampling.batch_size
    state = replicate(init_state(setup, _SHAPE))
    networks = make_averaging(setup, num_samples=size, batch_size=size)(state), state.discriminator
    sampler = make_sampler(setup, config.sampling)
    labels = np.zeros(size, np.int32)
    return _seconds(lambda: sampler(networks, np.arange(size), labels)) / size


def _images(num: int) -> HostBatch:
    return HostBatch(np.zeros((num, *_SHAPE), np.uint8), np.zeros(num, np.int32))


def _seconds(work: Callable[[], Any]) -> float:
    """Return the duration of the second call, which needs no compilation."""
    jax.block_until_ready(work())
    began = time.monotonic()
    jax.block_until_ready(work())
    return time.monotonic() - began
