"""Training of a conditional GAN: the job, the loop over rounds, and the evaluation of samples."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from jaxadv.core.devices import pmap_batches, replicate
from jaxadv.core.files import read_json, write_json
from jaxadv.core.images import check_images
from jaxadv.core.sample_quality import GanResult, SampleQuality
from jaxadv.core.types import UserError
from jaxadv.data import Dataset, in_memory
from jaxadv.data.datasets import endless_order
from jaxadv.data.examples import image_shape
from jaxadv.data.resident import make_resident
from jaxadv.evaluation.dataset_checks import check_with_dataset
from jaxadv.gan.evaluator import (
    SampleEvaluator,
    check_evaluator,
    classify_train_split,
    evaluate_on_test,
    evaluate_samples,
    make_sample_evaluator,
    num_test_images,
    summary,
    train_images,
    write_neighbours,
)
from jaxadv.gan.sampling import concatenate, make_sampler, prior_sampling, sample_batches
from jaxadv.gan.step import (
    GanSetup,
    GanState,
    checkpoint_items,
    init_state,
    make_averaging,
    make_gan_setup,
    make_gan_step,
    restore,
)
from jaxadv.models.classifier import make_classifier
from jaxadv.reports.images import mosaic
from jaxadv.runs import checkpoints, signals
from jaxadv.runs.distributed import any_process, from_first, is_first
from jaxadv.runs.metrics_log import open_metrics_log
from jaxadv.runs.workdir import claim_dataset, claimed, load_dataset, provenance, source_version
from jaxadv.training.loop import Metrics, run_steps

_GRID_ROWS = 8  # samples of each class in a grid
_NUM_NEIGHBOURS = 10  # samples that the report shows with their nearest train images


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Train a sample evaluator and a GAN, evaluate its samples, and write the report.

    Parts whose results are already in the workdir are skipped. An interrupted run resumes.

    Args:
      config: of configs/gan.py.
      workdir: of the run.

    Returns:
      No warnings.

    Raises:
      UserError: the config, the data or the workdir is not valid, or the loss diverged.
    """
    source_version()
    dataset = load_dataset(config.data)
    check_images(train_images(dataset))
    _check_side(config, dataset)
    _check_grid(config, dataset)
    if not config.evaluator.checkpoint:
        classifier = config.evaluator.classifier
        check_with_dataset(classifier, classifier.evaluation, dataset)
        model = make_classifier(classifier.model, len(dataset.class_names))
        check_evaluator(model, image_shape(dataset.train))
    with claimed(workdir, config):
        claim_dataset(workdir, dataset)  # also in `train`, but the evaluator takes long
        evaluator = make_sample_evaluator(config, dataset, workdir)
        train(config, dataset, evaluator, workdir)
        if not from_first((workdir / "gan.json").exists):
            _evaluate_best(config, dataset, evaluator, workdir)
        print(from_first(lambda: _report(workdir)))
    return []


def _report(workdir: Path) -> str:
    """Write the report; return the quality of the samples and the path of the report."""
    from jaxadv.reports import report

    quality = GanResult.from_json(read_json(workdir / "gan.json")).samples
    return f"{summary(quality)}\nReport: {report.write_gan_report(workdir)}"


def _check_grid(config: ConfigDict, dataset: Dataset) -> None:
    """Check that there are enough samples for the image grids, which show some of each class."""
    num_shown = _GRID_ROWS * len(dataset.class_names)
    if config.evaluator.num_samples < num_shown:
        raise UserError(
            f"config.evaluator.num_samples is {config.evaluator.num_samples}: use at least "
            f"{num_shown}, the number of samples that the image grids show"
        )


def _check_side(config: ConfigDict, dataset: Dataset) -> None:
    """Check that the generator's images, of side 4 * 2 ** num_blocks, have the size of the data."""
    num_blocks = config.generator.num_blocks
    side, (height, width) = 4 << num_blocks, image_shape(dataset.train)[:2]
    if (height, width) == (side, side):
        return
    fitting = (height // 4).bit_length() - 1  # number of blocks for images of this height
    remedy = (
        f"set config.generator.num_blocks={fitting}"
        if height == width and fitting > 0 and 4 << fitting == height
        else f"resize them with config.data.size={side}"
    )
    raise UserError(
        f"config.generator.num_blocks is {num_blocks}, which gives images of {side} x {side} "
        f"pixels, and those of the data set have {height} x {width}: {remedy}"
    )


def train(
    config: ConfigDict, dataset: Dataset, evaluator: SampleEvaluator, workdir: Path
) -> GanState:
    """Train for all steps, starting from the last checkpoint if there is one.

    Each round runs its steps, evaluates samples against the train split, appends a line to the
    metrics log and saves a checkpoint. All random numbers follow from the seed and the step, so an
    interrupted run ends in the same bits as an uninterrupted one.

    Args:
      config: of configs/gan.py, checked.
      dataset: its train split is used.
      evaluator: of the samples.
      workdir: for checkpoints, metrics.jsonl, grids and TensorBoard's event files.

    Returns:
      The state after the last step.
    """
    num_classes = len(dataset.class_names)
    images_per_step = config.train.num_discriminator_steps * config.train.batch_size
    setup = make_gan_setup(config, num_classes, image_shape(dataset.train)[-1])
    record = claim_dataset(workdir, dataset)
    state, first_round, history = _resume(setup, dataset, record, workdir)
    step = pmap_batches(make_gan_step(setup), num_replicated=2, num_batches=1, donate_first=True)
    average = make_averaging(setup)
    sampler = make_sampler(setup, prior_sampling(config.sampling))
    data = make_resident(in_memory(dataset.train))
    real = classify_train_split(evaluator, dataset)
    num_rounds = math.ceil(config.train.num_steps / config.train.steps_per_round)
    started = time.monotonic()
    with signals.defer_stop(), open_metrics_log(workdir, first_round) as log:
        for number in range(first_round, num_rounds):
            round_started, num_resumed = time.monotonic(), len(history)
            first = number * config.train.steps_per_round
            last = min(first + config.train.steps_per_round, config.train.num_steps)
            state, history, stopped = run_steps(
                lambda state, indices: step(state, data, indices),
                state,
                _batches(config, images_per_step, dataset, first + num_resumed, last),
                earlier=history,
                num_steps=last - first,
                num_images=images_per_step,
                title=f"Round {number + 1}/{num_rounds}",
                advice="Lower the learning rates of config.optimizer, in a new --workdir",
            )
            generator = average(state)
            if stopped:
                items = checkpoint_items(generator, state)
                checkpoints.save_interrupted(workdir, number, items, history, record)
                signals.raise_stopped()
            seconds = time.monotonic() - round_started
            samples = concatenate(
                sample_batches(
                    sampler,
                    replicate((generator, state.discriminator)),
                    config.evaluator.num_samples,
                    num_classes,
                    config.sampling.batch_size,
                )
            )
            grid = mosaic(samples.images[: _GRID_ROWS * num_classes], num_classes)
            quality = evaluate_samples(evaluator, samples, real)
            line = {
                "epoch": number + 1,
                "step": last,
                **{name: float(np.mean([m[name] for m in history])) for name in history[0]},
                **quality.to_json(),
                "seconds": seconds,
                "images_per_second": (len(history) - num_resumed) * images_per_step / seconds,
            }
            history = []
            if is_first():
                _write_grid(workdir, number + 1, grid)
            log(line, {"samples": grid})
            # The checkpoint comes last, so that each has its line. A line too many is dropped on
            # resume.
            checkpoints.save(workdir, number + 1, checkpoint_items(generator, state), line, record)
            seconds_per_round = (time.monotonic() - started) / (number + 1 - first_round)
            seconds_left = seconds_per_round * (num_rounds - number - 1)
            print(_summary(line, quality, num_rounds, seconds_left), flush=True)
            if any_process(signals.stop_requested()):
                signals.raise_stopped()
    return state


def _resume(
    setup: GanSetup, dataset: Dataset, record: Mapping[str, Any], workdir: Path
) -> tuple[GanState, int, list[Metrics]]:
    """Return the state to start from, its finished rounds, and the metrics of later steps."""
    state = init_state(setup, image_shape(dataset.train))
    items = checkpoint_items(state.generator, state)
    resume_point = checkpoints.resume(workdir, items, "round", record)
    if resume_point.items:
        state = resume_point.items["training"]
    return replicate(state), resume_point.epoch, resume_point.history


def _batches(
    config: ConfigDict, images_per_step: int, dataset: Dataset, first: int, last: int
) -> Iterator[tuple[Int[np.ndarray, "all"]]]:
    """Return the positions of the real images of the steps from `first` to before `last`."""
    order = endless_order(
        config.seed,
        "shuffle",
        first * images_per_step,
        (last - first) * images_per_step,
        len(dataset.train.labels),
    )
    return zip(order.reshape(-1, images_per_step))


def _write_grid(
    workdir: Path, number: int, grid: UInt8[np.ndarray, "rows columns channels"]
) -> None:
    folder = workdir / "grids"
    folder.mkdir(exist_ok=True)
    Image.fromarray(grid).save(folder / f"round_{number:04}.png")


def _summary(
    line: dict[str, Any], quality: SampleQuality, num_rounds: int, seconds_left: float
) -> str:
    return (
        f"round {line['epoch']:>3}/{num_rounds}  step {line['step']:,}"
        f"  loss {line['discriminator_loss']:.3f} / {line['generator_loss']:.3f}"
        f"  {summary(quality)}  {line['images_per_second']:,.0f} img/s"
        f"  {seconds_left / 60:.1f} min left"
    )


def _evaluate_best(
    config: ConfigDict, dataset: Dataset, evaluator: SampleEvaluator, workdir: Path
) -> None:
    """Evaluate the best checkpoint on the test split; write `gan.json` and `neighbours.npz`."""
    started = time.monotonic()
    setup, networks, number = restore(config, dataset, workdir, "best")
    samples = concatenate(
        sample_batches(
            make_sampler(setup, prior_sampling(config.sampling)),
            networks,
            num_test_images(dataset),
            len(dataset.class_names),
            config.sampling.batch_size,
        )
    )
    first_images = samples.images[:_NUM_NEIGHBOURS]
    write_neighbours(workdir / "neighbours.npz", evaluator, first_images, dataset)
    evaluation = evaluate_on_test(evaluator, samples, dataset)
    result = GanResult(
        dataset=dataset.name,
        class_names=tuple(dataset.class_names),
        round=number,
        num_images=evaluation.num_images,
        evaluator_accuracy=evaluation.evaluator_accuracy,
        samples=evaluation.samples,
        provenance=provenance(time.monotonic() - started),
    )
    from_first(lambda: write_json(workdir / "gan.json", result.to_json()))
