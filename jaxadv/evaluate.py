"""Evaluation of a trained classifier: restore, attack, report."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxadv import checkpoint, export, terminal
from jaxadv import config as configs
from jaxadv.attacks.batches import seconds_spent
from jaxadv.battery import run_battery
from jaxadv.certification import certify_split
from jaxadv.classifier import make_classifier
from jaxadv.data import Dataset, is_prepared, load
from jaxadv.files import write_json, written_whole
from jaxadv.ledger import open_ledger
from jaxadv.masking import certificate_warnings
from jaxadv.parallel import replicate
from jaxadv.processes import first_goes_before, from_first, is_first
from jaxadv.provenance import note_source, provenance
from jaxadv.types import Batch, UserError

_DATASET = "dataset.json"


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Restores a checkpoint from the workdir of a training run alone, and evaluates it.

    One that was stopped goes on where it stopped.

    Args:
      config: of configs/evaluate.py.
      workdir: where the results go.

    Returns:
      The warnings that it raised.

    Raises:
      UserError: there is nothing to restore, or the config or workdir is not right.
    """
    note_source()
    configs.check(config, jax.device_count())
    if not config.checkpoint:
        raise UserError("config.checkpoint is not set: give the workdir of a training run")
    source = Path(config.checkpoint)
    trained = trained_config(source, "train", config.data.data_dir)
    configs.check_model(trained.model, config.evaluation)
    dataset = load_dataset(trained.data)
    check_dataset(source, dataset)
    with configs.claimed(workdir, config):
        warnings = evaluate_checkpoint(
            trained, dataset, config.evaluation, source=source, which=config.which, workdir=workdir
        )
        report(workdir)
    return warnings


def report(workdir: Path) -> None:
    """Writes the report of a workdir, and says where."""

    def write_here() -> str:
        from jaxadv.report import write  # Matplotlib takes a second, which no start waits for

        return str(write(workdir))

    print(f"Report: {from_first(write_here)}")


def trained_config(source: Path, mode: str, data_dir: str | None) -> ConfigDict:
    """Returns the config of a run from anywhere, which may have been written by anyone.

    Args:
      source: workdir of the run.
      mode: that it must have been of.
      data_dir: where the data set is on this machine; None: where the run had it, if it is there,
        for nothing is prepared on the word of such a file.

    Raises:
      UserError: it is not the config of a run.
    """
    read = from_first(lambda: configs.read(source, mode).to_json())
    trained = ConfigDict(json.loads(read))
    try:
        own = trained.data.data_dir if is_prepared(trained.data.data_dir) else None
        trained.data.data_dir = data_dir or own
        if None in (trained.seed, trained.data.name, trained.data.validation_fraction):
            raise KeyError("a value is missing")
        if mode == "train":
            make_classifier(trained.model, num_classes=10)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{source / 'config.json'} is of no run that is known ({error})") from error
    return trained


def load_dataset(data: ConfigDict) -> Dataset:
    """Returns the data set of `config.data`."""
    return first_goes_before(
        lambda: load(
            data.name, data_dir=data.data_dir, validation_fraction=data.validation_fraction
        )
    )


def claim_dataset(workdir: Path, dataset: Dataset) -> None:
    """Records which data set the run of a workdir is trained on, or checks that it is still that.

    Raises:
      UserError: the run has results on another data set.
    """
    if from_first(lambda: configs.has_results(workdir)):
        check_dataset(workdir, dataset)
        return

    def write_here() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / _DATASET, _describe_dataset(dataset))

    from_first(write_here)


def check_dataset(workdir: Path, dataset: Dataset) -> None:
    """Checks that a data set is the one that the run of a workdir was trained on.

    Runs from before this was recorded pass.

    Raises:
      UserError: it is another one.
    """
    given = _describe_dataset(dataset)
    recorded = from_first(lambda: _read_record(workdir / _DATASET, given))
    if recorded is None:
        return
    # What follows a comma tells copies of a data set apart, as in "CIFAR-10, JPEG copy".
    names = {described["name"].partition(",")[0] for described in (recorded, given)}
    if len(names) > 1 or {**recorded, "name": ""} != {**given, "name": ""}:
        raise UserError(
            f"the run in {workdir} was trained on {_dataset_in_words(recorded)}, this is "
            f"{_dataset_in_words(given)}: use the data set of the run, from Python if it has no "
            "config.data.name"
        )


def _read_record(path: Path, like: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the record of a data set, which may have been written by anyone; None: no record."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        if {key: type(value) for key, value in recorded.items()} != {
            key: type(value) for key, value in like.items()
        }:
            raise ValueError("other keys or types than those of a record")
    except FileNotFoundError:
        return None
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it if the run had the data set of its config"
        ) from None
    return recorded


def _describe_dataset(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "image_shape": [int(size) for size in dataset.train.images.shape[1:]],
        "class_names": [str(name) for name in dataset.class_names],
    }


def _dataset_in_words(described: dict[str, Any]) -> str:
    shape = " x ".join(map(str, described["image_shape"]))
    return f"{described['name']!r} ({len(described['class_names'])} classes, images of {shape})"


def restore_classifier(
    trained: ConfigDict, dataset: Dataset, source: Path, which: str
) -> tuple[nn.Module, checkpoint.Restored]:
    """Returns the model of a run, and its best or last checkpoint with the item `weights`.

    Raises:
      UserError: no checkpoint can be restored, or the run had another data set.
    """
    check_dataset(source, dataset)
    model = make_classifier(trained.model, len(dataset.class_names))
    image = jax.ShapeDtypeStruct((1, *dataset.test.images.shape[1:]), np.float32)
    target = jax.eval_shape(model.init, jax.random.key(0), image)
    restored = checkpoint.restore(source, which, {"weights": target})
    if restored is None:
        raise UserError(f"{source} has no checkpoint yet: its run has not finished an epoch")
    return model, restored


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
    """Evaluates a checkpoint; writes the results and prints their table.

    What attacks have found is kept in `ledger<suffix>/` until all is done, and gone on from: of
    each the images, which are 120 MB for the test split of CIFAR-10.

    Args:
      trained: config of the run that left the checkpoint.
      dataset: of that run.
      evaluation: `config.evaluation`.
      source: workdir of the run.
      which: "best" or "last".
      workdir: where `evaluation<suffix>.json` and `examples<suffix>.npz` go.
      suffix: of these names.

    Returns:
      The warnings that it raised.

    Raises:
      UserError: no checkpoint can be restored.
    """
    began = time.monotonic()
    model, restored = restore_classifier(trained, dataset, source, which)
    weights = replicate(restored.items["weights"])
    split = {"test": dataset.test, "held_out": dataset.validation}[evaluation.split]
    shown = Batch(*(array[: evaluation.num_examples] for array in split))
    task = [restored.sha256, dataset.name, len(shown.labels), trained.seed, evaluation.to_dict()]
    ledger = open_ledger(workdir / f"ledger{suffix}", task)
    if len(ledger):
        began -= seconds_spent(ledger)
        print(f"Going on from {workdir / f'ledger{suffix}'}", flush=True)
    with jax.default_matmul_precision(evaluation.precision):
        results, examples = run_battery(
            model,
            weights,
            shown,
            evaluation,
            trained.seed,
            progress=is_first(),
            ledger=ledger,
            write_images=partial(_write_images, workdir, suffix=suffix),
        )
        if evaluation.certification.num_examples:
            results["certified"], certificates = certify_split(
                model,
                weights,
                shown,
                evaluation.certification,
                evaluation.batch_size,
                trained.seed,
                progress=is_first(),
            )
            results["warnings"] += certificate_warnings(results["certified"])
            examples |= certificates
    results = {
        "checkpoint": {
            "workdir": str(source),
            "which": which,
            "epoch": restored.epoch,
            "sha256": restored.sha256["weights"],
        },
        "model": _describe(trained.model),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(weights["params"])),
        "dataset": dataset.name,
        "split": evaluation.split,
        "n": len(shown.labels),
        **results,
        "provenance": provenance(time.monotonic() - began),
    }

    def write_here() -> None:
        _write(workdir, suffix, results, {"class_names": np.array(dataset.class_names), **examples})
        ledger.close()

    from_first(write_here)
    terminal.show(results)
    for warning in results["warnings"] if is_first() else ():
        print(f"warning: {warning}", file=sys.stderr)
    return results["warnings"]


def _write(
    workdir: Path, suffix: str, results: dict[str, Any], examples: dict[str, np.ndarray]
) -> None:
    for name, entry in results["attacks"].items():
        if "uint8" in entry and entry["attack"] == "autoattack":
            export.write_record(workdir, name, results, suffix)
    with written_whole(workdir / f"examples{suffix}.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **examples)
    # The JSON comes last and whole: where it stands, the evaluation is complete.
    write_json(workdir / f"evaluation{suffix}.json", results)


def _write_images(workdir: Path, name: str, arrays: dict[str, np.ndarray], suffix: str) -> None:
    if is_first():
        export.write_images(workdir, name, arrays, suffix)


def _describe(model: ConfigDict) -> str:
    """Returns the name of a model, with that of its defence."""
    defence = model.get("defence", {}).get("name", "none")
    return model.name if defence == "none" else f"{model.name} with {defence}"
