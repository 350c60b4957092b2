"""The metrics of a run: a line for each epoch in metrics.jsonl, and TensorBoard's event files."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from jaxadv.files import written_whole
from jaxadv.processes import is_first

Image = UInt8[np.ndarray, "height width channels"]


@contextmanager
def open_logbook(workdir: Path, num_epochs: int) -> Iterator[Callable[..., None]]:
    """Yields `write(line, images={})`, which adds an epoch and pictures by name.

    Of several processes the first alone writes.

    Args:
      workdir: of the run.
      num_epochs: that stay; the lines of later ones, never checkpointed, are dropped.
    """
    if not is_first():
        yield lambda *_: None
        return
    path = workdir / "metrics.jsonl"
    _keep(path, num_epochs)
    with (
        SummaryWriter(str(workdir / "tensorboard"), purge_step=num_epochs + 1) as writer,
        path.open("a", encoding="utf-8") as file,
    ):

        def write(line: Mapping[str, Any], images: Mapping[str, Image] | None = None) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            for name, value in line.items():
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, line["epoch"])
            for name, image in (images or {}).items():
                writer.add_image(name, image, line["epoch"], dataformats="HWC")

        yield write


def _keep(path: Path, num_lines: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with written_whole(path) as partial:
            partial.write_text("".join(lines[:num_lines]), encoding="utf-8")
