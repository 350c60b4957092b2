"""The page of a study: `index.html`, and `index.md` with the same tables, its figures as files."""

import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxadv import page
from jaxadv.classifier import make_classifier
from jaxadv.drawing import standalone
from jaxadv.study import figures, records
from jaxadv.study.claims import COMMON, Spread, from_slides, judge, spreads
from jaxadv.study.evidence import AS_THERE, SCORE, Entry, Found, find, read_off
from jaxadv.study.figures import Curve, Point
from jaxadv.study.plan import Run
from jaxadv.study.rows import arm_rows, scores
from jaxadv.study.summary import in_short, of_samples, runs_table, warned
from jaxadv.study.texts import TEXTS

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
    kept = records.standing(results, plan)
    found_of = {name: _found(config.experiments[name], kept) for name in config.experiments.order}
    spread_of = spreads(found_of.values())
    experiments = [
        _experiment(name, config.experiments[name], found, spread_of, plan)
        | {"samples": of_samples(dict(config.experiments[name].arms).values(), plan, kept)}
        for name, found in found_of.items()
    ]
    shown = {
        "scale": config.study.scale,
        "dataset": _dataset(kept),
        "experiments": experiments,
        "short": in_short(experiments),
        "counts": Counter(
            claim["verdict"].word for experiment in experiments for claim in experiment["claims"]
        ),
        "runs": runs_table(plan, kept, records.read_notes(results / "costs.json"), failures),
        "warned": warned(kept),
        "spread": spread_of.get(COMMON),
        **TEXTS,
    }
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for experiment in experiments:
        for earlier in folder.glob(f"{experiment['name']}_*.svg"):
            earlier.unlink()
        for kind, drawn in experiment["figures"].items():
            path = folder / f"{experiment['name']}_{kind}.svg"
            path.write_text(standalone(drawn), encoding="utf-8")
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


def _found(config: ConfigDict, kept: Mapping[str, records.Record]) -> Found:
    """Returns the entries of an experiment, under the headings of its table and of its claims."""
    there = {AS_THERE + heading: tried for heading, tried in config.as_there}
    keys = dict(config.columns) | dict(config.extra) | there
    found: Found = {
        (label, heading): find(kept, arm, tried)
        for label, arm in config.arms
        for heading, tried in keys.items()
    }
    return found | read_off(_of_the_study(config), config.study_n)


def _of_the_study(config: ConfigDict) -> dict[str, dict[str, float]]:
    return {label: {key: float(value) for key, value in row} for label, row in config.study}


def _experiment(
    name: str,
    config: ConfigDict,
    found: Found,
    spread_of: Mapping[str, Spread],
    plan: Mapping[str, Run],
) -> dict[str, Any]:
    """Returns what the page shows of an experiment."""
    columns, study = dict(config.columns), _of_the_study(config)
    claims = [
        {**claim, "verdict": judge(claim, found, spread_of)} for claim in map(dict, config.claims)
    ]
    headings = [heading for heading in columns if _is_filled(heading, config, study, found)]
    if headings and "eps" in config.figures:
        headings.append(SCORE)
    gains = from_slides(found, spread_of)
    told = {key for key, gain in gains.items() if gain.is_told}
    rows = [
        (label, arm_rows(label, headings, study, found, told, planned=bool(arm)))
        for label, arm in config.arms
    ]
    return {
        "name": name,
        "title": config.title,
        "text": config.text,
        "headings": headings,
        "rows": rows,
        "claims": claims,
        "study": study,
        "figures": _figures(config, columns, study, found, plan),
        "compared": len(gains),
        "told": len(told),
        "as_there": any(
            kind.startswith("judged as there") for _, kinds in rows for kind, _ in kinds
        ),
    }


def _is_filled(
    heading: str, config: ConfigDict, study: Mapping[str, Mapping[str, float]], found: Found
) -> bool:
    """Returns whether some row has something under a heading."""
    return any(heading in study.get(label, {}) or found[label, heading] for label, _ in config.arms)


def _figures(
    config: ConfigDict,
    columns: Mapping[str, Any],
    study: Mapping[str, Mapping[str, float]],
    found: Found,
    plan: Mapping[str, Run],
) -> dict[str, str]:
    """Returns the figures of an experiment by their kind; none where there is nothing to draw."""
    if not any(found[label, heading] for label, _ in config.arms for heading in columns):
        return {}
    drawn = {}
    for kind in config.figures:
        if kind == "parameters":
            drawn[kind] = figures.over_parameters(_score_curves(config, study, found, plan))
            continue
        headings = [heading for heading in columns if kind == "bars" or _is_number(heading)]
        places = {
            heading: float(number if kind == "bars" else heading)
            for number, heading in enumerate(headings)
        }
        curves = [_curve(label, places, study, found) for label, _ in config.arms]
        if kind == "bars":
            drawn[kind] = figures.bars(curves, headings)
        else:
            drawn[kind] = figures.over_budget(curves, _AXES[kind])
    return drawn


def _score_curves(
    config: ConfigDict,
    study: Mapping[str, Mapping[str, float]],
    found: Found,
    plan: Mapping[str, Run],
) -> list[Curve]:
    """Returns the aggregated score of each arm at its number of parameters."""
    curves = []
    for label, arm in config.arms:
        x = float(_num_parameters(plan[f"{arm}/0"]))
        right, there = (
            [100 * score for score in scores(found, label, prefix).values()]
            for prefix in ("", AS_THERE)
        )
        slide = study.get(label, {}).get(SCORE)
        curves.append(
            Curve(
                label,
                {x: Point(statistics.mean(right), min(right), max(right))} if right else {},
                {x: statistics.mean(there)} if there else {},
                {} if slide is None else {x: slide},
            )
        )
    return curves


def _curve(
    label: str,
    places: Mapping[str, float],
    study: Mapping[str, Mapping[str, float]],
    found: Found,
) -> Curve:
    right, there = (
        {
            place: _point(entries)
            for heading, place in places.items()
            if (entries := found.get((label, prefix + heading)))
        }
        for prefix in ("", AS_THERE)
    )
    slide = study.get(label, {})
    return Curve(
        label,
        right,
        {place: point.value for place, point in there.items()},
        {place: slide[heading] / 100 for heading, place in places.items() if heading in slide},
    )


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
