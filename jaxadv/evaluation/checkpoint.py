"""The job `evaluate`: restore a checkpoint, run an attack suite, write the results."""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxadv.core.devices import replicate
from jaxadv.core.example_results import ExampleResults
from jaxadv.core.files import atomic_write, write_json
from jaxadv.core.results import Evaluation
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data import Dataset, in_memory
from jaxadv.evaluation import export
from jaxadv.evaluation.attack_suites import expand_suite
from jaxadv.evaluation.dataset_checks import check_with_dataset
from jaxadv.evaluation.evaluate import run_evaluation
from jaxadv.evaluation.gradient_masking import certificate_warnings
from jaxadv.evaluation.result import EvaluationResult
from jaxadv.evaluation.smoothing import certify_split
from jaxadv.models.classifier import check_certifiable, check_model_config
from jaxadv.reports import tables
from jaxadv.runs.classifier import TrainedClassifier, trained_classifier
from jaxadv.runs.distributed import from_first, is_first
from jaxadv.runs.resume_cache import open_resume_cache
from jaxadv.runs.workdir import (
    check_dataset,
    claimed,
    load_dataset,
    source_version,
    trained_config,
)


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Evaluate a checkpoint from the workdir of a training run.

    An interrupted evaluation resumes.

    Args:
      config: of configs/evaluate.py, checked.
      workdir: where the results go.

    Returns:
      The warnings of the evaluation.

    Raises:
      UserError: there is no checkpoint, or the config or the workdir is invalid.
    """
    source_version()
    if not config.checkpoint:
        raise UserError("config.checkpoint is not set: give the workdir of a training run")
    source = Path(config.checkpoint)
    trained = trained_config(source, "train", config.data.data_dir, config.data.source)
    if config.evaluation.certification.num_examples:
        check_certifiable(check_model_config(trained.model))
    dataset = load_dataset(trained.data)
    check_dataset(source, dataset)  # before the workdir is created
    check_with_dataset(trained, config.evaluation, dataset)
    with claimed(workdir, config):
        warnings = evaluate_checkpoint(
            trained, dataset, config.evaluation, source=source, which=config.which, workdir=workdir
        )
        report(workdir)
    return warnings


def report(workdir: Path) -> None:
    """Write the report of a workdir, and print its path."""

    def write_here() -> str:
        from jaxadv.reports.report import write_report  # imports Matplotlib, which is slow

        return str(write_report(workdir))

    print(f"Report: {from_first(write_here)}")


def evaluate_checkpoint(
    trained: ConfigDict,
    dataset: Dataset,
    evaluation: ConfigDict,
    *,
    source: Path,
    which: str,
    workdir: Path,
    suffix: str = "",
) -> list[str]:
    """Evaluate a checkpoint, write the results and print their table.

    The results of each attack are kept in `resume_cache<suffix>/` until the evaluation is complete,
    and an interrupted evaluation resumes from them. They include the adversarial images: 120 MB
    per attack for the test split of CIFAR-10.

    Args:
      trained: config of the run that wrote the checkpoint.
      dataset: of that run.
      evaluation: `config.evaluation`.
      source: workdir of the run.
      which: "best" or "last".
      workdir: where `evaluation<suffix>.json` and `examples<suffix>.npz` go.
      suffix: of these names.

    Returns:
      The warnings of the evaluation.

    Raises:
      UserError: no checkpoint can be restored, or the run was trained on another data set.
    """
    classifier = trained_classifier(trained, check_dataset(source, dataset), source, which)
    whole_split = {"test": dataset.test, "held_out": dataset.validation}[evaluation.split]
    split = in_memory(whole_split, evaluation.num_examples)
    n = len(split.labels)
    attacks = expand_suite(evaluation.attacks)
    task = [classifier.sha256, dataset.name, n, trained.seed, evaluation.to_dict()]
    cache = open_resume_cache(workdir, suffix, task)
    if len(cache):
        print(f"Resuming from {workdir / f'resume_cache{suffix}'}", flush=True)
    result = run_evaluation(
        classifier,
        split,
        attacks,
        class_names=dataset.class_names,
        dataset=dataset.name,
        split_name=evaluation.split,
        num_passes=evaluation.num_passes,
        batch_size=evaluation.batch_size,
        seed=trained.seed,
        precision=evaluation.precision,
        progress=is_first(),
        cache=cache,
        source=classifier.source,
        exported=evaluation.export,
        write_images=partial(_write_images, workdir, suffix=suffix),
    )
    if evaluation.certification.num_examples:
        result = _certify(result, classifier, split, evaluation, trained.seed)

    def write_here() -> None:
        _write_results(workdir, suffix, result.evaluation, result.examples)
        cache.close()

    from_first(write_here)
    if is_first():
        tables.show(result.evaluation)
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return list(result.warnings)


def _certify(
    result: EvaluationResult,
    classifier: TrainedClassifier,
    split: HostBatch,
    evaluation: ConfigDict,
    seed: int,
) -> EvaluationResult:
    """Add the certified accuracy to a result."""
    began = time.monotonic()
    with jax.default_matmul_precision(evaluation.precision):
        certified, certificate = certify_split(
            classifier.module,
            replicate(classifier.variables),
            split,
            evaluation.certification,
            evaluation.batch_size,
            seed,
            progress=is_first(),
        )
    evaluated, provenance = result.evaluation, dict(result.evaluation.provenance)
    provenance["seconds"] += time.monotonic() - began
    return EvaluationResult(
        replace(
            evaluated,
            certified=certified,
            warnings=(*evaluated.warnings, *certificate_warnings(certified)),
            provenance=provenance,
        ),
        replace(
            result.examples,
            certified_predictions=certificate.predictions,
            certified_radii=certificate.radii,
        ),
    )


def _write_results(
    workdir: Path, suffix: str, evaluation: Evaluation, examples: ExampleResults
) -> None:
    for entry in evaluation.attacks:
        if entry.uint8 and entry.flags is not None:
            export.write_record(workdir, entry, evaluation, suffix)
    with atomic_write(workdir / f"examples{suffix}.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **examples.to_arrays())
    # Written last: where this file exists, the evaluation is complete.
    write_json(workdir / f"evaluation{suffix}.json", evaluation.to_json())


def _write_images(workdir: Path, key: str, arrays: dict[str, np.ndarray], suffix: str) -> None:
    if is_first():
        export.write_images(workdir, key, arrays, suffix)
