"""Plot what `results/` holds: `PYTHONPATH=. python benchmarks/gallery.py`.

Writes docs/gallery.md and the figures in docs/gallery/. Nothing is measured: each figure is made
from the files that its caption names.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jaxadv.core.results import Evaluation
from jaxadv.reports import plots

RESULTS = Path("results")
DOCS = Path("docs")
_TARGETS = {"small": "configs/small.py", "fast": "configs/fast.py"}
_PAGE = """# Gallery

Plots of the results, made from the files in `results/` by

    PYTHONPATH=. python benchmarks/gallery.py

"""


def main() -> None:
    """Write the figures and the page."""
    folder = DOCS / "gallery"
    folder.mkdir(exist_ok=True)
    parts = []
    for draw in (training_time, over_eps, losses, distances, speed):
        figure, title, caption = draw()
        name = f"{draw.__name__}.svg"
        (folder / name).write_text(plots.standalone(figure), encoding="utf-8")
        parts.append(f"## {title}\n\n![{title}](gallery/{name})\n\n{caption}\n")
    (DOCS / "gallery.md").write_text(_PAGE + "\n".join(parts), encoding="utf-8")


def training_time() -> tuple[str, str, str]:
    """Plot robust accuracy over the duration of training, a point for each seed."""
    points: dict[str, list[tuple[float, float]]] = {}
    for config, label in _TARGETS.items():
        for path in sorted(RESULTS.glob(f"{config}/{config}_*/result.json")):
            result = _read(path)
            epochs = path.parent.name.split("_")[1]
            accuracy = result["autoattack"]["attacks"]["autoattack/0.03137"]["accuracy"]
            name = f"{label}, {epochs} epochs"
            points.setdefault(name, []).append((result["training_seconds"] / 60, accuracy))

    def draw(axes: Any) -> None:
        for number, (name, found) in enumerate(points.items()):
            axes.plot(
                *zip(*found, strict=True), linestyle="", label=name, color=plots.SERIES[number],
                marker=plots.MARKERS[number],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axes.set_xlabel("minutes of training on two CPU cores")
        axes.set_ylabel("accuracy under AutoAttack")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend()

    caption = (
        "CIFAR-10 (JPEG copy), AutoAttack in L-inf at 8/255 on the first 1,000 test images; each "
        "point is a seed. The machines differ in speed. Files: `results/fast/`, `results/small/`."
    )
    return _draw(draw), "Robust accuracy versus training time", caption


def over_eps() -> tuple[str, str, str]:
    """Plot the accuracy of `configs/curriculum.py` over the radius of attacks."""
    evaluation = Evaluation.from_json(_read(RESULTS / "curriculum" / "evaluation.json"))
    curves: dict[str, Any] = {
        name: [entry for entry in entries if entry.eps <= 0.1]
        for name, entries in evaluation.by_name().items()
    }
    curves = {name: entries for name, entries in curves.items() if len(entries) > 1}
    curves["worst case"] = [one for one in evaluation.worst_case if one.eps <= 0.1]
    figure = plots.accuracy_over_eps(evaluation.clean, curves, "worst case")
    caption = (
        "`configs/curriculum.py` on the test split of CIFAR-10 (JPEG copy); bands are 95 % "
        "intervals. File: `results/curriculum/evaluation.json`."
    )
    return figure, "Accuracy over eps", caption


def losses() -> tuple[str, str, str]:
    """Plot the accuracy under APGD over the number of gradients, for each loss."""
    content = _read(RESULTS / "apgd_losses" / "bignet_n_fgsm.json")
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        curves.setdefault(row["loss"].replace("_", " "), []).append(row)

    def draw(axes: Any) -> None:
        for number, (name, rows) in enumerate(curves.items()):
            axes.plot(
                [row["gradients"] for row in rows], [row["accuracy"] for row in rows], label=name,
                color=plots.SERIES[number], marker=plots.MARKERS[number],
            )  # fmt: skip
        axes.set_xticks(sorted({row["gradients"] for row in content["rows"]}))
        axes.set_xlabel("gradients for each image")
        axes.set_ylabel("accuracy under APGD")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))

    caption = (
        "BigNet trained by N-FGSM, L-inf at 8/255, 1,000 held-out images of CIFAR-10 (JPEG copy). "
        "The targeted loss, which divides its gradients among nine classes, needs more of them. "
        "File: `results/apgd_losses/bignet_n_fgsm.json`."
    )
    return _draw(draw), "The loss of a gradient attack", caption


def distances() -> tuple[str, str, str]:
    """Plot the median distances of minimal-norm attacks relative to those of Foolbox."""
    contents = [_read(path) for path in sorted((RESULTS / "distances").glob("*.json"))]
    results = {name: one for content in contents for name, one in content["results"].items()}
    found = {
        name.replace("/", ", "): result for name, result in results.items()
        if "foolbox" in result
    }  # fmt: skip

    def draw(axes: Any) -> None:
        for number, result in enumerate(found.values()):
            ratios = [
                result["jaxadv"][key] / result["foolbox"][key]
                for key in ("median_distance", "seconds")
            ]
            for ratio, color, marker in zip(ratios, plots.SERIES, plots.MARKERS, strict=False):
                axes.plot(ratio, number, color=color, marker=marker)
        for label, color, marker in zip(
            ("median distance", "time"), plots.SERIES, plots.MARKERS, strict=False
        ):
            axes.plot([], [], linestyle="", label=label, color=color, marker=marker)
        _ratio_axis(axes, found, "jaxadv divided by Foolbox; less is better")

    caption = (
        "Attacks on the test images among 500 of CIFAR-10 that a BigNet classifies correctly, with "
        "the same weights and budgets: FMN and DDN on one trained model, C&W and DeepFool on "
        "another. The time is that of the second call. Files: `results/distances/`."
    )
    return _draw(draw), "Minimal-norm attacks compared with Foolbox", caption


def speed() -> tuple[str, str, str]:
    """Plot the speed relative to the best of PyTorch, with the range of its repetitions."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((RESULTS / "performance").glob("vs_pytorch_*.json")):
        content = _read(path)
        for task, result in content["tasks"].items():
            found[f"{content['model']}, {task}"] = result["ratio"]

    def draw(axes: Any) -> None:
        for number, ratio in enumerate(found.values()):
            axes.plot([ratio["least"], ratio["most"]], [number] * 2, color=plots.CLEAN)
            axes.plot(ratio["median"], number, color=plots.CLEAN, marker="o")
        _ratio_axis(axes, found, "images a second divided by the best of PyTorch; more is better")

    caption = (
        "PGD-10, training steps and forward passes on two CPU cores, in batches of 256 (`net`, "
        "`bignet`), 128 (`fastnet`, `smallnet`, `biggernet`) and 32; medians and ranges of five "
        "runs. PyTorch is the fastest of NCHW, channels-last and compiled, in attacks also of "
        "torchattacks. `wrn_7_2` and `vit_3_128` were measured earlier, on 25 November 2026. "
        "Files: `results/performance/vs_pytorch_*.json`."
    )
    return _draw(draw, height=6.4), "Speed compared with PyTorch", caption


def _ratio_axis(axes: Any, names: Iterable[str], label: str) -> None:
    names = list(names)
    axes.axvline(1, color=plots.INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _draw(draw: Callable[[Any], None], height: float = 3.6) -> str:
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, height), layout="constrained")
        draw(figure.subplots())
        return plots.svg(figure)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
