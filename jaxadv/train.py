"""Adversarial training: the host loop, its checkpoints, and the evaluation that ends it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict

from jaxadv import checkpoint, stopping
from jaxadv import config as configs
from jaxadv.classifier import check_images, is_declared_stochastic
from jaxadv.curriculum import Budget, durations, linear_budget
from jaxadv.data import Dataset
from jaxadv.data.order import endless_order, epoch_order
from jaxadv.data.synthetic import SyntheticImages, no_images, open_synthetic
from jaxadv.evaluate import claim_dataset, evaluate_checkpoint, load_dataset, report
from jaxadv.logbook import open_logbook
from jaxadv.optimizer import make_schedule
from jaxadv.outcomes import attack_examples
from jaxadv.page import read_json
from jaxadv.parallel import own_rows, pmap_batches, replicate
from jaxadv.processes import any_process, from_first
from jaxadv.provenance import note_source
from jaxadv.recipe import Recipe, make_recipe
from jaxadv.steps import Metrics, run_steps
from jaxadv.train_step import TrainState, fit_projection, init_state, make_train_step
from jaxadv.types import Batch, UserError


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Trains, evaluates the best and the last checkpoint on the test split, and reports.

    Whatever of it the workdir already holds is not done again.

    Args:
      config: of configs/default.py.
      workdir: of the run; one that was stopped goes on where it stopped.

    Returns:
      The warnings that the evaluations raised, an earlier call's among them.

    Raises:
      UserError: the config, the data or the workdir is not right, or the loss diverged.
    """
    note_source()
    configs.check(config, jax.device_count())
    dataset = load_dataset(config.data)
    with configs.claimed(workdir, config):
        train(config, dataset, workdir)
        warnings = []
        for which, suffix in _checkpoints_to_evaluate(workdir):
            path = workdir / f"evaluation{suffix}.json"
            done = from_first(partial(_warnings_of, path))
            if done is not None:
                warnings += done
                continue
            warnings += evaluate_checkpoint(
                config,
                dataset,
                config.evaluation,
                source=workdir,
                which=which,
                workdir=workdir,
                suffix=suffix,
            )
        report(workdir)
    return warnings


def _warnings_of(evaluation: Path) -> list[str] | None:
    """Returns the warnings of an evaluation; None where it is not done."""
    return read_json(evaluation).get("warnings")


def train(config: ConfigDict, dataset: Dataset, workdir: Path) -> TrainState:
    """Trains to the last epoch, from the last checkpoint if there is one.

    Every random number follows from the seed and the step, so a run that was killed ends in
    the same bits as one that was not.

    Args:
      config: of configs/default.py, checked.
      dataset: its train split is learned, its validation split chooses the best checkpoint.
      workdir: where checkpoints, metrics.jsonl and TensorBoard's event files go.

    Returns:
      The state after the last epoch.
    """
    num_epochs, batch_size = config.train.num_epochs, config.train.batch_size
    steps_per_epoch = len(dataset.train.labels) // batch_size
    if not steps_per_epoch:
        raise UserError(
            f"config.train.batch_size is {batch_size}: the train split has only "
            f"{len(dataset.train.labels)} images"
        )
    schedule = make_schedule(config.optimizer, num_epochs, steps_per_epoch)
    recipe = make_recipe(config, len(dataset.class_names), schedule)
    state, first_epoch, history = _start(recipe, dataset, workdir)
    train_step = pmap_batches(
        make_train_step(recipe), num_replicated=3, num_batches=2, donate_first=True
    )
    synthetic = _open_synthetic(config, dataset)
    num_synthetic = recipe.num_synthetic * jax.device_count()
    num_real = batch_size - num_synthetic
    data = replicate(dataset.train)
    budgets = [linear_budget(config.attack, epoch, num_epochs) for epoch in range(num_epochs)]
    costs = durations(config)
    since = time.monotonic()
    with stopping.stop_waits(), open_logbook(workdir, first_epoch) as log:
        for epoch in range(first_epoch, num_epochs):
            began, num_done = time.monotonic(), len(history)
            order = epoch_order(config.seed, "shuffle", epoch, len(dataset.train.labels))
            real = order[: steps_per_epoch * num_real].reshape(steps_per_epoch, num_real)
            made = endless_order(
                config.seed,
                "synthetic",
                epoch * steps_per_epoch * num_synthetic,
                steps_per_epoch * num_synthetic,
                len(synthetic),
            ).reshape(steps_per_epoch, num_synthetic)
            state, history, stopped = run_steps(
                partial(_step, train_step, data, budgets[epoch]),
                state,
                _batches(real[num_done:], made[num_done:], synthetic),
                earlier=history,
                num_steps=steps_per_epoch,
                num_images=batch_size,
                title=f"Epoch {epoch + 1}/{num_epochs}",
                advice="Lower config.optimizer.learning_rate, in a new --workdir",
            )
            if stopped:
                checkpoint.save_interrupted(workdir, epoch, _to_items(state), history)
                stopping.stop()
            seconds = time.monotonic() - began
            line = {
                "epoch": epoch + 1,
                "step": int(state.step),
                **budgets[epoch]._asdict(),
                "learning_rate": float(schedule(int(state.step) - 1)),
                **_means(history),
                **_validate(recipe, state.weights, dataset.validation, config),
                "seconds": seconds,
                "images_per_second": (len(history) - num_done) * batch_size / seconds,
            }
            history = []
            log(line)
            # Last, so that no checkpoint is without its line: one too many is dropped on resume.
            checkpoint.save(workdir, epoch + 1, _to_items(state), line)
            left = _seconds_left(costs, first_epoch, epoch + 1, since)
            print(_summary(line, num_epochs, left), flush=True)
            if any_process(stopping.asked()):
                stopping.stop()
    return state


def _open_synthetic(config: ConfigDict, dataset: Dataset) -> SyntheticImages:
    """Returns the images of `config.data.synthetic`; where its share is 0 there are none."""
    image_shape = dataset.train.images.shape[1:]
    if not config.data.synthetic.share:
        return no_images(image_shape)
    return open_synthetic(config.data.synthetic.path, image_shape, len(dataset.class_names))


def _batches(
    real: Int[np.ndarray, "steps real"],
    made: Int[np.ndarray, "steps synthetic"],
    synthetic: SyntheticImages,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields for each step which real images it sees, and the synthetic ones themselves.

    Of several processes each reads those of its own devices.
    """
    own = own_rows(made.shape[1])
    for indices, rows in zip(real, made, strict=True):
        labels: Any = synthetic.labels[rows]
        images: Any = np.zeros((len(rows), *synthetic.image_shape), np.uint8)
        images[own] = synthetic.take(rows[own])
        yield indices, Batch(images, labels)


def _start(
    recipe: Recipe, dataset: Dataset, workdir: Path
) -> tuple[TrainState, int, list[Metrics]]:
    """Returns the state to go on from, the epochs that led to it, and the steps of one begun."""
    check_images(dataset.train.images)
    claim_dataset(workdir, dataset)
    state = init_state(recipe, dataset.train.images.shape[1:])
    begun = checkpoint.resume(workdir, _to_items(state))
    if begun.items:
        state = _from_items(begun.items, state)
    else:
        state = fit_projection(state, dataset.train.images)
    return replicate(state), begun.epoch, begun.history


def _step(
    train_step: Callable,
    data: Batch,
    budget: Budget,
    state: TrainState,
    indices: Int[np.ndarray, "real"],
    synthetic: Batch,
) -> tuple[TrainState, Metrics]:
    return train_step(state, data, budget, indices, synthetic)


def _means(history: list[Metrics]) -> dict[str, float | None]:
    """Returns the means of the metrics of an epoch's steps; None for what the steps do not have."""
    names = ("loss", "loss_clean", "loss_adversarial", "accuracy_clean", "accuracy_adversarial")
    return {
        f"train_{name}": float(np.mean([m[name] for m in history])) if name in history[0] else None
        for name in names
    }


def _validate(recipe: Recipe, weights: PyTree, split: Batch, config: ConfigDict) -> dict:
    """Returns clean and robust accuracy on the held-out split, of a noisy model over 10 passes."""
    passes = 10 if is_declared_stochastic(recipe.model) else 1
    attack = {
        "attack": "pgd",
        **config.validation,
        "norm": config.attack.norm,
        "random_start": False,
    }
    size = config.evaluation.batch_size
    everything = np.arange(len(split.labels))
    run = partial(attack_examples, recipe.model, weights, split, num_passes=passes)
    robust = 0
    with jax.default_matmul_precision(config.evaluation.precision):
        clean = run({}, everything, size, recipe.seed)
        if clean.nonfinite.any():
            raise UserError(
                f"the logits of {int(clean.nonfinite.sum())} of {len(split.labels)} held-out "
                "images are NaN or infinite; the last checkpoint is kept. Lower "
                "config.optimizer.learning_rate, in a new --workdir"
            )
        standing = np.flatnonzero(clean.predictions == split.labels)
        if standing.size:
            attacked = run(attack, standing, size, recipe.seed)
            robust = int((attacked.predictions == split.labels[standing]).sum())
    return {
        "validation_accuracy_clean": len(standing) / len(split.labels),
        "validation_accuracy_robust": robust / len(split.labels),
    }


def _to_items(state: TrainState) -> dict[str, PyTree]:
    """Returns the weights, which evaluation restores alone, and what only training needs."""
    if state.ema is None:
        return {"weights": state.variables, "training": replace(state, variables=None)}
    return {"weights": state.ema, "training": replace(state, ema=None)}


def _from_items(items: dict[str, PyTree], like: TrainState) -> TrainState:
    if like.ema is None:
        return replace(items["training"], variables=items["weights"])
    return replace(items["training"], ema=items["weights"])


def _checkpoints_to_evaluate(workdir: Path) -> list[tuple[str, str]]:
    """Returns (which, suffix) of the evaluations: one where the last epoch is the best."""
    best, last = (checkpoint.restore(workdir, which, {}) for which in ("best", "last"))
    both = best and last and best.epoch != last.epoch
    return [("best", ""), ("last", "_last")] if both else [("best", "")]


def _summary(line: dict[str, Any], num_epochs: int, seconds_left: float) -> str:
    return (
        f"epoch {line['epoch']:>3}/{num_epochs}"
        f"  eps {line['eps']:.4f} x {line['num_steps']:>2} steps"
        f"  loss {line['train_loss']:.4f}"
        f"  held-out clean {line['validation_accuracy_clean']:6.2%}"
        f"  robust {line['validation_accuracy_robust']:6.2%}"
        f"  {line['images_per_second']:,.0f} img/s  {seconds_left / 60:.1f} min left"
    )


def _seconds_left(costs: list[float], first: int, done: int, since: float) -> float:
    """Foretells the time to the end from that since the first epoch of this session."""
    return (time.monotonic() - since) * sum(costs[done:]) / sum(costs[first:done])
