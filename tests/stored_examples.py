"""Examples that are "decoded" when they are read, from arrays in memory."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from jaxadv.core.types import HostBatch, UserError


@dataclass(frozen=True)
class ArrayExamples:
    """Examples for tests. One row may be unreadable."""

    batch: HostBatch
    unreadable_row: int | None = None

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        return self.batch.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.batch.images.shape[1:]
        return height, width, channels

    def take(self, rows: Int[np.ndarray, "m"]) -> UInt8[np.ndarray, "m height width channels"]:
        if self.unreadable_row in rows:
            raise UserError(f"cannot read image_{self.unreadable_row}.png: delete it")
        return self.batch.images[rows]
