"""The report of a run: one self-contained HTML page."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv import entries, figures, page, pictures
from jaxadv.masking import ANY_IMAGE
from jaxadv.types import UserError

_NUM_PICTURES = 6
_DEFAULT_EPS = 8 / 255  # the radius of the L-inf leaderboards, where no config names another
_DATASETS = {"cifar10": "CIFAR-10", "digits": "digits, not CIFAR"}


def write(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` from the files of a run's workdir, and from nothing else.

    A file that is not there leaves out its part of the page, which says so.

    Args:
      workdir: folder with any of `config.json`, `metrics.jsonl`, `evaluation.json`,
        `evaluation_last.json` and `examples.npz`.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no such folder, or one of the files cannot be read.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(f"no workdir {folder}: give the folder of a run")
    config = page.read_json(folder / "config.json")
    metrics = page.read_json_lines(folder / "metrics.jsonl")
    evaluation = page.read_json(folder / "evaluation.json")
    last = page.read_json(folder / "evaluation_last.json")
    examples = page.read_arrays(folder / "examples.npz")
    best_epoch = evaluation["checkpoint"]["epoch"] if evaluation else None
    html = page.template("report.html").render(
        name=folder.resolve().name,
        config=config and json.dumps(config, indent=2),
        model=_either(evaluation, "model", config, "model"),
        dataset=_either(evaluation, "dataset", config, "data"),
        evaluation=evaluation,
        last=last,
        num_epochs=len(metrics),
        train_seconds=sum(line["seconds"] for line in metrics),
        training=metrics and figures.training_curves(metrics, best_epoch),
        **(_evaluated(evaluation, examples, config) if evaluation else {}),
        have_examples=bool(examples),
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _evaluated(
    evaluation: Mapping[str, Any], examples: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what the page shows of the evaluation of the best checkpoint."""
    groups = entries.by_name(evaluation["attacks"])
    noisy = {
        name: group
        for name, group in groups.items()
        if group[0].get("noise", "on") == "on"  # attacks on the model as it is
    }
    headline = _headline(evaluation, config)
    return {
        "groups": groups,
        "worst_cases": entries.worst_cases(evaluation),
        "headline": headline,
        "scores": entries.scores(evaluation),
        "over_eps": _over_eps(evaluation, noisy),
        "margins": headline and _margins(evaluation, examples, headline),
        "pictures": _pictures(_within_reach(noisy), examples),
        "over_queries": _over_queries(noisy),
        "distances": _distances(noisy, examples),
        "certified_figure": "certified" in evaluation
        and figures.certified_accuracy(evaluation["certified"]["radii"]),
    }


def _headline(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the worst case nearest to the radius that chose the checkpoint."""
    eps = config.get("validation", {}).get("eps", _DEFAULT_EPS)
    return min(
        evaluation["worst_case"].values(), key=lambda entry: abs(entry["eps"] - eps), default=None
    )


def _over_eps(evaluation: Mapping[str, Any], groups: Mapping[str, list]) -> dict[str, str]:
    """Returns for each norm the figure of accuracy over eps, where there are several."""
    drawn = {}
    for name, worst in entries.worst_cases(evaluation).items():
        norm = worst[0]["norm"]
        if len(worst) == 1:
            continue
        curves = {key: group for key, group in groups.items() if group[0]["norm"] == norm}
        drawn[norm] = figures.accuracy_over_eps(
            evaluation["clean"], _within_reach({**curves, name: worst}), worst=name
        )
    return drawn


def _over_queries(groups: Mapping[str, list]) -> list[dict[str, Any]]:
    """Returns for each ball that a black box was attacked in its entries and their figure."""
    balls: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for name, group in groups.items():
        for entry in group:
            balls.setdefault((entry["norm"], entry["eps"]), {})[name] = entry
    parts = []
    for (norm, eps), ball in sorted(balls.items()):
        asked = {name: entry for name, entry in ball.items() if entry.get("over_queries")}
        white_box = {name: entry for name, entry in ball.items() if "over_queries" not in entry}
        if not asked:
            continue
        strongest = sorted(white_box, key=lambda name: white_box[name]["accuracy"])[:1]
        curves = {name: entry["over_queries"] for name, entry in asked.items()}
        levels = {name: white_box[name] for name in strongest}
        figure = figures.accuracy_over_queries(curves, levels)
        parts.append(
            {"norm": norm, "eps": eps, "attacks": asked, "levels": levels, "figure": figure}
        )
    return parts


def _distances(
    groups: Mapping[str, list], examples: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Returns for each norm how far the nearest misclassified images lie, and their figure.

    An attack that ends with its first success tells nothing of distances inside of its ball.
    """
    norms: dict[str, list[dict[str, Any]]] = {}
    for entry in (entry for group in groups.values() for entry in group):
        if f"distances/{entry['key']}" in examples:
            norms.setdefault(entry["norm"], []).append(entry)
    parts = []
    for norm, found in norms.items():
        distances = {entry["key"]: examples[f"distances/{entry['key']}"] for entry in found}
        radii = {entry["key"]: entry["eps"] for entry in found if entry.get("early_stop", True)}
        rows = [
            {
                "name": name,
                "beyond": radii.get(name, 0.0),
                "found": int(np.isfinite(values).sum()),
                "n": len(values),
                "quantiles": [
                    float(quantile) if np.isfinite(quantile) else None
                    for quantile in np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf")
                ],
            }
            for name, values in distances.items()
        ]
        figure = figures.accuracy_over_distance(distances, radii)
        parts.append({"norm": norm, "rows": rows, "figure": figure})
    return parts


def _within_reach(curves: Mapping[str, list]) -> dict[str, list]:
    """Returns the curves without the radius that no model withstands, if there are others."""
    near = {
        name: [entry for entry in group if entry["norm"] != "linf" or entry["eps"] < ANY_IMAGE]
        for name, group in curves.items()
    }
    return {name: group for name, group in near.items() if group} or dict(curves)


def _margins(
    evaluation: Mapping[str, Any],
    examples: Mapping[str, np.ndarray],
    headline: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Returns the margins' figure for the strongest single attack at the headline's radius."""
    at_radius = {
        key: entry["accuracy"]
        for key, entry in evaluation["attacks"].items()
        if (entry["norm"], entry["eps"]) == (headline["norm"], headline["eps"])
        and entry.get("noise", "on") == "on"
        and f"margin/{key}" in examples
    }
    if not at_radius:
        return None
    strongest = min(at_radius, key=lambda key: at_radius[key])
    drawn = {"clean": "margin/clean", strongest: f"margin/{strongest}"}
    margins = {name: examples[key] for name, key in drawn.items() if key in examples}
    return {"attack": strongest, "figure": figures.margin_histogram(margins)}


def _pictures(
    groups: Mapping[str, list], examples: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Returns the first sampled examples under the attack that has the most radii."""
    drawn = {
        name: [entry for entry in group if f"sample/adversarial/{entry['key']}" in examples]
        for name, group in groups.items()
    }
    if not any(drawn.values()) or not len(examples["sample/ids"]):
        return None
    # Among equally many radii the stronger attack.
    name = max(drawn, key=lambda key: (len(drawn[key]), -sum(e["accuracy"] for e in drawn[key])))
    ids = examples["sample/ids"][:_NUM_PICTURES]
    images = examples["sample/images"][: len(ids)]
    # The last name is that of class -1, which no logits name: some of them were not finite.
    class_names = np.append(examples["class_names"], "no class (NaN or infinite logits)")
    columns = []
    for entry in drawn[name]:
        adversarial = examples[f"sample/adversarial/{entry['key']}"][: len(ids)]
        predictions = examples[f"sample/predictions/{entry['key']}"][: len(ids)]
        perturbations, factor = pictures.amplify(adversarial - images)
        columns.append(
            {
                "eps": entry["eps"],
                "factor": factor,
                "images": _shown(adversarial),
                "perturbations": _shown(perturbations),
                "predictions": class_names[predictions].tolist(),
            }
        )
    return {
        "name": name,
        "ids": ids.tolist(),
        "labels": class_names[examples["labels"][ids]].tolist(),
        "images": _shown(images),
        "predictions": class_names[examples["predictions/clean"][ids]].tolist(),
        "columns": columns,
    }


def _shown(images: np.ndarray) -> list[str]:
    return [pictures.data_uri(pictures.thumbnail(image)) for image in images]


def _either(evaluation: Mapping[str, Any], key: str, config: Mapping[str, Any], part: str) -> str:
    """Returns what the evaluation says, else what the config names, else nothing."""
    name = config.get(part, {}).get("name", "")
    return evaluation.get(key, _DATASETS.get(name, name))
