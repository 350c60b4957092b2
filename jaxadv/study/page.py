"""The page of a study: `index.html`, and `index.md` with the same tables, its figures as files."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxadv import page
from jaxadv.classifier import make_classifier
from jaxadv.drawing import standalone
from jaxadv.metrics import proportion
from jaxadv.study import figures, records
from jaxadv.study.evidence import HOLDS, NOT_RUN, Entry, find, judge
from jaxadv.study.figures import Curve, Point
from jaxadv.study.plan import Run
from jaxadv.study.summary import runs_table


class _Cell(NamedTuple):
    value: str = ""
    note: str = ""  # its interval, or how seeds differ


_Found = dict[tuple[str, str], dict[int, Entry]]  # by (label, heading), for each seed
_AS_THERE, _READ_OFF = "as there ", "slides "
_STUDY_N = 1024  # images that the study judged on
_SCORE = "score"
_AXES = {"eps": "eps", "queries": "queries for each image"}


def write(
    config: ConfigDict, plan: Mapping[str, Run], results: Path, failures: Mapping[str, str]
) -> Path:
    """Writes the page from the records of the runs, and from nothing else.

    Args:
      config: of configs/study.py.
      plan: its runs.
      results: folder of the records, and of the page.
      failures: why a run failed, by its name.

    Returns:
      The path of the page.
    """
    kept = {name: record for name in plan if (record := records.read(results, name))}
    experiments = [
        _experiment(name, config.experiments[name], kept, plan) for name in config.experiments.order
    ]
    shown = {
        "scale": config.study.scale,
        "dataset": _dataset(kept),
        "experiments": experiments,
        "claims": [claim for experiment in experiments for claim in experiment["claims"]],
        "runs": runs_table(plan, kept, page.read_json(results / "costs.json"), failures),
        "holds": HOLDS,
        "not_run": NOT_RUN,
    }
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for experiment in experiments:
        path = folder / f"{experiment['name']}.svg"
        path.unlink(missing_ok=True)
        if experiment["figure"]:
            path.write_text(standalone(experiment["figure"]), encoding="utf-8")
    for name in ("index.html", "index.md"):
        text = page.template(f"study/{name}").render(**shown)
        (results / name).write_text(text, encoding="utf-8")
    return results / "index.html"


def _dataset(kept: Mapping[str, records.Record]) -> str:
    """Returns the data set's name, as the evaluations have it."""
    names = {
        record.content["evaluation"]["dataset"]
        for record in kept.values()
        if "evaluation" in record.content
    }
    return ", ".join(sorted(names))


def _experiment(
    name: str, config: ConfigDict, kept: Mapping[str, records.Record], plan: Mapping[str, Run]
) -> dict[str, Any]:
    """Returns what the page shows of an experiment."""
    columns, as_there = dict(config.columns), dict(config.as_there)
    keys = columns | dict(config.extra) | {_AS_THERE + h: k for h, k in as_there.items()}
    found: _Found = {
        (label, heading): find(kept, arm, tried)
        for label, arm in config.arms
        for heading, tried in keys.items()
    }
    study = {label: {key: float(value) for key, value in row} for label, row in config.study}
    found |= _read_off(study)
    claims = []
    for pairs in config.claims:
        claim = dict(pairs)
        verdict = judge(claim, found)
        claims.append({**claim, "experiment": config.title, "verdict": verdict})
    headings = [*columns, *([_SCORE] if config.figure in ("eps", "parameters") else [])]
    headings = [heading for heading in headings if _is_filled(heading, config, study, found)]
    rows = [(label, _rows(label, headings, study, found)) for label, _ in config.arms]
    return {
        "name": name,
        "title": config.title,
        "text": config.text,
        "headings": headings,
        "rows": rows,
        "claims": claims,
        "figure": _figure(config, columns, study, found, plan),
    }


def _read_off(study: Mapping[str, Mapping[str, float]]) -> _Found:
    """Returns the study's own figures as entries, for claims about them."""
    found: _Found = {}
    for label, row in study.items():
        for heading, percent in row.items():
            if heading != _SCORE:
                entry = proportion(round(percent / 100 * _STUDY_N), _STUDY_N)
                low, high = entry["ci95"]
                found[label, _READ_OFF + heading] = {0: Entry(entry["accuracy"], (low, high), None)}
    return found


def _is_filled(
    heading: str, config: ConfigDict, study: Mapping[str, Mapping[str, float]], found: _Found
) -> bool:
    """Returns whether some row has something under a heading; a score has what its eps have."""
    return heading == _SCORE or any(
        heading in study.get(label, {}) or found[label, heading] for label, _ in config.arms
    )


def _rows(
    label: str, headings: list[str], study: Mapping[str, Mapping[str, float]], found: _Found
) -> list[tuple[str, list[_Cell]]]:
    """Returns the rows of an arm: what is in them, and their cells."""
    rows = []
    if label in study:
        rows.append(("the study", _printed(study[label], headings)))
    there, ours = (_cells(found, label, headings, prefix) for prefix in (_AS_THERE, ""))
    if any(cell.value for cell in there):
        rows.append(("judged as there", there))
    return [*rows, ("judged right" if any(cell.value for cell in ours) else NOT_RUN, ours)]


def _printed(row: Mapping[str, float], headings: list[str]) -> list[_Cell]:
    return [_Cell(f"{row[heading]:g}") if heading in row else _Cell() for heading in headings]


def _cells(found: _Found, label: str, headings: list[str], prefix: str = "") -> list[_Cell]:
    """Returns the entries of a row; empty cells where there is none."""
    return [
        _score_cell(_scores(found, label, prefix))
        if heading == _SCORE
        else _cell(found.get((label, prefix + heading), {}))
        for heading in headings
    ]


def _cell(entries: Mapping[int, Entry]) -> _Cell:
    """Returns one accuracy with its interval, or the mean of several seeds and their deviation."""
    cell = _score_cell({seed: entry.accuracy for seed, entry in entries.items()})
    if len(entries) != 1:
        return cell
    low, high = (100 * end for end in next(iter(entries.values())).ci95)
    return _Cell(cell.value, f"{low:.1f}\N{EN DASH}{high:.1f}")


def _score_cell(scores: Mapping[int, float]) -> _Cell:
    values = [100 * score for score in scores.values()]
    if not values:
        return _Cell()
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return _Cell(mean)
    return _Cell(mean, f"\N{PLUS-MINUS SIGN} {statistics.stdev(values):.1f} [{len(values)}]")


def _scores(found: _Found, label: str, prefix: str = "") -> dict[int, float]:
    """Returns the sum of the accuracies at all eps, for each seed that has them all."""
    at_eps = [
        entries
        for (arm, heading), entries in found.items()
        if arm == label and heading.startswith(prefix + "0.")
    ]
    if not at_eps:
        return {}
    seeds = set.intersection(*(set(entries) for entries in at_eps))
    return {seed: sum(entries[seed].accuracy for entries in at_eps) for seed in sorted(seeds)}


def _figure(
    config: ConfigDict,
    columns: Mapping[str, Any],
    study: Mapping[str, Mapping[str, float]],
    found: _Found,
    plan: Mapping[str, Run],
) -> str:
    """Returns the figure of an experiment; "" where there is nothing to draw."""
    if not any(found[label, heading] for label, _ in config.arms for heading in columns):
        return ""
    if config.figure == "parameters":
        curves = []
        for label, arm in config.arms:
            x = float(_num_parameters(plan[f"{arm}/0"]))
            scores = list(_scores(found, label).values())
            ours = {x: Point(statistics.mean(scores), min(scores), max(scores))} if scores else {}
            there = study.get(label, {})
            points = {x: there[_SCORE] / 100} if _SCORE in there else {}
            curves.append(Curve(label, ours, points))
        return figures.over_parameters(curves)
    if config.figure == "bars":
        places = {heading: float(number) for number, heading in enumerate(columns)}
        curves = [_curve(label, places, study, found) for label, _ in config.arms]
        return figures.bars(curves, list(columns))
    places = {heading: float(heading) for heading in columns if _is_number(heading)}
    curves = [_curve(label, places, study, found) for label, _ in config.arms]
    return figures.over_budget(curves, _AXES[config.figure])


def _curve(
    label: str,
    places: Mapping[str, float],
    study: Mapping[str, Mapping[str, float]],
    found: _Found,
) -> Curve:
    ours = {
        place: _point(found[label, heading])
        for heading, place in places.items()
        if found[label, heading]
    }
    there = study.get(label, {})
    points = {place: there[h] / 100 for h, place in places.items() if h in there}
    return Curve(label, ours, points)


def _point(entries: Mapping[int, Entry]) -> Point:
    """Returns one accuracy in its interval, or the mean of several seeds between their ends."""
    values = [entry.accuracy for entry in entries.values()]
    if len(values) == 1:
        return Point(values[0], *next(iter(entries.values())).ci95)
    return Point(statistics.mean(values), min(values), max(values))


def _is_number(heading: str) -> bool:
    return heading.replace(".", "", 1).isdigit()


def _num_parameters(run: Run) -> int:
    model = make_classifier(run.config.model, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
