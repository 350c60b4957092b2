"""Training of a conditional GAN: the host loop, its checkpoints, and the judging of its samples."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from jaxadv import checkpoint
from jaxadv import config as configs
from jaxadv.data import Dataset
from jaxadv.data.order import endless_order
from jaxadv.evaluate import load_dataset
from jaxadv.files import write_json
from jaxadv.gan import (
    GanRecipe,
    GanState,
    init_state,
    make_averaging,
    make_gan_step,
    make_recipe,
)
from jaxadv.judge import Judge, judge_samples
from jaxadv.judging import (
    collect,
    judge_on_test,
    look_at_train_split,
    make_judge,
    num_judged,
    plain,
    summary,
    write_neighbours,
)
from jaxadv.logbook import open_logbook
from jaxadv.parallel import pmap_batches, replicate
from jaxadv.pictures import mosaic
from jaxadv.provenance import note_source, provenance
from jaxadv.sampling import make_sampler, samples
from jaxadv.types import Batch, UserError

_GRID_ROWS = 8  # samples of each class in a picture
_NUM_NEIGHBOURS_SHOWN = 10


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Trains a judge and a GAN, judges its samples against the test split, and reports.

    Whatever of it the workdir already holds is not done again.

    Args:
      config: of configs/gan.py.
      workdir: of the run; one that was stopped goes on where it stopped.

    Returns:
      No warnings: what samples are worth is for their user to say.

    Raises:
      UserError: the config, the data or the workdir is not right, or the loss diverged.
    """
    note_source()
    configs.check_gan(config, jax.device_count())
    dataset = load_dataset(config.data)
    _check_side(config, dataset)
    configs.claim(workdir, config)
    judge = make_judge(config, dataset, workdir)
    train(config, dataset, judge, workdir)
    if not (workdir / "gan.json").exists():
        _judge_best(config, dataset, judge, workdir)
    print(summary(json.loads((workdir / "gan.json").read_text())["samples"]))
    from jaxadv import gan_report  # Matplotlib takes a second, which the start need not wait for

    print(f"Report: {gan_report.write(workdir)}")
    return []


def _check_side(config: ConfigDict, dataset: Dataset) -> None:
    side, asked = 4 << config.generator.num_blocks, dataset.train.images.shape[1]
    if side != asked:
        raise UserError(
            f"config.generator.num_blocks is {config.generator.num_blocks}, which makes images of "
            f"side {side}: those of the data set have {asked}"
        )


def train(config: ConfigDict, dataset: Dataset, judge: Judge, workdir: Path) -> GanState:
    """Trains to the last step, from the last checkpoint if there is one.

    Every random number follows from the seed and the step, so a run that was killed ends in
    the same bits as one that was not. After each round samples are judged against the train split.

    Args:
      config: of configs/gan.py, checked.
      dataset: its train split is learned.
      judge: of the samples.
      workdir: where checkpoints, metrics.jsonl, grids and TensorBoard's event files go.

    Returns:
      The state after the last step.
    """
    num_classes, size = len(dataset.class_names), config.train.batch_size
    recipe = make_recipe(config, num_classes)
    state, first_round = _start(recipe, dataset, workdir)
    step = pmap_batches(make_gan_step(recipe), num_replicated=2, num_batches=1, donate_first=True)
    average, sampler = make_averaging(recipe), make_sampler(recipe, plain(config.sampling))
    data = replicate(dataset.train)
    real = look_at_train_split(judge, dataset)
    per_step = config.train.num_discriminator_steps * size
    num_rounds = math.ceil(config.train.num_steps / config.train.steps_per_round)
    since = time.monotonic()
    with (
        checkpoint.open_manager(workdir) as manager,
        open_logbook(workdir, first_round) as log,
    ):
        for number in range(first_round, num_rounds):
            began = time.monotonic()
            first = number * config.train.steps_per_round
            last = min(first + config.train.steps_per_round, config.train.num_steps)
            order = endless_order(
                config.seed,
                "shuffle",
                first * per_step,
                (last - first) * per_step,
                len(dataset.train.labels),
            )
            title = f"Round {number + 1}/{num_rounds}"
            state, means = _train_round(step, state, data, order.reshape(-1, per_step), title)
            seconds = time.monotonic() - began
            generator = average(state)
            networks = replicate((generator, state.discriminator))
            made = collect(
                samples(
                    sampler,
                    networks,
                    config.judge.num_samples,
                    num_classes,
                    config.sampling.batch_size,
                )
            )
            grid = mosaic(np.asarray(made.images[: _GRID_ROWS * num_classes]), num_classes)
            line = {
                "epoch": number + 1,
                "step": last,
                **means,
                **judge_samples(judge, made, real),
                "seconds": seconds,
                "images_per_second": order.size / seconds,
            }
            _write_grid(workdir, number + 1, grid)
            log(line, {"samples": grid})
            # Last, so that no checkpoint is without its line: one too many is dropped on resume.
            checkpoint.save(manager, number + 1, _to_items(generator, state), line)
            left = (time.monotonic() - since) / (number + 1 - first_round)
            left *= num_rounds - number - 1
            print(f"{_round(line, num_rounds)}  {left / 60:.1f} min left", flush=True)
    return state


def restore(
    config: ConfigDict, dataset: Dataset, workdir: Path, which: str
) -> tuple[GanRecipe, tuple[PyTree, PyTree], int]:
    """Returns the recipe, the variables of generator and discriminator, and the round.

    Raises:
      UserError: no checkpoint can be restored.
    """
    recipe = make_recipe(config, len(dataset.class_names))
    state = init_state(recipe, dataset.train.images.shape[1:])
    restored = checkpoint.restore(workdir, which, _to_items(state.generator, state))
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet: train first, without config.mode=sample")
    discriminator = restored.items["training"].discriminator
    return recipe, replicate((restored.items["weights"], discriminator)), restored.epoch


def _start(recipe: GanRecipe, dataset: Dataset, workdir: Path) -> tuple[GanState, int]:
    """Returns the state to go on from, and the rounds that led to it."""
    state, number = init_state(recipe, dataset.train.images.shape[1:]), 0
    restored = checkpoint.restore(workdir, "last", _to_items(state.generator, state))
    if restored is not None:
        state, number = restored.items["training"], restored.epoch
        print(f"Going on after round {number} of {workdir}", flush=True)
    checkpoint.set_aside_after(workdir, number)
    return replicate(state), number


def _to_items(generator: PyTree, state: GanState) -> dict[str, PyTree]:
    """Returns the generator that samples, and what only training needs."""
    return {"weights": generator, "training": state}


def _train_round(
    step: Callable, state: GanState, data: Batch, batches: Int[np.ndarray, "steps all"], title: str
) -> tuple[GanState, dict[str, float]]:
    """Returns the state after a round and the means of its metrics.

    Raises:
      UserError: a loss is no longer finite.
    """
    history: list[dict[str, jax.Array]] = []
    with tqdm(total=batches.size, desc=title, unit="img", leave=False, disable=None) as bar:
        for batch in batches:
            state, metrics = step(state, data, batch)
            history.append(metrics)
            bar.update(len(batch))
    host = jax.device_get(history)
    means = {name: float(np.mean([m[name] for m in host])) for name in host[0]}
    if not all(map(math.isfinite, means.values())):
        raise UserError(
            f"{title}: a loss is no longer finite; the checkpoint of the round before is kept. "
            "Lower the learning rates of config.optimizer, in a new --workdir"
        )
    return state, means


def _judge_best(config: ConfigDict, dataset: Dataset, judge: Judge, workdir: Path) -> None:
    """Writes what the judge says of the best checkpoint, in `gan.json`, and some neighbours."""
    began = time.monotonic()
    recipe, networks, number = restore(config, dataset, workdir, "best")
    made = collect(
        samples(
            make_sampler(recipe, plain(config.sampling)),
            networks,
            num_judged(dataset),
            len(dataset.class_names),
            config.sampling.batch_size,
        )
    )
    few = np.asarray(made.images[:_NUM_NEIGHBOURS_SHOWN])
    write_neighbours(workdir / "neighbours.npz", judge, few, dataset)
    result = {
        "dataset": dataset.name,
        "class_names": list(dataset.class_names),
        "round": number,
        **judge_on_test(judge, made, dataset),
        "provenance": provenance(time.monotonic() - began),
    }
    write_json(workdir / "gan.json", result)


def _write_grid(workdir: Path, number: int, grid: np.ndarray) -> None:
    folder = workdir / "grids"
    folder.mkdir(exist_ok=True)
    Image.fromarray(grid).save(folder / f"round_{number:04}.png")


def _round(line: dict[str, Any], num_rounds: int) -> str:
    return (
        f"round {line['epoch']:>3}/{num_rounds}  step {line['step']:,}"
        f"  loss {line['discriminator_loss']:.3f} / {line['generator_loss']:.3f}"
        f"  {summary(line)}  {line['images_per_second']:,.0f} img/s"
    )
