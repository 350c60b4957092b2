"""What the records say of an arm: the accuracies of its seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxadv.masking import has_learned
from jaxadv.metrics import proportion
from jaxadv.study.records import Record, is_of

# Before the heading of what was judged as the study judged its own, and of what its slides have.
AS_THERE, SLIDES = "as there ", "slides "
SCORE = "score"  # the sum of the accuracies at all eps
_SEEDS = range(10)
_NOT_SAID_EARLIER = {"largest_class": 0.0, "split": "test"}


class Entry(NamedTuple):
    """One accuracy of one model.

    Attributes:
      accuracy: share of the images classified right.
      ci95: its Wilson interval.
      survived: which images those are, in the order of their split; None where that was not kept.
      training: the run without its seed; for figures of the slides whose they are.
      source: the checksum of the weights, and the attack.
      earlier: whether it was measured before there was the study, which a note of its record tells.
      learned: whether the model is better on clean images than a guess is.
      split: what the images are the first of.
    """

    accuracy: float
    ci95: tuple[float, float]
    survived: Bool[np.ndarray, "n"] | None
    training: str
    source: tuple[str, str]
    earlier: bool = False
    learned: bool = True
    split: str = "test"

    @property
    def images(self) -> tuple[str, int] | None:
        """The split and how many of it, which tell the images; None where that was not kept."""
        return None if self.survived is None else (self.split, len(self.survived))


Records = Mapping[str, Record]
Found = dict[tuple[str, str], dict[int, Entry]]
"""Entries by label and heading, for each seed."""


def find(records: Records, arm: str, keys: Sequence[str]) -> dict[int, Entry]:
    """Returns for each seed the first entry that the records have of some keys.

    Args:
      records: by the name of their run.
      arm: a training, with `:last` for its last checkpoint: then other evaluations that are not
        of that one are left out.
      keys: `clean`, `clean/noise` or `attack/eps` of the training's own evaluation, or `kind:` and
        such a key of another.
    """
    training, _, which = arm.partition(":")
    found = {}
    for seed in _SEEDS:
        for key in keys:
            kind, _, attack = key.rpartition(":")
            record = _record(records, f"{training}/{seed}", kind, which)
            last = which == "last" and not kind
            if record and (entry := _entry(record, training, attack, last)):
                found[seed] = entry
                break
    return found


def _record(records: Records, training: str, kind: str, which: str) -> Record | None:
    """Returns the record of a training, or of another evaluation of the checkpoint asked for."""
    trained = records.get(training)
    if not kind:
        return trained
    record = records.get(f"{training}/{kind}")
    if which and not (record and trained and is_of(record, trained, which)):
        return None
    return record


def _entry(record: Record, training: str, attack: str, last: bool) -> Entry | None:
    # Where the last checkpoint is the best there is one evaluation of both.
    name = "evaluation_last" if last and "evaluation_last" in record.content else "evaluation"
    if name not in record.content:
        return None
    evaluation = _NOT_SAID_EARLIER | record.content[name]
    if attack.startswith("clean/"):
        entry = evaluation["clean_noise"].get(attack.removeprefix("clean/"))
    else:
        entry = evaluation["clean"] if attack == "clean" else evaluation["attacks"].get(attack)
    if entry is None:
        return None
    low, high = entry["ci95"]
    return Entry(
        entry["accuracy"],
        (low, high),
        record.survived.get(f"{name}/{attack}"),
        training,
        (evaluation["checkpoint"]["sha256"], attack),
        earlier="note" in record.content,
        learned=has_learned(evaluation),
        split=evaluation["split"],
    )


def read_off(study: Mapping[str, Mapping[str, float]], n: int) -> Found:
    """Returns the figures of the slides, in % of n images, as entries."""
    found: Found = {}
    for label, row in study.items():
        for heading, percent in row.items():
            if heading != SCORE:
                entry = proportion(round(percent / 100 * n), n)
                low, high = entry["ci95"]
                whose = f"the study's {label}"
                slide = Entry(entry["accuracy"], (low, high), None, whose, (whose, heading))
                found[label, SLIDES + heading] = {0: slide}
    return found
