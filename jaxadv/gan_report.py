"""The report of a GAN: one self-contained HTML page."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from jaxadv import figures, page, pictures
from jaxadv.types import UserError

_NUM_GRIDS = 3  # pictures of the fixed latents, from the first round to the last


def write(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` from the files of a run's workdir, and from nothing else.

    Args:
      workdir: folder with `config.json`, and any of `metrics.jsonl`, `gan.json`, `neighbours.npz`
        and `grids/`.

    Returns:
      The path of the page.

    Raises:
      UserError: one of the files cannot be read.
    """
    folder = Path(workdir)
    metrics = page.read_json_lines(folder / "metrics.jsonl")
    neighbours = page.read_arrays(folder / "neighbours.npz")
    html = page.template("gan_report.html").render(
        name=folder.resolve().name,
        config=json.dumps(page.read_json(folder / "config.json"), indent=2),
        result=page.read_json(folder / "gan.json"),
        metrics=metrics,
        train_seconds=sum((line["seconds"] for line in metrics), 0.0),
        training=metrics and figures.gan_curves(metrics),
        grids=_grids(folder, metrics),
        neighbours={name: _row(images) for name, images in neighbours.items()},
    )
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _grids(folder: Path, metrics: list[dict]) -> list[dict]:
    """Returns the pictures of the first round, the last and some between."""
    shown = np.unique(np.linspace(0, len(metrics) - 1, _NUM_GRIDS).round().astype(int))
    grids = []
    for line in (metrics[i] for i in shown if metrics):
        path = folder / "grids" / f"round_{line['epoch']:04}.png"
        if path.exists():
            try:
                image = np.asarray(Image.open(path)) / 255
            except OSError as error:
                raise UserError(f"{path} is damaged ({error}): delete it") from error
            grids.append({"step": line["step"], "image": pictures.data_uri(image)})
    return grids


def _row(images: np.ndarray) -> str:
    return pictures.data_uri(pictures.mosaic(images, len(images)) / 255)
