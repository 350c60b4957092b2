"""What became of each run of a study: its state, its cost, and where its figures come from."""

from collections.abc import Mapping
from typing import Any

from jaxadv import formats
from jaxadv.study.costs import cost_in_gradients
from jaxadv.study.plan import Run, training_config
from jaxadv.study.records import Record


def runs_table(
    plan: Mapping[str, Run],
    kept: Mapping[str, Record],
    estimated: Mapping[str, Any],
    failures: Mapping[str, str],
) -> list[dict[str, str]]:
    """Returns a row for each run: its name, state and cost, and where its figures come from.

    Args:
      plan: all runs.
      kept: records of those that are done.
      estimated: content of the last dry run's costs.json; nothing where there was none.
      failures: why a run failed, by its name.
    """
    return [
        _row(run, plan, kept.get(name), estimated.get("costs", {}), failures.get(name))
        for name, run in plan.items()
    ]


def _row(
    run: Run,
    plan: Mapping[str, Run],
    record: Record | None,
    estimated: Mapping[str, Any],
    failure: str | None,
) -> dict[str, str]:
    row = dict.fromkeys(("gradients", "time", "commit", "date", "device", "command", "note"), "")
    row["name"] = run.name
    if run.config.mode in ("train", "evaluate"):
        row["gradients"] = f"{cost_in_gradients(run, training_config(run, plan))[0]:.1e}"
    if record is None:
        row["state"] = f"failed: {failure}" if failure else "not run"
        seconds = estimated.get(run.name, {}).get("seconds")
        if seconds is not None:
            row["time"] = f"about {formats.duration(seconds)}, estimated"
            row["device"] = estimated[run.name]["device"]
        return row
    row["state"] = "done"
    row["time"] = formats.duration(_seconds(record))
    row["note"] = record.content.get("note", "")
    for source in _provenances(record)[:1]:
        dirty = ", changed" if source["dirty"] else ""
        row["commit"] = f"{source['commit']}{dirty}"
        row["date"] = source["date"][:10]
        row["device"] = source["device"]
        row["command"] = source["command"]
    return row


def warned(kept: Mapping[str, Record]) -> dict[str, list[str]]:
    """Returns what the evaluations of each run warned of, by its name, each warning once."""
    found = {}
    for name, record in kept.items():
        evaluations = (record.content.get(key, {}) for key in ("evaluation", "evaluation_last"))
        told = [line for evaluation in evaluations for line in evaluation.get("warnings", [])]
        if told:
            found[name] = list(dict.fromkeys(told))
    return found


def _provenances(record: Record) -> list[dict[str, Any]]:
    found = (
        record.content.get(key) for key in ("evaluation", "evaluation_last", "gan", "manifest")
    )
    return [part["provenance"] for part in found if part and "provenance" in part]


def _seconds(record: Record) -> float:
    """Returns the time that a run took, pauses left out."""
    training = sum(line["seconds"] for line in record.content.get("metrics", []))
    return float(training + sum(source["seconds"] for source in _provenances(record)))
