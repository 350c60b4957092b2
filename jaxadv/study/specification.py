"""Specification of an experiment: its trainings, table columns, plots and claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxadv.study.slides import EPS

# Where a value comes from: the two protocols of jaxadv/study/protocols.py, or the slides.
CORRECTED, ORIGINAL, SLIDES = "corrected protocol", "original protocol", "slides"
SCORE = "score"  # column: the sum of the accuracies at all radii

Columns = dict[str, tuple[str, ...]]
"""For each column the keys of its values in the records, in order of preference.

A key is "clean", "clean/<noise>" or "<attack>/<eps>" in the evaluation that ends the training, or
"<kind>:<key>" in another evaluation of it.
"""
CLEAN_AND_RADII: Columns = {
    "clean": ("clean",),
    **{eps: (f"pgd40/{eps}", f"averaged:eot10/{eps}") for eps in EPS},
}
AUTOATTACK: Columns = {"AutoAttack 0.03": ("autoattack:autoattack/0.03",)}
NOISE: Columns = {
    "one noise sample": ("pgd10/0.03", "noise:pgd10/0.03"),
    "200 gradients": ("eot20/0.03", "noise:pgd200/0.03"),
}
PGD_EPS = "0.03"  # the column of PGD-40 whose claims are also decided by AutoAttack
# The study evaluated in training mode, which matters for models with dropout or batch norm.
ORIGINAL_RADII: Columns = {
    "clean": ("study:clean/training", "study:clean"),
    **{eps: (f"study:training_mode/{eps}", f"study:pgd40/{eps}") for eps in EPS},
}
ORIGINAL_RADII_COARSE: Columns = {  # PGD steps of 0.02
    "clean": ("study:clean/training", "study:clean"),
    **{
        eps: (f"study_coarse:training_mode_coarse/{eps}", f"study:pgd40_coarse/{eps}")
        for eps in EPS
    },
}
# The original protocol, but in evaluation mode.
EVALUATION_MODE: Columns = {f"evaluation mode {eps}": (f"study:pgd40/{eps}",) for eps in EPS}


class Cell(NamedTuple):
    """A value of an experiment.

    Attributes:
      label: of a training.
      column: of the experiment.
      source: `CORRECTED`, `ORIGINAL` or `SLIDES`.
    """

    label: str
    column: str
    source: str = CORRECTED


@dataclass(frozen=True)
class Claim:
    """A claim about one or two accuracies; `jaxadv.study.verdicts.assess` gives its verdict.

    Attributes:
      text: the claim.
      origin: whose claim it is; begins with "the study" if it is the study's.
      kind: "higher", the first is higher than the second by more than `threshold`; "lower", the
        first is lower; "no_gain", the first is not higher; "equal", no significant difference;
        "at_most", the first is at most `threshold`.
      first: a cell.
      second: the cell that it is compared with; None for "at_most".
      threshold: a difference of shares for "higher", a share in [0, 1] for "at_most".
      sides: names of both cells in its evidence; None: their labels.
    """

    text: str
    origin: str
    kind: str
    first: Cell
    second: Cell | None = None
    threshold: float = 0.0
    sides: tuple[str, str] | None = None


def higher(
    text: str,
    first: Cell,
    second: Cell,
    origin: str = "the study",
    by_more_than: float = 0.0,
    sides: tuple[str, str] | None = None,
) -> Claim:
    """Return the claim that the first accuracy is higher than the second."""
    return Claim(text, origin, "higher", first, second, by_more_than, sides)


def lower(
    text: str,
    first: Cell,
    second: Cell,
    origin: str = "the study",
    sides: tuple[str, str] | None = None,
) -> Claim:
    """Return the claim that the first accuracy is lower than the second."""
    return Claim(text, origin, "lower", first, second, sides=sides)


def no_gain(text: str, first: Cell, second: Cell, origin: str = "the study") -> Claim:
    """Return the claim that the first accuracy is not higher than the second."""
    return Claim(text, origin, "no_gain", first, second)


def equal(text: str, first: Cell, second: Cell, origin: str) -> Claim:
    """Return the claim that two accuracies are not significantly different."""
    return Claim(text, origin, "equal", first, second)


def at_most(text: str, first: Cell, limit: float, origin: str = "the study") -> Claim:
    """Return the claim that an accuracy is at most a share."""
    return Claim(text, origin, "at_most", first, threshold=limit)


@dataclass(frozen=True)
class Experiment:
    """An experiment of the study: a section of its page.

    Attributes:
      name: argument of `config.study.only`, and name of its config in configs/experiments/.
      title: heading of the section.
      topic: heading of its claims; experiments of one topic follow each other.
      text: what was trained and how it was attacked.
      trainings: for each row label the name of a training, with ":last" for its last checkpoint;
        "" if only the slides have values.
      claims: about its cells.
      slides: values of the slides in %, by label and column.
      columns: of the corrected protocol.
      original: columns of the original protocol; the table shows those that are in `columns`.
      plots: "eps" and "queries" plot the accuracy, "parameters" the score, "bars" all columns.
      num_slide_images: number of images behind a value of the slides.
      slides_note: in what our trainings differ from those of the slides; "" if in nothing known.
    """

    name: str
    title: str
    topic: str
    text: str
    trainings: Mapping[str, str]
    claims: Sequence[Claim]
    slides: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    columns: Columns = field(default_factory=lambda: CLEAN_AND_RADII | AUTOATTACK)
    original: Columns = field(default_factory=lambda: ORIGINAL_RADII)
    plots: tuple[str, ...] = ("eps",)
    num_slide_images: int = 1024
    slides_note: str = ""
