"""What the records say of an arm, and whether they bear a claim out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxadv.masking import has_learned
from jaxadv.study.records import Record, is_of

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "cannot be told", "not run"
_SEEDS = range(10)
_LEVEL = 0.05
_NO_GAIN = 0.01  # a gain that is told to be smaller than this counts as none


class Entry(NamedTuple):
    """One accuracy of one model.

    Attributes:
      accuracy: share of the images classified right.
      ci95: its Wilson interval.
      survived: which images those are; None where that was not kept.
      earlier: whether it was measured before there was the study, which a note of its record tells.
      learned: whether the model is better on clean images than a guess is.
    """

    accuracy: float
    ci95: tuple[float, float]
    survived: Bool[np.ndarray, "n"] | None
    earlier: bool = False
    learned: bool = True

    @property
    def n(self) -> int:
        """How many images there are; 0 where that was not kept."""
        return 0 if self.survived is None else len(self.survived)


class Verdict(NamedTuple):
    """What the evidence says of a claim: one of the four words, and the numbers in a sentence."""

    word: str
    sentence: str


Records = Mapping[str, Record]


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
            if record and (entry := _entry(record, attack, last=which == "last" and not kind)):
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


def _entry(record: Record, attack: str, last: bool) -> Entry | None:
    # Where the last checkpoint is the best there is one evaluation of both.
    name = "evaluation_last" if last and "evaluation_last" in record.content else "evaluation"
    evaluation = record.content.get(name)
    if evaluation is None:
        return None
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
        earlier="note" in record.content,
        learned=has_learned({"largest_class": 0.0} | evaluation),  # earlier ones do not say it
    )


def compare(more: Mapping[int, Entry], less: Mapping[int, Entry], or_equal: bool) -> Verdict:
    """Returns whether one model is more accurate than another, seed by seed.

    A claim holds where McNemar's test (two-sided, exact) tells the two apart in every seed, all in
    its favour, and does not hold where all are against it. `or_equal`: it also holds where the 95 %
    interval of the other's gain stays below a point in every seed.

    Args:
      more: entries of the model that is claimed to be better, by seed.
      less: of the other.
      or_equal: whether no difference is what is claimed.
    """
    seeds = sorted(more.keys() & less.keys())
    if not seeds:
        return Verdict(NOT_RUN, "")
    pairs = [paired(more[seed], less[seed]) for seed in seeds]
    significant = all(p < _LEVEL for _, _, p in pairs)
    if significant and all(difference > 0 for difference, _, _ in pairs):
        word = HOLDS
    elif significant and all(difference < 0 for difference, _, _ in pairs):
        word = FAILS
    elif or_equal and all(-low < _NO_GAIN for _, (low, _), _ in pairs):
        word = HOLDS
    else:
        word = OPEN
    parts = [
        f"{_points(difference)} ({_points(low)} to {_points(high)}, p {_p(p)})"
        for difference, (low, high), p in pairs
    ]
    mean = statistics.mean(difference for difference, _, _ in pairs)
    a, b = (statistics.mean(found[seed].accuracy for seed in seeds) for found in (more, less))
    sides = f"{100 * a:.1f} % against {100 * b:.1f} %"
    if len(seeds) == 1:
        return Verdict(word, f"{sides}: {parts[0]} points, one seed.")
    return Verdict(word, f"{sides}: {_points(mean)} points; by seed {'; '.join(parts)}.")


def at_most(entries: Mapping[int, Entry], share: float) -> Verdict:
    """Returns whether an accuracy is at most a share, by the ends of its interval in every seed."""
    if not entries:
        return Verdict(NOT_RUN, "")
    if all(entry.ci95[1] <= share for entry in entries.values()):
        word = HOLDS
    elif all(entry.ci95[0] > share for entry in entries.values()):
        word = FAILS
    else:
        word = OPEN
    parts = [
        f"{100 * entry.accuracy:.1f} % ({100 * entry.ci95[0]:.1f} to {100 * entry.ci95[1]:.1f})"
        for _, entry in sorted(entries.items())
    ]
    seeds = "one seed" if len(parts) == 1 else f"{len(parts)} seeds"
    return Verdict(word, f"{'; '.join(parts)}; at most {100 * share:g} % was claimed; {seeds}.")


def paired(one: Entry, other: Entry) -> tuple[float, tuple[float, float], float]:
    """Returns the difference of two accuracies, its 95 % interval and the p of no difference.

    On the same images the test is McNemar's, exact. Where the images that survive were not kept, or
    are not the same, the two are taken for independent, which tells less.

    >>> same = np.array([True] * 90 + [False] * 10)
    >>> entry = Entry(0.9, (0.8, 0.95), same)
    >>> paired(entry, entry)
    (0.0, (0.0, 0.0), 1.0)
    """
    from scipy.stats import binomtest, norm  # takes a second, which the start need not wait for

    if one.survived is not None and other.survived is not None and one.n == other.n:
        gained = int((one.survived & ~other.survived).sum())
        lost = int((other.survived & ~one.survived).sum())
        n = one.n
        difference = (gained - lost) / n
        error = math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0)) / n
        p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    else:
        difference = one.accuracy - other.accuracy
        # A Wilson interval is nearly as wide as that of the normal approximation.
        halves = [(entry.ci95[1] - entry.ci95[0]) / 2 for entry in (one, other)]
        error = math.hypot(*halves) / 1.96
        p = float(2 * norm.sf(abs(difference) / error)) if error else 1.0
    return difference, (difference - 1.96 * error, difference + 1.96 * error), float(p)


def judge(claim: Mapping[str, Any], entries_of: Mapping[Any, Mapping[int, Entry]]) -> Verdict:
    """Returns what the evidence says of a claim of configs/experiments/shown.py.

    Args:
      claim: as of the config.
      entries_of: entries by seed for each `(label, heading)` that it names.
    """
    names = [claim[key] for key in ("entry", "more", "less") if key in claim]
    sides = [entries_of[name] for name in names]
    if "at_most" in claim:
        verdict = at_most(sides[0], claim["at_most"])
    else:
        verdict = compare(sides[0], sides[1], claim["or_equal"])
    learned = all(entry.learned for side in sides for entry in side.values())
    if verdict.word == NOT_RUN or learned:
        return verdict
    return Verdict(OPEN, f"{verdict.sentence} But a model did not learn (‡).")


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")
