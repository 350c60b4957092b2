"""What is kept of a run of a study: small files, which say that it is done and fill the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxadv import config as configs
from jaxadv.files import write_json, written_whole
from jaxadv.page import read_arrays, read_json, read_json_lines
from jaxadv.study.plan import Run
from jaxadv.types import UserError

_FILES = {
    "train": {"evaluation": "evaluation.json", "evaluation_last": "evaluation_last.json"},
    "evaluate": {"evaluation": "evaluation.json"},
    "gan": {"gan": "gan.json"},
    "sample": {"manifest": "synthetic/manifest.json"},
}
_EXAMPLES = {"evaluation": "examples.npz", "evaluation_last": "examples_last.npz"}


class Record(NamedTuple):
    """The record of a run.

    Attributes:
      content: `config`, `metrics`, the lines of metrics.jsonl, and what else the run left of
        `evaluation`, `evaluation_last`, `gan` and `manifest`.
      survived: for each `<evaluation>/<attack>/<eps>` and `<evaluation>/clean` which examples are
        classified right; none where they were not kept.
    """

    content: dict[str, Any]
    survived: dict[str, Bool[np.ndarray, "n"]]


def keep(results: Path, name: str, config: ConfigDict, workdir: Path) -> None:
    """Writes the record of a run that has ended.

    Args:
      results: folder of the study's results.
      name: of the run.
      config: of the plan.
      workdir: of the run.
    """
    content: dict[str, Any] = {"config": _plain(config)}
    lines = read_json_lines(workdir / "metrics.jsonl")
    if lines and config.mode in ("train", "gan"):
        content["metrics"] = lines
    files = _FILES[config.mode]
    content |= {key: found for key, file in files.items() if (found := read_json(workdir / file))}
    arrays: dict[str, Any] = {}
    for evaluation, source in _EXAMPLES.items():
        examples = read_arrays(workdir / source)
        if not examples:
            continue
        arrays[f"{evaluation}/n"] = len(examples["labels"])
        right = {"clean": examples["predictions/clean"] == examples["labels"]}
        for key, rows in examples.items():
            if key.startswith("survived/"):
                right[key.removeprefix("survived/")] = rows
        arrays |= {f"{evaluation}/{key}": np.packbits(rows) for key, rows in right.items()}
    path = _path(results, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrays:
        with written_whole(path.with_suffix(".npz")) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    # The JSON comes last and whole: where it stands, the run is done.
    write_json(path, content)


def read(results: Path, name: str) -> Record | None:
    """Returns the record of a run; None where it is not done.

    Raises:
      UserError: it is damaged.
    """
    path = _path(results, name)
    try:
        content, arrays = read_json(path), read_arrays(path.with_suffix(".npz"))
    except UserError:
        raise UserError(f"{path} or its .npz is damaged: delete both, to run {name} anew") from None
    if not content:
        return None
    survived = {}
    for key, packed in arrays.items():
        evaluation, _, attack = key.partition("/")
        if attack != "n":
            n = int(arrays[f"{evaluation}/n"])
            survived[key] = np.unpackbits(packed, count=n).astype(bool)
    return Record(content, survived)


def read_notes(path: Path) -> dict[str, Any]:
    """Returns what stands beside the records, in failures.json or costs.json; else nothing.

    Raises:
      UserError: it is damaged.
    """
    try:
        return read_json(path)
    except UserError:
        raise UserError(f"{path} is damaged: delete it") from None


def check_same(record: Record, name: str, config: ConfigDict) -> None:
    """Raises a UserError where a record is not of the config of the plan."""
    if different := configs.differences(ConfigDict(record.content["config"]), config):
        raise UserError(
            f"the record of {name} is of another config ({'; '.join(different[:3])}): delete it "
            "and the folder of the run, or give another --workdir and --config.study.results"
        )


def standing(results: Path, plan: Mapping[str, Run]) -> dict[str, Record]:
    """Returns the records of the runs that are done, by name.

    Left out are evaluations of other weights than the record of their training speaks of: it was
    done anew since. A training without a record says nothing against them.
    """
    kept = {name: record for name in plan if (record := read(results, name))}
    return {
        name: record
        for name, record in kept.items()
        if plan[name].config.mode != "evaluate"
        or _is_current(record, kept.get(str(plan[name].needs)))
    }


def _is_current(record: Record, trained: Record | None) -> bool:
    which = record.content["evaluation"]["checkpoint"]["which"]
    return trained is None or is_of(record, trained, which)


def is_of(record: Record, trained: Record, which: str) -> bool:
    """Returns whether an evaluation is of the best, or of the last, checkpoint of a training."""
    return bool(record.content["evaluation"]["checkpoint"]["sha256"] == weights(trained, which))


def weights(trained: Record, which: str) -> str:
    """Returns the checksum of the weights of the best, or of the last, checkpoint of a training."""
    found = trained.content["evaluation"]
    if which == "last":  # where it is the best too there is one evaluation of both
        found = trained.content.get("evaluation_last", found)
    return str(found["checkpoint"]["sha256"])


def _plain(config: ConfigDict) -> dict[str, Any]:
    """Returns a config without what is this machine's own."""
    kept = config.copy_and_resolve_references()
    kept.data.data_dir = None
    return kept.to_dict()


def _path(results: Path, name: str) -> Path:
    return results / "runs" / f"{name}.json"
