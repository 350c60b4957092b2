"""The report of a run: one self-contained HTML page."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from jaxadv.attacks import ATTACKS
from jaxadv.attacks.optimality import local_optimality
from jaxadv.attacks.threat import GREY_IMAGE_EPS
from jaxadv.core.example_results import AttackedExamples, ExampleResults
from jaxadv.core.files import read_arrays, read_json, read_json_lines
from jaxadv.core.results import LEADERBOARD_EPS, AttackEntry, Evaluation, WorstCase
from jaxadv.core.sample_quality import GanResult
from jaxadv.core.types import UserError
from jaxadv.reports import formats, plots, tables
from jaxadv.reports.images import amplify, data_uri, mosaic, thumbnail

_NUM_EXAMPLES = 6  # images in the table of adversarial examples
_DATASETS = {"cifar10": "CIFAR-10", "digits": "digits, not CIFAR"}
_SPLITS = {"test": "test images", "held_out": "held-out training images", "given": "images"}
_NOT_STORED = AttackedExamples(robust=np.zeros(0, bool))


def write_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` from the files in the workdir of a run.

    The page says which files are missing and leaves out the sections that need them.

    Args:
      workdir: folder with any of `config.json`, `metrics.jsonl`, `evaluation.json`,
        `evaluation_last.json` and `examples.npz`.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder does not exist, or a file is damaged.
    """
    folder = Path(workdir)
    run = read_run(folder)
    last = _read_evaluation(folder / "evaluation_last.json")
    html = _render(
        folder.resolve().name, run.evaluation, run.examples, run.config, run.metrics, last
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


class RunFiles(NamedTuple):
    """What the workdir of a run holds; what is missing is None or empty."""

    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Evaluation | None
    examples: ExampleResults | None


def read_run(folder: Path) -> RunFiles:
    """Read the files in the workdir of a run, those of its best checkpoint.

    Raises:
      UserError: the folder does not exist, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"no workdir {folder}: give the folder of a run")
    arrays = read_arrays(folder / "examples.npz")
    return RunFiles(
        config=read_json(folder / "config.json"),
        metrics=read_json_lines(folder / "metrics.jsonl"),
        evaluation=_read_evaluation(folder / "evaluation.json"),
        examples=ExampleResults.from_arrays(arrays) if arrays else None,
    )


def render_report(evaluation: Evaluation, examples: ExampleResults) -> str:
    """Return the report of an evaluation of any model as an HTML page."""
    return _render("", evaluation, examples)


def _render(
    workdir: str,
    evaluation: Evaluation | None,
    examples: ExampleResults | None,
    config: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    last: Evaluation | None = None,
) -> str:
    """Return the page of a run, or, with an empty name of a workdir, of a model from outside."""
    config = config or {}
    checkpoint = evaluation.checkpoint if evaluation else None
    best_epoch = checkpoint.epoch if checkpoint else None
    return template("report.html").render(
        workdir=workdir,
        config=config and json.dumps(config, indent=2),
        model=evaluation.model if evaluation else config.get("model", {}).get("name", ""),
        dataset=evaluation.dataset if evaluation else _configured_dataset(config),
        images=_SPLITS[evaluation.split] if evaluation else "",
        evaluation=evaluation,
        checkpoint=checkpoint,
        last=last,
        num_epochs=len(metrics),
        train_seconds=sum(line["seconds"] for line in metrics),
        training=metrics and plots.training_curves(metrics, best_epoch),
        **(_evaluation_sections(evaluation, examples, config) if evaluation else {}),
        has_examples=examples is not None,
    )


def _read_evaluation(path: Path) -> Evaluation | None:
    content = read_json(path)
    return Evaluation.from_json(content) if content else None


def _configured_dataset(config: Mapping[str, Any]) -> str:
    data = config.get("data", {})
    source = data.get("source") or data.get("name", "")  # the key of earlier versions
    return _DATASETS.get(source, source)


def _evaluation_sections(
    evaluation: Evaluation, examples: ExampleResults | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the template's variables for the results of the best checkpoint."""
    attacks = evaluation.by_name()
    # Plots show the model with its noise on, as it is used.
    noisy = {name: entries for name, entries in attacks.items() if entries[0].noise == "on"}
    eps = config.get("validation", {}).get("eps", LEADERBOARD_EPS)
    headline = evaluation.headline(eps)
    certified = evaluation.certified
    return {
        "attacks": attacks,
        "worst_cases": tables.worst_cases_by_label(evaluation),
        "headline": headline,
        "autoattack": _autoattack(noisy),
        "scores": tables.aggregated_scores(evaluation),
        "over_eps": _over_eps(evaluation, noisy),
        "black_box": _black_box(noisy),
        "distances": _distances(noisy, examples) if examples else [],
        "margins": _margins(evaluation, examples, headline) if examples and headline else None,
        "adversarial": _adversarial(_without_grey(noisy), examples) if examples else None,
        "certified_figure": certified and plots.certified_accuracy(certified.radii),
    }


def _autoattack(attacks: Mapping[str, Sequence[AttackEntry]]) -> AttackEntry | None:
    """Return the entry of AutoAttack at the radius nearest to that of the leaderboard."""
    entries = [entry for group in attacks.values() for entry in group]
    found = [entry for entry in entries if entry.attack == "autoattack"]
    return min(found, key=lambda entry: abs(entry.eps - LEADERBOARD_EPS), default=None)


def _over_eps(
    evaluation: Evaluation, attacks: Mapping[str, Sequence[AttackEntry]]
) -> dict[str, str]:
    """Return a plot of accuracy over eps for each norm with several eps."""
    svgs = {}
    for label, worst in tables.worst_cases_by_label(evaluation).items():
        norm = worst[0].norm
        if len(_without_grey({label: worst})[label]) == 1:
            continue
        curves: dict[str, Sequence[AttackEntry | WorstCase]] = {
            name: entries for name, entries in attacks.items() if entries[0].norm == norm
        }
        svgs[norm] = plots.accuracy_over_eps(
            evaluation.clean, _without_grey({**curves, label: worst}), worst=label
        )
    return svgs


def _without_grey(curves: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Return the curves without eps at which every image can become grey, if others remain."""
    remaining = {
        name: [one for one in results if one.norm != "linf" or one.eps < GREY_IMAGE_EPS]
        for name, results in curves.items()
    }
    return {name: results for name, results in remaining.items() if results} or dict(curves)


def _black_box(attacks: Mapping[str, Sequence[AttackEntry]]) -> list[dict[str, Any]]:
    """Return the black-box attacks at each norm and eps, and their plot."""
    balls: dict[tuple[str, float], dict[str, AttackEntry]] = {}
    for name, entries in attacks.items():
        for entry in entries:
            balls.setdefault((entry.norm, entry.eps), {})[name] = entry
    sections = []
    for (norm, eps), ball in sorted(balls.items()):
        curves = {
            name: entry.query_cost.over_queries
            for name, entry in ball.items()
            if entry.query_cost and entry.query_cost.over_queries
        }
        if not curves:
            continue
        white_box = {name: entry for name, entry in ball.items() if not entry.query_cost}
        strongest = sorted(white_box, key=lambda name: white_box[name].accuracy)[:1]
        levels = {name: white_box[name] for name in strongest}
        sections.append(
            {
                "norm": norm,
                "eps": eps,
                "attacks": {name: ball[name] for name in curves},
                "has_white_box": bool(levels),
                "figure": plots.accuracy_over_queries(curves, levels),
            }
        )
    return sections


def _distances(
    attacks: Mapping[str, Sequence[AttackEntry]], examples: ExampleResults
) -> list[dict[str, Any]]:
    """Return a table and a plot of the distances to misclassified images for each norm.

    An attack that stops at its first success does not measure distances inside its ball.
    """
    norms: dict[str, list[AttackEntry]] = {}
    for entry in (entry for entries in attacks.values() for entry in entries):
        if _attacked(examples, entry).distances is not None:
            norms.setdefault(entry.norm, []).append(entry)
    sections = []
    for norm, entries in norms.items():
        distances: dict[str, Any] = {
            entry.key: _attacked(examples, entry).distances for entry in entries
        }
        radii = {entry.key: entry.eps for entry in entries if _stops_early(entry)}
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "unknown_below": radii.get(name, 0.0),
                "num_found": int(np.isfinite(values).sum()),
                "n": len(values),
                "quantiles": [
                    float(quantile) if np.isfinite(quantile) else None
                    for quantile in np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf")
                ],
            }
            for name, values in distances.items()
        ]
        if len(entries) > 1 and not radii:
            optimality = local_optimality(distances)
            for row, entry in zip(rows, entries, strict=True):
                row |= {"optimality": optimality[entry.key], "queries": entry.queries}
        figure = plots.accuracy_over_distance(distances, radii)
        sections.append({"norm": norm, "rows": rows, "figure": figure})
    return sections


def _margins(
    evaluation: Evaluation, examples: ExampleResults, headline: WorstCase
) -> dict[str, Any] | None:
    """Return the plot of margins under the strongest single attack at the headline's eps."""
    margins = {
        entry.key: _attacked(examples, entry).margins
        for entry in sorted(evaluation.attacks, key=lambda entry: entry.accuracy)
        if (entry.norm, entry.eps, entry.noise) == (headline.norm, headline.eps, "on")
    }
    strongest = next((key for key, values in margins.items() if values is not None), None)
    if strongest is None:
        return None
    candidates = {"clean": examples.margins, strongest: margins[strongest]}
    found = {name: values for name, values in candidates.items() if values is not None}
    return {"attack": strongest, "figure": plots.margin_histogram(found)}


def _adversarial(
    attacks: Mapping[str, Sequence[AttackEntry]], examples: ExampleResults
) -> dict[str, Any] | None:
    """Return the first stored examples under the attack with the most eps."""
    stored = {
        name: [entry for entry in entries if _attacked(examples, entry).sample_images is not None]
        for name, entries in attacks.items()
    }
    if not any(stored.values()) or not len(examples.sample_ids):
        return None

    def rank(name: str) -> tuple[int, float]:  # between attacks with as many eps, the stronger
        return len(stored[name]), -sum((entry.accuracy for entry in stored[name]), 0.0)

    name = max(stored, key=rank)
    ids = examples.sample_ids[:_NUM_EXAMPLES]
    clean = examples.sample_images[: len(ids)]
    class_name = partial(_class_name, examples)
    columns = []
    for entry in stored[name]:
        attacked: Any = _attacked(examples, entry)
        adversarial = attacked.sample_images[: len(ids)]
        perturbations, factor = amplify(adversarial - clean)
        columns.append(
            {
                "eps": entry.eps,
                "factor": factor,
                "images": _data_uris(adversarial),
                "perturbations": _data_uris(perturbations),
                "predictions": [*map(class_name, attacked.sample_predictions[: len(ids)])],
            }
        )
    return {
        "name": name,
        "ids": ids.tolist(),
        "labels": [*map(class_name, examples.labels[ids])],
        "images": _data_uris(clean),
        "predictions": [*map(class_name, examples.predictions[ids])],
        "columns": columns,
    }


def _class_name(examples: ExampleResults, number: int | np.integer) -> str:
    if number < 0:
        return "no class (NaN or infinite logits)"
    return str(number if examples.class_names is None else examples.class_names[number])


def _stops_early(entry: AttackEntry) -> bool:
    """Return whether an attack stops at its first success; DDN and FMN never do."""
    spec = ATTACKS[entry.attack]
    return spec.is_ensemble or (spec.resumable and entry.arguments.get("early_stop", True))


def _attacked(examples: ExampleResults, entry: AttackEntry) -> AttackedExamples:
    return examples.attacks.get(entry.key, _NOT_STORED)


def _data_uris(images: np.ndarray) -> list[str]:
    return [data_uri(thumbnail(image)) for image in images]


def settings(entry: AttackEntry) -> str:
    """Describe an attack and its arguments in words; eps has its own column."""
    given = entry.arguments.get
    words = [entry.attack, formats.norm(entry.norm)]
    if version := given("version"):
        words.append(f"version {version}")
    if num_steps := given("num_steps"):
        size = f" of {given('step_size'):.3g}" if "step_size" in entry.arguments else ""
        words.append(f"{num_steps} steps{size}")
    if attacks := given("attacks"):
        words.append(f"attacks {', '.join(attacks)}")
    if num_searches := given("num_searches"):
        words.append(f"{num_searches} searches from constant {given('constant'):g}")
    if num_targets := given("num_targets"):
        words.append(f"{num_targets} target classes")
    if samples := given("initial_samples"):
        words.append(f"{samples} samples in the first round")
    if samples := given("samples_per_gradient"):
        words.append(f"steps of {given('step_size'):.3g}")
        words.append(
            f"gradients estimated from {samples} {given('directions')} samples, "
            f"sigma {given('sigma'):g}"
        )
    if given("nesterov"):
        words.append("look-ahead (NI-FGSM)")
    if diversity := given("diversity"):
        words.append(f"random sizes with probability {diversity:g} (DI-FGSM)")
    if (kernel_size := given("kernel_size", 1)) > 1:
        words.append(f"gradients smoothed over {kernel_size} pixels (TI-FGSM)")
    if (decay := given("decay")) is not None:
        words.append(f"momentum {decay:g}")
    if momentum := given("momentum"):
        words.append(f"momentum {momentum:g}")
    if plateau_length := given("plateau_length"):
        words.append(f"step size halved on plateaus of {plateau_length} steps")
    if label_samples := given("label_samples"):
        words.append(f"labels of {label_samples} neighbours per sample")
    if share := given("share"):
        is_square = entry.attack == "square"
        words.append(
            f"first square over {share:g} of the image"
            if is_square
            else f"exchanges from half of {share:g} of the pixels"
        )
    if not given("early_stop", True):
        words.append("without early stopping")
    if loss := given("loss"):
        words.append(f"{loss.replace('_', '-')} loss")
    if given("random_start"):
        words.append("random start")
    if num_odi_steps := given("num_odi_steps"):
        words.append(f"{num_odi_steps} steps of ODI")
    if (num_restarts := given("num_restarts", 1)) > 1:
        words.append(f"{num_restarts} restarts")
    if (num_samples := given("num_noise_samples", 1)) > 1:
        words.append(f"mean {given('noise_average', 'softmax')} over {num_samples} noise samples")
    if entry.noise != "on":
        words.append(f"model noise {entry.noise}")
    return ", ".join(words)


_NUM_GRIDS = 3  # grids of samples, from the first round to the last


def write_gan_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` from the files in the workdir of a GAN.

    Args:
      workdir: folder with `config.json`, and any of `metrics.jsonl`, `gan.json`, `neighbours.npz`
        and `grids/`. The page omits the parts of missing files.

    Returns:
      The path of the page.

    Raises:
      UserError: one of the files cannot be read.
    """
    folder = Path(workdir)
    metrics = read_json_lines(folder / "metrics.jsonl")
    neighbours = read_arrays(folder / "neighbours.npz")
    result = read_json(folder / "gan.json")
    html = template("gan_report.html").render(
        name=folder.resolve().name,
        config=json.dumps(read_json(folder / "config.json"), indent=2),
        result=result and GanResult.from_json(result),
        metrics=metrics,
        train_seconds=sum((line["seconds"] for line in metrics), 0.0),
        training=metrics and plots.gan_curves(metrics),
        grids=_grids(folder, metrics),
        neighbours={name: _row(images) for name, images in neighbours.items()},
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _grids(folder: Path, metrics: list[dict]) -> list[dict]:
    """Return the sample grids of the first round, the last one and rounds in between."""
    rounds = np.unique(np.linspace(0, len(metrics) - 1, _NUM_GRIDS).round().astype(int))
    grids = []
    for line in (metrics[i] for i in rounds if metrics):
        path = folder / "grids" / f"round_{line['epoch']:04}.png"
        if path.exists():
            try:
                image = np.asarray(Image.open(path)) / 255
            except OSError as error:
                raise UserError(f"{path} is damaged ({error}): delete it") from error
            grids.append({"step": line["step"], "image": data_uri(image)})
    return grids


def _row(images: np.ndarray) -> str:
    """Return images side by side, as a data URI."""
    return data_uri(mosaic(images, len(images)) / 255)


def template(name: str, package: str = "jaxadv.reports") -> jinja2.Template:
    """Return a template of a package; its filters are the formats and `settings`."""
    return _environment(package).get_template(name)


@cache
def _environment(package: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*map(jinja2.PackageLoader, (package, "jaxadv.reports"))]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (formats.percent, formats.interval, formats.norm, formats.eps, formats.duration)
    environment.filters |= {function.__name__: function for function in (*filters, settings)}
    return environment
