"""Training of a conditional GAN: the host loop, its checkpoints, and the judging of its samples."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict
from PIL import Image

from jaxadv import checkpoint, stopping
from jaxadv import config as configs
from jaxadv.classifier import check_images
from jaxadv.data import Dataset
from jaxadv.data.order import endless_order
from jaxadv.evaluate import claim_dataset, load_dataset
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
from jaxadv.steps import Metrics, run_steps
from jaxadv.types import UserError

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
    check_images(dataset.train.images)
    _check_side(config, dataset)
    with configs.claimed(workdir, config):
        claim_dataset(workdir, dataset)
        judge = make_judge(config, dataset, workdir)
        train(config, dataset, judge, workdir)
        if not (workdir / "gan.json").exists():
            _judge_best(config, dataset, judge, workdir)
        print(summary(json.loads((workdir / "gan.json").read_text(encoding="utf-8"))["samples"]))
        from jaxadv import gan_report  # Matplotlib takes a second, which no start waits for

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
    state, first_round, history = _start(recipe, dataset, workdir)
    step = pmap_batches(make_gan_step(recipe), num_replicated=2, num_batches=1, donate_first=True)
    average, sampler = make_averaging(recipe), make_sampler(recipe, plain(config.sampling))
    data = replicate(dataset.train)
    real = look_at_train_split(judge, dataset)
    per_step = config.train.num_discriminator_steps * size
    num_rounds = math.ceil(config.train.num_steps / config.train.steps_per_round)
    since = time.monotonic()
    with stopping.stop_waits(), open_logbook(workdir, first_round) as log:
        for number in range(first_round, num_rounds):
            began, num_done = time.monotonic(), len(history)
            first = number * config.train.steps_per_round
            last = min(first + config.train.steps_per_round, config.train.num_steps)
            order = endless_order(
                config.seed,
                "shuffle",
                (first + num_done) * per_step,
                (last - first - num_done) * per_step,
                len(dataset.train.labels),
            )
            state, history, stopped = run_steps(
                lambda state, indices: step(state, data, indices),
                state,
                zip(order.reshape(-1, per_step)),
                earlier=history,
                num_steps=last - first,
                num_images=per_step,
                title=f"Round {number + 1}/{num_rounds}",
                advice="Lower the learning rates of config.optimizer, in a new --workdir",
            )
            generator = average(state)
            if stopped:
                checkpoint.save_interrupted(workdir, number, _to_items(generator, state), history)
                stopping.stop()
            seconds = time.monotonic() - began
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
                **{name: float(np.mean([m[name] for m in history])) for name in history[0]},
                **judge_samples(judge, made, real),
                "seconds": seconds,
                "images_per_second": order.size / seconds,
            }
            history = []
            _write_grid(workdir, number + 1, grid)
            log(line, {"samples": grid})
            # Last, so that no checkpoint is without its line: one too many is dropped on resume.
            checkpoint.save(workdir, number + 1, _to_items(generator, state), line)
            left = (time.monotonic() - since) / (number + 1 - first_round)
            left *= num_rounds - number - 1
            print(f"{_round(line, num_rounds)}  {left / 60:.1f} min left", flush=True)
            if stopping.asked():
                stopping.stop()
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


def _start(
    recipe: GanRecipe, dataset: Dataset, workdir: Path
) -> tuple[GanState, int, list[Metrics]]:
    """Returns the state to go on from, the rounds that led to it, and the steps of one begun."""
    state = init_state(recipe, dataset.train.images.shape[1:])
    begun = checkpoint.resume(workdir, _to_items(state.generator, state), "round")
    if begun.items:
        state = begun.items["training"]
    return replicate(state), begun.epoch, begun.history


def _to_items(generator: PyTree, state: GanState) -> dict[str, PyTree]:
    """Returns the generator that samples, and what only training needs."""
    return {"weights": generator, "training": state}


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
