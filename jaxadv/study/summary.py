"""What became of each run of a study: its state, its cost, and where its figures come from."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxadv import formats
from jaxadv.study.claims import FAILS, HOLDS, NOT_RUN, OPEN
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
    gradients = 0
    if run.config.mode in ("train", "evaluate"):
        gradients, _ = cost_in_gradients(run, training_config(run, plan))
        row["gradients"] = f"{gradients:.1e}"
    if record is None:
        row["state"] = f"failed: {failure}" if failure else "not run"
        estimate = estimated.get(run.name)
        if estimate and estimate["gradients"] == gradients:
            row["time"] = f"about {formats.duration(estimate['seconds'])}"
            row["device"] = estimate["device"]
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


def in_short(experiments: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the claims of the study by what the evidence says of them."""
    told: dict[str, list[str]] = {word: [] for word in (HOLDS, FAILS, OPEN, NOT_RUN)}
    for experiment in experiments:
        for claim in experiment["claims"]:
            if claim["by"].startswith("the study"):
                told[claim["verdict"].word].append(claim["text"])
    return {word: claims for word, claims in told.items() if claims}


def of_samples(
    arms: Iterable[str], plan: Mapping[str, Run], kept: Mapping[str, Record]
) -> list[str]:
    """Returns a sentence on each set of synthetic images that trainings of an experiment had."""
    runs = [plan[f"{arm}/0"] for arm in arms if arm and f"{arm}/0" in kept]
    sources = [run.needs for run in runs if run.config.mode == "train" and run.needs]
    sentences = []
    for name in dict.fromkeys(sources):
        if name in kept:
            judged = kept[name].content["manifest"]["judged"]
            samples = judged["samples"]
            sentences.append(
                "A classifier that is right on "
                f"{100 * judged['judge_accuracy_on_test']:.1f} % of the test images takes "
                f"{100 * samples['judge_accuracy']:.1f} % of the synthetic ones for what they are "
                f"meant to be; in its features their Fréchet distance is "
                f"{samples['judge_frechet_distance']:.1f}, their precision "
                f"{samples['judge_precision']:.2f} and their recall {samples['judge_recall']:.2f}."
            )
    return sentences


def warned(kept: Mapping[str, Record]) -> dict[str, list[str]]:
    """Returns what the evaluations of each run warned of, by its name.

    Each warning once: what is said of several attacks has the names of all before it.
    """
    found = {}
    for name, record in kept.items():
        evaluations = (record.content.get(key, {}) for key in ("evaluation", "evaluation_last"))
        told = [line for evaluation in evaluations for line in evaluation.get("warnings", [])]
        if told:
            found[name] = _each_once(told)
    return found


def _each_once(told: Iterable[str]) -> list[str]:
    attacks: dict[str, list[str]] = {}
    for line in dict.fromkeys(told):
        attack, _, rest = line.partition(" ")
        if "/" in attack:  # as in `pgd40/0.03`
            attacks.setdefault(rest, []).append(attack)
        else:
            attacks[line] = []
    return [" ".join((", ".join(named), text)).strip() for text, named in attacks.items()]


def _provenances(record: Record) -> list[dict[str, Any]]:
    found = (
        record.content.get(key) for key in ("evaluation", "evaluation_last", "gan", "manifest")
    )
    return [part["provenance"] for part in found if part and "provenance" in part]


def _seconds(record: Record) -> float:
    """Returns the time that a run took, pauses left out."""
    training = sum(line["seconds"] for line in record.content.get("metrics", []))
    return float(training + sum(source["seconds"] for source in _provenances(record)))
