"""The page of a study: `index.html`, and `index.md` with the same tables, its figures as files."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxadv import page
from jaxadv.classifier import make_classifier
from jaxadv.drawing import standalone
from jaxadv.metrics import proportion
from jaxadv.study import figures, records
from jaxadv.study.evidence import Entry, find, judge
from jaxadv.study.figures import Curve, Point
from jaxadv.study.plan import Run
from jaxadv.study.rows import AS_THERE, SCORE, Found, arm_rows, scores
from jaxadv.study.summary import runs_table

_READ_OFF = "slides "  # before the heading of what the slides have
_STUDY_N = 1024  # images that the study judged on
_TEXTS = {
    "how": (
        "Accuracy in %, under PGD-40 in L-inf where nothing else is said; pixels lie in [0, 1]. "
        "“The study”: the figures of its slides, from 1,024 held-out train images and one seed. "
        "“Judged as there”: our weights under the study's protocol, the last checkpoint attacked "
        "from the clean image, as in training where it has dropout or batch norm. “Judged right”: "
        "the best checkpoint on held-out images, the test split, random starts, running "
        "statistics, gradients averaged over a model's noise; AutoAttack at scale cpu on the first "
        "1,000 images. Both judge the same trainings. A figure of one seed has its 95 % Wilson "
        "interval, a mean the deviation between as many seeds as [ ] says. †: measured before "
        "there was this page, see the runs. ‡: on clean images no better than guessing one class, "
        "which says nothing of robustness: no claim is told by it."
    ),
    "rule": (
        "More robust, better, or of help is who keeps more accuracy at eps .03, where nothing else "
        "is said. A claim holds, or does not, where McNemar's exact test at 5 % tells the two "
        "models apart on the same images in every seed, all in the same direction; otherwise it "
        "cannot be told. Where it was not kept which images survive, the two are compared as if on "
        "different images, which tells less. That nothing is gained holds where the 95 % interval "
        "of the gain ends below one point. One seed says nothing of how trainings differ, only of "
        "these two models."
    ),
    "costs": (
        "Gradient evaluations of one image, at most; of a black box its queries. Times of what was "
        "run are those of its epochs, without their validation, and of its evaluations; where it "
        "was stopped on the way a part is missing. The others were estimated by a dry run."
    ),
    "shades": (
        "Bands and bars: the Wilson interval of one seed, or the range of several; a score of one "
        "seed has none."
    ),
}
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
        "runs": runs_table(plan, kept, page.read_json(results / "costs.json"), failures),
        **_TEXTS,
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
    keys = columns | dict(config.extra) | {AS_THERE + h: k for h, k in as_there.items()}
    found: Found = {
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
        claims.append({**claim, "verdict": verdict})
    headings = [heading for heading in columns if _is_filled(heading, config, study, found)]
    if headings and config.figure in ("eps", "parameters"):
        headings.append(SCORE)
    rows = [
        (label, arm_rows(label, headings, study, found, planned=bool(arm)))
        for label, arm in config.arms
    ]
    return {
        "name": name,
        "title": config.title,
        "text": config.text,
        "headings": headings,
        "rows": rows,
        "claims": claims,
        "figure": _figure(config, columns, study, found, plan),
    }


def _read_off(study: Mapping[str, Mapping[str, float]]) -> Found:
    """Returns the study's own figures as entries, for claims about them."""
    found: Found = {}
    for label, row in study.items():
        for heading, percent in row.items():
            if heading != SCORE:
                entry = proportion(round(percent / 100 * _STUDY_N), _STUDY_N)
                low, high = entry["ci95"]
                found[label, _READ_OFF + heading] = {0: Entry(entry["accuracy"], (low, high), None)}
    return found


def _is_filled(
    heading: str, config: ConfigDict, study: Mapping[str, Mapping[str, float]], found: Found
) -> bool:
    """Returns whether some row has something under a heading."""
    return any(heading in study.get(label, {}) or found[label, heading] for label, _ in config.arms)


def _figure(
    config: ConfigDict,
    columns: Mapping[str, Any],
    study: Mapping[str, Mapping[str, float]],
    found: Found,
    plan: Mapping[str, Run],
) -> str:
    """Returns the figure of an experiment; "" where there is nothing to draw."""
    if not any(found[label, heading] for label, _ in config.arms for heading in columns):
        return ""
    if config.figure == "parameters":
        curves = []
        for label, arm in config.arms:
            x = float(_num_parameters(plan[f"{arm}/0"]))
            sums = [100 * score for score in scores(found, label).values()]
            ours = {x: Point(statistics.mean(sums), min(sums), max(sums))} if sums else {}
            there = study.get(label, {})
            points = {x: there[SCORE]} if SCORE in there else {}
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
    found: Found,
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
