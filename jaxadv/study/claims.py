"""Whether the records bear a claim out: what two trainings differ by, beyond images and seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxadv.study.evidence import AS_THERE, SLIDES, Entry, Found

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "cannot be told", "not run"
COMMON = "0.03"  # the heading whose spread is taken where a column was measured on one seed alone
_NO_GAIN = 0.01  # a smaller gain counts as none
_ENOUGH_SEEDS = 3  # for a deviation of one's own
_SIDES = ("more", "less")

Entries = Mapping[int, Entry]


class Verdict(NamedTuple):
    """What the evidence says of a claim: one of the four words, and the numbers in a sentence."""

    word: str
    sentence: str


class Spread(NamedTuple):
    """By how much trainings of one config differ from seed to seed.

    Attributes:
      deviation: of their accuracies, pooled over all configs that were trained more than once.
      freedom: its degrees of freedom, the seeds less the configs.
    """

    deviation: float
    freedom: int


class Gain(NamedTuple):
    """By how much one side of a claim is more accurate, with a 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_told(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def spreads(experiments: Iterable[Found]) -> dict[str, Spread]:
    """Returns the spread under each heading that some training has of several seeds.

    A seed that did not learn is left out: how far off it is says nothing of those that did.

    Args:
      experiments: the entries of each; a training counts once, as it is shown first.
    """
    of_heading: dict[str, dict[str, Entries]] = {}
    for found in experiments:
        for (_, heading), every in found.items():
            entries = {seed: entry for seed, entry in every.items() if entry.learned}
            if len(entries) > 1:
                of_heading.setdefault(heading, {}).setdefault(_training(entries), entries)
    return {heading: _pooled(list(repeated.values())) for heading, repeated in of_heading.items()}


def _pooled(repeated: list[Entries]) -> Spread:
    freedom = sum(len(entries) - 1 for entries in repeated)
    squares = 0.0
    for entries in repeated:
        values = [entry.accuracy for entry in entries.values()]
        squares += statistics.variance(values) * (len(values) - 1)
    return Spread(math.sqrt(squares / freedom), freedom)


def judge(claim: Mapping[str, Any], found: Found, spread_of: Mapping[str, Spread]) -> Verdict:
    """Returns what the evidence says of a claim of configs/experiments/shown.py.

    Args:
      claim: as of the config.
      found: entries by seed for each `(label, heading)` that it names.
      spread_of: the spread under each heading.
    """
    sides = [found[claim[key]] for key in ("entry", *_SIDES) if key in claim]
    if not all(sides):
        return Verdict(NOT_RUN, "")
    if claim["kind"] == "at_most":
        verdict = at_most(sides[0], claim["share"])
    else:
        spread = _spread_under(claim["more"][1], spread_of)
        verdict = compare(sides[0], sides[1], claim["kind"], spread)
    if all(entry.learned for side in sides for entry in side.values()):
        return verdict
    return Verdict(OPEN, f"{verdict.sentence} But a model did not learn (‡).")


def _spread_under(heading: str, spread_of: Mapping[str, Spread]) -> Spread | None:
    bare = heading.removeprefix(AS_THERE).removeprefix(SLIDES)
    return spread_of.get(bare) or spread_of.get(COMMON)


def from_slides(found: Found, spread_of: Mapping[str, Spread]) -> dict[tuple[str, str], Gain]:
    """Returns by how much ours, judged as there, are more than the figures of the slides.

    Args:
      found: entries of an experiment.
      spread_of: the spread under each heading.

    Returns:
      For each label and heading that both have; nothing where no config was trained twice.
    """
    gains = {}
    for (label, heading), slide in found.items():
        bare = heading.removeprefix(SLIDES)
        ours, spread = found.get((label, AS_THERE + bare)), _spread_under(heading, spread_of)
        if bare != heading and ours and spread:
            gains[label, bare] = gain(ours, slide, spread)
    return gains


def at_most(entries: Entries, share: float) -> Verdict:
    """Returns whether an accuracy is at most a share, by the ends of its interval in every seed."""
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
    return Verdict(word, f"{'; '.join(parts)}; asked: at most {100 * share:g} %.")


def compare(more: Entries, less: Entries, kind: str, spread: Spread | None) -> Verdict:
    """Returns whether one side is more accurate than another, or hardly more, or as accurate.

    Args:
      more: entries by seed of what is claimed to be better, or to gain nothing.
      less: of the other.
      kind: "more"; "no_gain": less than a point more; "alike": the two cannot be told apart.
      spread: of the seeds of one config; None where none was trained twice. Two looks at the same
        trainings, or at the same weights, do without it, and are compared on the seeds that both
        have.
    """
    seeds = _common_seeds(more, less)
    if _training(more) == _training(less) or _of_same_weights(more, less, seeds):
        if not seeds:
            return Verdict(NOT_RUN, "")
        more, less = ({seed: side[seed] for seed in seeds} for side in (more, less))
        if seeds == _seeds_of_one(more, less):
            return Verdict(OPEN, "The two are one: the best checkpoint is the last.")
        spread = None
    elif spread is None:
        return Verdict(OPEN, f"{_sides(more, less)}; no config was trained twice.")
    found = gain(more, less, spread)
    return Verdict(_word(found, kind), _sentence(more, less, found))


def _common_seeds(more: Entries, less: Entries) -> list[int]:
    return sorted(more.keys() & less.keys())


def _of_same_weights(more: Entries, less: Entries, seeds: list[int]) -> bool:
    return bool(seeds) and all(more[seed].source[0] == less[seed].source[0] for seed in seeds)


def _seeds_of_one(more: Entries, less: Entries) -> list[int]:
    """Returns the seeds in which both are one look at one model of one training."""
    if _training(more) != _training(less):
        return []
    return [seed for seed in _common_seeds(more, less) if more[seed].source == less[seed].source]


def _training(entries: Entries) -> str:
    return next(iter(entries.values())).training


def _word(found: Gain, kind: str) -> str:
    if kind == "alike":
        return FAILS if found.is_told else HOLDS
    if kind == "no_gain":
        if found.high < _NO_GAIN:
            return HOLDS
        return FAILS if found.low > _NO_GAIN else OPEN
    if not found.is_told:
        return OPEN
    return HOLDS if found.low > 0 else FAILS


def gain(more: Entries, less: Entries, spread: Spread | None) -> Gain:
    """Returns the difference of two means over seeds with its 95 % interval.

    Its variance is that of the images (paired where all entries are of the same ones) and that of
    the seeds: each side's own where both have three or more (Welch 1947), else the spread of all
    configs. Student's t has the degrees of freedom of Satterthwaite (1946).

    Args:
      more: entries by seed; those of the other side may be of other seeds.
      less: of the other side.
      spread: of the seeds; None where both are of the same trainings.

    >>> right = np.array([True] * 90 + [False] * 10)
    >>> entry = Entry(0.9, (0.8, 0.95), right, "net_adamw", ("aee1", "pgd40"))
    >>> gain({0: entry}, {0: entry}, None)
    Gain(difference=0.0, low=0.0, high=0.0)
    """
    from scipy.stats import norm, t  # takes a second, which the start need not wait for

    difference = _mean(more) - _mean(less)
    of_seeds = _seed_variances(more, less, spread) if spread else []
    variance = _image_variance(more, less) + sum(part for part, _ in of_seeds)
    unsure = sum(part**2 / freedom for part, freedom in of_seeds)
    # Of images there are so many that their variance is known.
    quantile = float(t.ppf(0.975, variance**2 / unsure) if unsure else norm.ppf(0.975))
    half = quantile * math.sqrt(variance)
    return Gain(difference, difference - half, difference + half)


def _seed_variances(more: Entries, less: Entries, spread: Spread) -> list[tuple[float, int]]:
    """Returns the parts of the variance of the difference by seeds, with their freedoms."""
    if min(len(more), len(less)) < _ENOUGH_SEEDS:
        return [(spread.deviation**2 * (1 / len(more) + 1 / len(less)), spread.freedom)]
    return [
        (statistics.variance(e.accuracy for e in side.values()) / len(side), len(side) - 1)
        for side in (more, less)
    ]


def _mean(entries: Entries) -> float:
    return statistics.mean(entry.accuracy for entry in entries.values())


def _image_variance(more: Entries, less: Entries) -> float:
    """Returns the variance of the difference of two means over seeds by the choice of images."""
    images = {entry.images for side in (more, less) for entry in side.values()}
    if len(images) == 1 and images != {None}:
        better, worse = (
            np.array([entry.survived for entry in side.values()]).mean(0) for side in (more, less)
        )
        return float((better - worse).var() / len(better))
    # A Wilson interval is nearly as wide as that of the normal approximation; seeds share images.
    halves = [
        statistics.mean((e.ci95[1] - e.ci95[0]) / 2 for e in side.values()) for side in (more, less)
    ]
    return (math.hypot(*halves) / 1.96) ** 2


def mcnemar(one: Entry, other: Entry) -> float | None:
    """Returns the p of no difference on the same images, two-sided and exact.

    None where it was not kept which images survive, or of other ones.
    """
    from scipy.stats import binomtest

    if one.survived is None or other.survived is None or one.images != other.images:
        return None
    gained = int((one.survived & ~other.survived).sum())
    lost = int((other.survived & ~one.survived).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _sentence(more: Entries, less: Entries, found: Gain) -> str:
    difference, low, high = (_points(share) for share in found)
    counts = len(more), len(less)
    seeds = "one seed each" if counts == (1, 1) else f"{counts[0]} and {counts[1]} seeds"
    tested = [mcnemar(more[seed], less[seed]) for seed in _common_seeds(more, less)]
    ps = [_p(p) for p in tested if p is not None]
    tests = f"; McNemar p {', '.join(ps)}" if ps else ""
    same = len(_seeds_of_one(more, less))
    best = f" In {same} of {len(more)} seeds the best checkpoint is the last." if same else ""
    return f"{_sides(more, less)}: {difference} ({low} to {high}) points, {seeds}{tests}.{best}"


def _sides(more: Entries, less: Entries) -> str:
    return f"{100 * _mean(more):.1f} % against {100 * _mean(less):.1f} %"


def _points(difference: float) -> str:
    digits = 2 if abs(difference) < 0.001 else 1  # on which side of zero an end is can be seen
    return f"{100 * difference:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {p:.3f}".replace("0.", ".")
