"""What the page of the study shows of an experiment; each has its own as `PAGE`.

In a claim the heading `as there X` is the column X of the models judged as the study judged its
own, and `slides X` what the slides have of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.slides import EPS

Columns = dict[str, tuple[str, ...]]

GRID: Columns = {
    "clean": ("clean",),
    **{eps: (f"pgd40/{eps}", f"averaged:eot10/{eps}") for eps in EPS},
}
AUTOATTACK: Columns = {"AutoAttack .03": ("autoattack:autoattack/0.03",)}
NOISE: Columns = {
    "one noise sample": ("pgd10/0.03", "noise:pgd10/0.03"),
    "200 gradients": ("eot20/0.03", "noise:pgd200/0.03"),
}
# Where training differs from test, as with dropout or batch norm, the study judged as in training.
AS_THERE: Columns = {
    "clean": ("study:clean/training", "study:clean"),
    **{eps: (f"study:training_mode/{eps}", f"study:pgd40/{eps}") for eps in EPS},
}
RUNNING: Columns = {f"running {eps}": (f"study:pgd40/{eps}",) for eps in EPS}  # all else as there
AS_THERE_COARSE: Columns = {
    "clean": ("study:clean",),
    **{eps: (f"study:pgd40_coarse/{eps}",) for eps in EPS},
}
BUDGETS = ("500", "1000", "2000", "3000", "4000")  # queries of NES


def experiment(
    title: str,
    text: str,
    *,
    arms: Mapping[str, str],
    claims: Sequence[Mapping[str, Any]],
    study: Mapping[str, Mapping[str, float]] | None = None,
    columns: Columns | None = None,
    as_there: Columns = AS_THERE,
    extra: Columns | None = None,
    figures: tuple[str, ...] = ("eps",),
    study_n: int = 1024,
) -> ConfigDict:
    """Returns what the page shows of an experiment, as plain values.

    A ConfigDict would not keep the order of mappings: they become pairs.

    Args:
      title: of its part of the page.
      text: what was done.
      arms: for each label a training of configs/study.py, `:last` for its last checkpoint, or
        "" where only the study has figures.
      claims: of the functions below.
      study: the study's figures, in %, by label and heading.
      columns: for each heading the entries that may fill it, the first that is there: `clean`,
        `clean/noise` or `attack/eps` of the training's own evaluation, or `kind:` and such an entry
        of another.
      as_there: the same for the models judged as the study judged its own.
      extra: columns that only claims speak of.
      figures: accuracy over "eps" or "queries", the score over "parameters", or "bars".
      study_n: images that the study's figures are of.
    """
    own = GRID | AUTOATTACK if columns is None else columns
    return ConfigDict(
        {
            "title": title,
            "text": text,
            "figures": figures,
            "study_n": study_n,
            "arms": tuple(arms.items()),
            "study": tuple((label, tuple(row.items())) for label, row in (study or {}).items()),
            "columns": tuple(own.items()),
            "as_there": tuple(as_there.items()),
            "extra": tuple((extra or {}).items()),
            "claims": tuple(tuple(claim.items()) for claim in claims),
        }
    )


Entry = tuple[str, str]  # a label and a heading


def more(text: str, more: Entry, less: Entry, by: str = "the study") -> dict[str, Any]:
    """Returns the claim that one entry is more than another; `by` says whose claim it is."""
    return _of_two("more", text, more, less, by)


def no_gain(text: str, more: Entry, less: Entry, by: str = "the study") -> dict[str, Any]:
    """Returns the claim that one entry gains less than a point over another."""
    return _of_two("no_gain", text, more, less, by)


def alike(text: str, more: Entry, less: Entry, by: str) -> dict[str, Any]:
    """Returns the claim that two entries cannot be told apart."""
    return _of_two("alike", text, more, less, by)


def at_most(text: str, entry: Entry, share: float, by: str = "the study") -> dict[str, Any]:
    """Returns the claim that an entry is at most a share."""
    return {"text": text, "by": by, "kind": "at_most", "entry": entry, "share": share}


def _of_two(kind: str, text: str, more: Entry, less: Entry, by: str) -> dict[str, Any]:
    return {"text": text, "by": by, "kind": kind, "more": more, "less": less}
