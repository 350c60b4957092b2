"""Progress bars on stderr, for terminals of any width, notebooks and log files."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_SECONDS_IN_A_FILE = 30  # between two updates


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    title: str | None = None,
    total: int | None = None,
    disable: bool | None = False,
    **options: Any,
) -> tqdm:
    """Return a progress bar. In a log file it is updated every 30 s.

    The environment variable TQDM_DISABLE=1 disables all bars; --quiet sets it.

    Args:
      items: to iterate over; None: call `update`.
      title: of the bar.
      total: number of items or of units.
      disable: whether to show no bar; None: only in a terminal.
      options: of tqdm, such as `unit` and `leave`.
    """
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        options |= {"mininterval": _SECONDS_IN_A_FILE, "maxinterval": _SECONDS_IN_A_FILE}
    return tqdm(
        items,
        desc=title,
        total=total,
        disable=True if os.environ.get("TQDM_DISABLE") == "1" else disable,
        dynamic_ncols=True,
        **options,
    )
