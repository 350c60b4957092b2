"""How figures are drawn: inline SVG that takes its colours and its font from the page.

Matplotlib draws with the colours of `_COLORS`; in the SVG each of them becomes a CSS variable,
so one drawing serves a light page, a dark page and paper. Text stays text.
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

INK, RULE = "#111111", "#dddddd"
CLEAN, ROBUST = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by colour-blind readers
SERIES = (ROBUST, CLEAN, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a3d22", "#8c8c8c")
MARKERS = "osD^vPX*"
_COLORS = {
    INK: "currentColor",
    RULE: "var(--rule)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES, start=1)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_ID = re.compile(r'(\bid="|href="#|url\(#)([^")]+)')
WIDTH = 9.0  # inches, which a browser shows as 864 pixels


def accuracy_axis(axes: Axes, label: str = "accuracy") -> None:
    """Makes the vertical axis one of percentages from 0."""
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def over_epochs(
    axes: Axes,
    metrics: Sequence[Mapping[str, Any]],
    series: Mapping[str, tuple[str | None, Mapping[str, Any]]],
) -> None:
    """Draws series of `metrics.jsonl`, each with its label and style, over the epochs."""
    epochs = [line["epoch"] for line in metrics]
    for key, (label, style) in series.items():
        values = np.array([line.get(key) for line in metrics], dtype=float)  # None becomes NaN
        if not np.isnan(values).all():
            axes.plot(epochs, values, label=label, **style)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def note(axes: Axes, x: int, text: str) -> None:
    """Writes a text above the panel, from `x` on."""
    axes.annotate(
        text, (x, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 2),
        textcoords="offset points", fontsize=8.5,
    )  # fmt: skip


def svg(figure: Figure) -> str:
    """Returns the figure as an `<svg>` element, the same bytes for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Matplotlib's ids are random, and a page of several figures needs them to differ.
    numbers: dict[str, int] = {}
    svg = _ID.sub(lambda found: f"{found[1]}{numbers.setdefault(found[2], len(numbers))}", svg)
    svg = _ID.sub(rf"\g<1>f{zlib.crc32(svg.encode()):08x}-\g<2>", svg)
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    return svg


def standalone(svg: str) -> str:
    """Returns an `<svg>` element of `svg` as a file of its own, in the colours of a light page."""
    for color, variable in _COLORS.items():
        svg = svg.replace(variable, color)
    return svg.replace("<svg ", '<svg style="background: #ffffff" ', 1)
