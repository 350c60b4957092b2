"""Records of the study's runs: small files that mark a run as done and that the page is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxadv.core.example_results import ExampleResults
from jaxadv.core.files import atomic_write, read_arrays, read_json, read_json_lines, write_json
from jaxadv.core.results import Evaluation
from jaxadv.core.sample_quality import GanResult
from jaxadv.core.types import UserError
from jaxadv.runs.workdir import differences
from jaxadv.study.plan import Run

# For each mode the files of the workdir that its record keeps, by their key in the record.
_FILES = {
    "train": {"evaluation": "evaluation.json", "evaluation_last": "evaluation_last.json"},
    "evaluate": {"evaluation": "evaluation.json"},
    "gan": {"gan": "gan.json"},
    "sample": {"manifest": "synthetic/manifest.json"},
}
_EXAMPLES = {"evaluation": "examples.npz", "evaluation_last": "examples_last.npz"}


@dataclass(frozen=True)
class Record:
    """The record of a run.

    Attributes:
      config: of the run, without paths of this machine.
      metrics: lines of metrics.jsonl.
      evaluation: of a training, that of its best checkpoint; None for a GAN.
      evaluation_last: of the last checkpoint of a training; None if it is the best.
      gan: evaluation of a GAN.
      manifest: of the samples of a GAN.
      note: remark on the record's origin; "" for runs of this study.
      robust: which examples are correctly classified, by "<evaluation>/<attack>/<eps>" and
        "<evaluation>/clean"; empty if they were not kept.
    """

    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    evaluation: Evaluation | None = None
    evaluation_last: Evaluation | None = None
    gan: GanResult | None = None
    manifest: dict[str, Any] | None = None
    note: str = ""
    robust: dict[str, Bool[np.ndarray, "n"]] = field(default_factory=dict)

    @property
    def provenances(self) -> list[dict[str, Any]]:
        """Return the provenance of each of its results."""
        found = [self.evaluation, self.evaluation_last, self.gan]
        provenances = [one.provenance for one in found if one]
        return [*provenances, self.manifest["provenance"]] if self.manifest else provenances

    @property
    def seconds(self) -> float:
        """Return the duration of the run without interruptions."""
        training = sum(line["seconds"] for line in self.metrics)
        return float(training + sum(source["seconds"] for source in self.provenances))


def write_record(results: Path, name: str, config: ConfigDict, workdir: Path) -> None:
    """Write the record of a run that has ended.

    Args:
      results: folder of the study's results.
      name: of the run.
      config: of the run in the plan.
      workdir: of the run.
    """
    content: dict[str, Any] = {"config": _portable(config)}
    lines = read_json_lines(workdir / "metrics.jsonl")
    if lines and config.mode in ("train", "gan"):
        content["metrics"] = lines
    files = _FILES[config.mode]
    content |= {key: found for key, file in files.items() if (found := read_json(workdir / file))}
    arrays: dict[str, Any] = {}
    for evaluation, name_of_file in _EXAMPLES.items():
        if found := read_arrays(workdir / name_of_file):
            examples = ExampleResults.from_arrays(found)
            robust = {key: attacked.robust for key, attacked in examples.attacks.items()}
            robust["clean"] = examples.predictions == examples.labels
            arrays |= {f"{evaluation}/{key}": np.packbits(rows) for key, rows in robust.items()}
            arrays[f"{evaluation}/n"] = len(examples.labels)
    path = _path(results, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        with atomic_write(path.with_suffix(".npz")) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    # A run is done once its JSON exists, so that it is written last.
    write_json(path, content)


def read_record(results: Path, name: str) -> Record | None:
    """Return the record of a run; None if the run is not done.

    Raises:
      UserError: the record is damaged.
    """
    path = _path(results, name)
    try:
        content, arrays = read_json(path), read_arrays(path.with_suffix(".npz"))
        return _parse(content, arrays) if content else None
    except (UserError, KeyError, TypeError):
        raise UserError(f"{path} or its .npz is damaged: delete both to run {name} again") from None


def _parse(content: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Record:
    robust = {}
    for key, packed in arrays.items():
        evaluation, _, attack = key.partition("/")
        if attack != "n":
            n = int(arrays[f"{evaluation}/n"])
            robust[key] = np.unpackbits(packed, count=n).astype(bool)
    known = {one.name: content[one.name] for one in fields(Record) if one.name in content}
    kinds: dict[str, type[Evaluation | GanResult]] = {
        "evaluation": Evaluation, "evaluation_last": Evaluation, "gan": GanResult,
    }  # fmt: skip
    parsed = {key: kind.from_json(known[key]) for key, kind in kinds.items() if key in known}
    return Record(**{**known, **parsed, "robust": robust})


def read_json_file(path: Path) -> dict[str, Any]:
    """Return the content of failures.json or costs.json; empty if there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return read_json(path)
    except UserError:
        raise UserError(f"{path} is damaged: delete it") from None


def check_config(record: Record, name: str, config: ConfigDict) -> None:
    """Raise a UserError if a record has another config than its run in the plan."""
    if different := differences(ConfigDict(record.config), config):
        raise UserError(
            f"the record of {name} has another config ({'; '.join(different[:3])}): delete it "
            "and the folder of the run, or give another --workdir and --config.study.results"
        )


def current_records(results: Path, plan: Mapping[str, Run]) -> dict[str, Record]:
    """Return the records of the runs that are done, by name.

    If a training was repeated, records of evaluations of its former weights are left out.
    """
    kept = {name: record for name in plan if (record := read_record(results, name))}
    return {
        name: record
        for name, record in kept.items()
        if plan[name].config.mode != "evaluate"
        or _is_current(record, kept.get(str(plan[name].dependency)))
    }


def _is_current(record: Record, trained: Record | None) -> bool:
    if trained is None or record.evaluation is None:
        return True
    return is_evaluation_of(record, trained, record.evaluation.source.which)


def is_evaluation_of(record: Record, trained: Record, which: str) -> bool:
    """Return whether a record evaluates the "best" or the "last" checkpoint of a training."""
    evaluation = record.evaluation
    return evaluation is not None and evaluation.source.sha256 == weights(trained, which)


def weights(trained: Record, which: str) -> str:
    """Return the checksum of the weights of the "best" or the "last" checkpoint of a training."""
    evaluation = trained.evaluation
    if which == "last":  # if the last is the best, there is one evaluation of both
        evaluation = trained.evaluation_last or trained.evaluation
    if evaluation is None:
        raise ValueError("the record of a training has no evaluation")
    return evaluation.source.sha256


def _portable(config: ConfigDict) -> dict[str, Any]:
    """Return the values of a config without paths of this machine."""
    kept = config.copy_and_resolve_references()
    kept.data.data_dir = None
    return kept.to_dict()


def _path(results: Path, name: str) -> Path:
    return results / "runs" / f"{name}.json"
