"""Metrics log of a run: one line per epoch in metrics.jsonl, and TensorBoard's event files."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxadv.core.files import atomic_write
from jaxadv.runs.distributed import is_first

Image = UInt8[np.ndarray, "height width channels"]


@contextmanager
def open_metrics_log(workdir: Path, num_epochs: int) -> Iterator[Callable[..., None]]:
    """Yield `write(line, images={})`, which logs the metrics of an epoch and images by name.

    Only the first process writes.

    Args:
      workdir: of the run.
      num_epochs: finished epochs. Later lines, which no checkpoint covers, are dropped.
    """
    if not is_first():
        yield lambda *_, **__: None
        return
    path = workdir / "metrics.jsonl"
    _truncate(path, num_epochs)
    with (
        _summary_writer(workdir / "tensorboard", purge_step=num_epochs + 1) as writer,
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


def _summary_writer(folder: Path, purge_step: int) -> Any:
    """Return a `SummaryWriter` of tensorboardX.

    tensorboardX imports PyTorch where it is installed, for an annotation only. That takes seconds,
    so PyTorch is hidden from it.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)


def _truncate(path: Path, num_lines: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with atomic_write(path) as partial:
            partial.write_text("".join(lines[:num_lines]), encoding="utf-8")
