"""Adversarial training: the job, the epoch loop, and what each epoch consists of."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict

from jaxadv.adapters.trained import noise_models
from jaxadv.core.devices import local_rows, pmap_batches, replicate
from jaxadv.core.files import read_json
from jaxadv.core.images import check_images
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import Dataset
from jaxadv.data.datasets import endless_order
from jaxadv.data.examples import StoredExamples, image_shape, in_memory
from jaxadv.data.loader import BatchRows, streamed_batches
from jaxadv.data.resident import ResidentSplit, make_resident
from jaxadv.data.synthetic import SyntheticImages, no_images, open_synthetic
from jaxadv.evaluation.attack_runner import Scores, run_attack, score_images
from jaxadv.evaluation.attack_suites import ConfiguredAttack
from jaxadv.evaluation.checkpoint import evaluate_checkpoint, report
from jaxadv.evaluation.dataset_checks import check_with_dataset
from jaxadv.models.classifier import is_declared_stochastic
from jaxadv.runs import checkpoints, signals
from jaxadv.runs.distributed import any_process, from_first
from jaxadv.runs.metrics_log import open_metrics_log
from jaxadv.runs.pretrained import initial_variables
from jaxadv.runs.workdir import claim_dataset, claimed, has_results, load_dataset, source_version
from jaxadv.training.curriculum import Budget, durations, linear_budget
from jaxadv.training.loop import Metrics, run_steps
from jaxadv.training.overfitting import describe_catastrophic_overfitting
from jaxadv.training.setup import TrainingSetup, make_training_setup
from jaxadv.training.step import (
    TrainState,
    fit_projection,
    init_state,
    make_train_step,
    with_variables,
)

RealBatch = Int[np.ndarray, "real"] | HostBatch
"""Positions in the train split on the devices, or images that are not there."""


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Train, evaluate the best and the last checkpoint on the test split, and write the report.

    Parts whose results are already in the workdir are skipped. An interrupted run resumes.

    Args:
      config: of configs/default.py.
      workdir: of the run.

    Returns:
      The warnings of all evaluations, including those of an earlier call.

    Raises:
      UserError: the config, the data or the workdir is not valid, or the loss diverged.
    """
    source_version()
    if config.init_from and not from_first(lambda: has_results(workdir)):
        _check_exists(config.init_from)
    dataset = load_dataset(config.data)
    check_with_dataset(config, config.evaluation, dataset)
    with claimed(workdir, config):
        train(config, dataset, workdir)
        warnings = []
        for which, suffix in _checkpoints_to_evaluate(workdir):
            path = workdir / f"evaluation{suffix}.json"
            earlier = from_first(partial(_read_warnings, path))
            if earlier is not None:
                warnings += earlier
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


def _check_exists(init_from: str) -> None:
    if not Path(init_from).exists():
        raise UserError(
            f"config.init_from is {init_from}, which does not exist: pass a file of weights, a "
            "folder of Orbax or the workdir of a run"
        )


def _checkpoints_to_evaluate(workdir: Path) -> list[tuple[str, str]]:
    """Return (which, suffix) of each evaluation; one if the last epoch is the best."""
    best, last = (checkpoints.restore(workdir, which, {}) for which in ("best", "last"))
    both = best and last and best.epoch != last.epoch
    return [("best", ""), ("last", "_last")] if both else [("best", "")]


def _read_warnings(evaluation: Path) -> list[str] | None:
    """Return the warnings of a finished evaluation, otherwise None."""
    return read_json(evaluation).get("warnings")


def train(config: ConfigDict, dataset: Dataset, workdir: Path) -> TrainState:
    """Train for all epochs, starting from the last checkpoint if there is one.

    Each epoch runs the steps, validates, appends a line to the metrics log and saves a checkpoint.
    All random numbers follow from the seed and the step, so an interrupted run ends in the same
    bits as an uninterrupted one.

    Args:
      config: of configs/default.py, checked.
      dataset: its train split is used for the updates, its validation split chooses the best
        checkpoint.
      workdir: for checkpoints, metrics.jsonl and TensorBoard's event files.

    Returns:
      The state after the last epoch.

    Raises:
      UserError: a batch is larger than the train split, or the loss or validation logits are not
        finite.
    """
    num_epochs, batch_size = config.train.num_epochs, config.train.batch_size
    steps_per_epoch = _steps_per_epoch(batch_size, dataset)
    setup = make_training_setup(config, len(dataset.class_names), steps_per_epoch)
    if isinstance(dataset.train, HostBatch):
        check_images(dataset.train.images)
    record = claim_dataset(workdir, dataset)
    state, first_epoch, history = _resume(config, setup, dataset, record, workdir)
    train_step = pmap_batches(
        make_train_step(setup), num_replicated=3, num_batches=2, donate_first=True
    )
    synthetic = _open_synthetic(config, dataset)
    rows = BatchRows(
        seed=config.seed,
        num_examples=len(dataset.train.labels),
        batch_size=batch_size - setup.num_synthetic * jax.device_count(),
        batches_per_epoch=steps_per_epoch,
        num_epochs=num_epochs,
    )
    validation = in_memory(dataset.validation)
    best = checkpoints.restore(workdir, "best", {}, record)
    best_robust = best.metrics["validation_accuracy_robust"] if best else 0.0
    started = time.monotonic()
    with (
        signals.defer_stop(),
        open_metrics_log(workdir, first_epoch) as log,
        _real_batches(dataset.train, rows, int(state.step)) as (data, real),
    ):
        for epoch in range(first_epoch, num_epochs):
            epoch_started, first_step = time.monotonic(), len(history)
            budget = linear_budget(config.attack, epoch, num_epochs)
            state, history, stopped = run_steps(
                partial(_step, train_step, data, budget),
                state,
                _batches(config, setup, rows, real, synthetic, epoch, first_step),
                earlier=history,
                num_steps=steps_per_epoch,
                num_images=batch_size,
                title=f"Epoch {epoch + 1}/{num_epochs}",
                advice="Lower config.optimizer.learning_rate, in a new --workdir",
            )
            if stopped:
                checkpoints.save_interrupted(workdir, epoch, _to_items(state), history, record)
                signals.raise_stopped()
            seconds = time.monotonic() - epoch_started
            line = {
                "epoch": epoch + 1,
                "step": int(state.step),
                **budget._asdict(),
                "learning_rate": float(setup.schedule(int(state.step) - 1)),
                **_mean_metrics(history),
                **_validate(setup, state.weights, validation, config),
                "seconds": seconds,
                "images_per_second": (len(history) - first_step) * batch_size / seconds,
            }
            history = []
            log(line)
            # The checkpoint comes last, so that each has its line. A line too many is dropped on
            # resume.
            checkpoints.save(workdir, epoch + 1, _to_items(state), line, record)
            seconds_left = _seconds_left(config, first_epoch, epoch + 1, started)
            print(_summary(line, num_epochs, seconds_left), flush=True)
            if message := describe_catastrophic_overfitting(line, best_robust, config):
                print(f"warning: {message}", file=sys.stderr)
            best_robust = max(line["validation_accuracy_robust"], best_robust)
            if any_process(signals.stop_requested()):
                signals.raise_stopped()
    return state


def _steps_per_epoch(batch_size: int, dataset: Dataset) -> int:
    num_images = len(dataset.train.labels)
    if num_images < batch_size:
        raise UserError(
            f"config.train.batch_size is {batch_size}: the train split has only {num_images} images"
        )
    return num_images // batch_size


def _resume(
    config: ConfigDict,
    setup: TrainingSetup,
    dataset: Dataset,
    record: Mapping[str, Any],
    workdir: Path,
) -> tuple[TrainState, int, list[Metrics]]:
    """Return the state to start from, its finished epochs, and the metrics of later steps."""
    state = init_state(setup, image_shape(dataset.train))
    resume_point = checkpoints.resume(workdir, _to_items(state), dataset=record)
    if resume_point.items:
        state = _from_items(resume_point.items, state)
    else:
        state = fit_projection(state, dataset.train)
        if config.init_from:
            shape = image_shape(dataset.train)
            weights = initial_variables(config, setup.model, state.variables, shape)
            state = with_variables(state, weights)
    return replicate(state), resume_point.epoch, resume_point.history


def _to_items(state: TrainState) -> dict[str, PyTree]:
    """Return the items of a checkpoint: the weights, which evaluation restores, and the rest."""
    if state.ema is None:
        return {"weights": state.variables, "training": replace(state, variables=None)}
    return {"weights": state.ema, "training": replace(state, ema=None)}


def _from_items(items: dict[str, PyTree], like: TrainState) -> TrainState:
    if like.ema is None:
        return replace(items["training"], variables=items["weights"])
    return replace(items["training"], ema=items["weights"])


def _open_synthetic(config: ConfigDict, dataset: Dataset) -> SyntheticImages:
    """Return the images of `config.data.synthetic`; none if its share is 0."""
    shape = image_shape(dataset.train)
    if not config.data.synthetic.share:
        return no_images(shape)
    return open_synthetic(config.data.synthetic.path, shape, len(dataset.class_names))


@contextmanager
def _real_batches(
    train: HostBatch | StoredExamples, rows: BatchRows, first: int
) -> Iterator[tuple[ResidentSplit | None, Iterator[RealBatch]]]:
    """Yield the train split on the devices, if it is in memory, and the remaining batches of it.

    Args:
      train: the train split.
      rows: of all batches.
      first: step of the first batch.
    """
    if isinstance(train, HostBatch):
        yield make_resident(train), (rows[step] for step in range(first, len(rows)))
        return
    with streamed_batches(train, rows, first, local_rows(rows.batch_size)) as batches:
        yield None, batches


def _batches(
    config: ConfigDict,
    setup: TrainingSetup,
    rows: BatchRows,
    real: Iterator[RealBatch],
    synthetic: SyntheticImages,
    epoch: int,
    first_step: int,
) -> Iterator[tuple[RealBatch, HostBatch]]:
    """Yield the real and the synthetic images of each remaining step of an epoch.

    Each process reads the synthetic images of its devices only.
    """
    num_steps = rows.batches_per_epoch
    num_synthetic = setup.num_synthetic * jax.device_count()
    made = endless_order(
        config.seed,
        "synthetic",
        epoch * num_steps * num_synthetic,
        num_steps * num_synthetic,
        len(synthetic),
    ).reshape(num_steps, num_synthetic)
    local = local_rows(num_synthetic)
    for selected in made[first_step:]:
        images = np.zeros((len(selected), *synthetic.image_shape), np.uint8)
        images[local] = synthetic.take(selected[local])
        yield next(real), HostBatch(images, synthetic.labels[selected])


def _step(
    train_step: Callable,
    data: ResidentSplit | None,
    budget: Budget,
    state: TrainState,
    real: RealBatch,
    synthetic: HostBatch,
) -> tuple[TrainState, Metrics]:
    return train_step(state, data, budget, real, synthetic)


def _mean_metrics(history: list[Metrics]) -> dict[str, float | None]:
    """Return the mean metrics of the steps of an epoch; None for metrics that the steps lack."""
    names = ("loss", "loss_clean", "loss_adversarial", "accuracy_clean", "accuracy_adversarial")
    return {
        f"train_{name}": float(np.mean([m[name] for m in history])) if name in history[0] else None
        for name in names
    }


def _validate(
    setup: TrainingSetup, weights: PyTree, split: HostBatch, config: ConfigDict
) -> dict[str, float]:
    """Return the clean and the robust accuracy on the validation split.

    The predictions of a stochastic model are the mean over 10 forward passes. Misclassified images
    are not attacked.
    """
    model = noise_models(setup.model, weights, setup.seed)["on"]
    num_passes = 10 if is_declared_stochastic(setup.model) else 1
    batch_size = config.evaluation.batch_size
    arguments = {**config.validation, "norm": config.attack.norm, "random_start": False}
    eps = arguments.pop("eps")
    attack = ConfiguredAttack("validation", "pgd", eps, arguments=arguments)

    def predict(images: np.ndarray | None, ids: Int[np.ndarray, "n"]) -> Scores:
        return score_images(
            model, split, images, ids, batch_size, setup.seed, num_passes=num_passes
        )

    num_robust = 0
    with jax.default_matmul_precision(config.evaluation.precision):
        clean = predict(None, np.arange(len(split.labels)))
        if clean.nonfinite.any():
            raise UserError(
                f"the logits of {int(clean.nonfinite.sum())} of {len(split.labels)} held-out "
                "images are NaN or infinite; the last checkpoint is kept. Lower "
                "config.optimizer.learning_rate, in a new --workdir"
            )
        correct = np.flatnonzero(clean.predictions == split.labels)
        if correct.size:
            attacked = run_attack(model, split, attack, correct, batch_size, setup.seed)
            predictions = predict(np.asarray(attacked.images), correct).predictions
            num_robust = int((predictions == split.labels[correct]).sum())
    return {
        "validation_accuracy_clean": len(correct) / len(split.labels),
        "validation_accuracy_robust": num_robust / len(split.labels),
    }


def _summary(line: dict[str, Any], num_epochs: int, seconds_left: float) -> str:
    return (
        f"epoch {line['epoch']:>3}/{num_epochs}"
        f"  eps {line['eps']:.4f} x {line['num_steps']:>2} steps"
        f"  loss {line['train_loss']:.4f}"
        f"  validation clean {line['validation_accuracy_clean']:5.1%}"
        f"  robust {line['validation_accuracy_robust']:5.1%}"
        f"  {line['images_per_second']:,.0f} img/s  {seconds_left / 60:.1f} min left"
    )


def _seconds_left(config: ConfigDict, first_epoch: int, num_done: int, started: float) -> float:
    """Estimate the time of the remaining epochs from the time since `first_epoch` began."""
    costs = durations(config)
    return (time.monotonic() - started) * sum(costs[num_done:]) / sum(costs[first_epoch:num_done])
