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
from jaxadv.study.claims import COMMON, Spread, judge, spreads
from jaxadv.study.evidence import AS_THERE, SCORE, Entry, Found, find, read_off
from jaxadv.study.figures import Curve, Point
from jaxadv.study.plan import Run
from jaxadv.study.rows import arm_rows, scores
from jaxadv.study.summary import runs_table, warned

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
        "is said. A difference of means over seeds has a 95 % interval that allows for the images, "
        "paired where they are the same, and for the seeds: by how much trainings of one config "
        "differ in that column (or at eps .03, where that is not known), pooled over all that were "
        "trained more than once. A claim holds, or does not, where the interval leaves out zero; "
        "otherwise it cannot be told. Two looks at the same training differ by the images alone. "
        "That nothing is gained holds where the interval of the gain ends below one point, and "
        "that two figures cannot be told apart where the interval has zero in it. McNemar's exact "
        "test, seed by seed, is of these two models on the same images, and says nothing of how "
        "trainings differ."
    ),
    "flaws": (
        "The study's flaws: 1, it judged models as in training, with dropout and statistics of the "
        "batch; 2, its PNI has the deviation of the weights at initialisation, and alpha decays; "
        "3, random models met gradients of one draw of their noise; 4, it had 1,024 images and one "
        "seed; 5, some of its attacks have steps of .02 at eps .01; 6, its curriculum ends at "
        "three times the eps that matters."
    ),
    "costs": (
        "Gradient evaluations of one image, at most, of a training with its own evaluations; of a "
        "black box its queries. Times of what was "
        "run are those of its epochs, without their validation, and of its evaluations; where it "
        "was stopped on the way a part is missing. The others were estimated by a dry run."
    ),
    "shades": (
        "Ours are judged right, the study's as it judged: like with like are the rows “judged as "
        "there”. Bands and bars: the Wilson interval of one seed, or the range of several; a score "
        "of one seed has none."
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
    kept = records.standing(results, plan)
    found_of = {name: _found(config.experiments[name], kept) for name in config.experiments.order}
    spread_of = spreads(found_of.values())
    experiments = [
        _experiment(name, config.experiments[name], found, spread_of, plan)
        for name, found in found_of.items()
    ]
    shown = {
        "scale": config.study.scale,
        "dataset": _dataset(kept),
        "experiments": experiments,
        "counts": Counter(
            claim["verdict"].word for experiment in experiments for claim in experiment["claims"]
        ),
        "runs": runs_table(plan, kept, records.read_notes(results / "costs.json"), failures),
        "warned": warned(kept),
        "spread": spread_of.get(COMMON),
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


def _found(config: ConfigDict, kept: Mapping[str, records.Record]) -> Found:
    """Returns the entries of an experiment, under the headings of its table and of its claims."""
    there = {AS_THERE + heading: tried for heading, tried in config.as_there}
    keys = dict(config.columns) | dict(config.extra) | there
    found: Found = {
        (label, heading): find(kept, arm, tried)
        for label, arm in config.arms
        for heading, tried in keys.items()
    }
    return found | read_off(_of_the_study(config))


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
