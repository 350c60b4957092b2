"""Verdicts on claims: supported, contradicted, inconclusive or not run, with their statistics."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxadv.study.measurements import BySeed, Measurement, Measurements
from jaxadv.study.specification import CORRECTED, ORIGINAL, SLIDES, Claim

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_RUN = "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN)
COMMON = "0.03"  # the column whose seed variation replaces that of columns with one seed
_NO_GAIN = 0.01
_ENOUGH_SEEDS = 3  # to estimate a standard deviation from them alone


class Verdict(NamedTuple):
    """The verdict on a claim: a word of `VERDICTS`, and the evidence as a sentence."""

    word: str
    sentence: str


class SeedSpread(NamedTuple):
    """How much trainings of one config differ between seeds.

    Attributes:
      deviation: standard deviation of their accuracies, pooled over all configs with several seeds.
      freedom: degrees of freedom, the number of seeds minus the number of configs.
    """

    deviation: float
    freedom: int


class Difference(NamedTuple):
    """Difference of two accuracies with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def is_significant(self) -> bool:
        """Return whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def seed_spreads(experiments: Iterable[Measurements]) -> dict[str, SeedSpread]:
    """Return the spread between seeds for each column in which a training has several seeds.

    Seeds that did not learn are left out: their distance says nothing about the others.

    Args:
      experiments: measurements of each experiment; each training counts once per column.
    """
    repeated: dict[str, dict[str, BySeed]] = {}
    for measurements in experiments:
        for cell, by_seed in measurements.items():
            learned = {seed: one for seed, one in by_seed.items() if one.learned}
            if cell.source == CORRECTED and len(learned) > 1:
                repeated.setdefault(cell.column, {}).setdefault(_training(learned), learned)
    return {column: _pool(list(trainings.values())) for column, trainings in repeated.items()}


def _pool(trainings: list[BySeed]) -> SeedSpread:
    freedom = sum(len(by_seed) - 1 for by_seed in trainings)
    squares = 0.0
    for by_seed in trainings:
        values = [one.accuracy for one in by_seed.values()]
        squares += statistics.variance(values) * (len(values) - 1)
    return SeedSpread(math.sqrt(squares / freedom), freedom)


def assess(claim: Claim, measurements: Measurements, spreads: Mapping[str, SeedSpread]) -> Verdict:
    """Return the verdict on a claim.

    Args:
      claim: the claim.
      measurements: by seed, of the cells that it names.
      spreads: between seeds, for each column.
    """
    cells = [claim.first] if claim.second is None else [claim.first, claim.second]
    sides = [measurements[cell] for cell in cells]
    if not all(sides):
        return Verdict(NOT_RUN, "")
    if claim.kind == "at_most":
        verdict = compare_with_limit(sides[0], claim.limit)
    else:
        spread = _spread_of(claim.first.column, spreads)
        verdict = compare(sides[0], sides[1], claim.kind, spread)
    if all(one.learned for side in sides for one in side.values()):
        return verdict
    return Verdict(INCONCLUSIVE, f"{verdict.sentence} But a model did not learn (‡).")


def _spread_of(column: str, spreads: Mapping[str, SeedSpread]) -> SeedSpread | None:
    return spreads.get(column) or spreads.get(COMMON)


def differences_from_slides(
    measurements: Measurements, spreads: Mapping[str, SeedSpread]
) -> dict[tuple[str, str], Difference]:
    """Return how much our accuracies under the original protocol are above those of the slides.

    Args:
      measurements: of an experiment.
      spreads: between seeds, for each column.

    Returns:
      The difference for each label and column with both values; empty if no config has several
      seeds.
    """
    differences = {}
    for cell, slide in measurements.items():
        ours = measurements.get(cell._replace(source=ORIGINAL))
        spread = _spread_of(cell.column, spreads)
        if cell.source == SLIDES and ours and spread:
            differences[cell.label, cell.column] = subtract(ours, slide, spread)
    return differences


def compare_with_limit(by_seed: BySeed, limit: float) -> Verdict:
    """Return whether an accuracy is at most a limit, by its Wilson interval in every seed."""
    if all(one.ci95[1] <= limit for one in by_seed.values()):
        word = SUPPORTED
    elif all(one.ci95[0] > limit for one in by_seed.values()):
        word = CONTRADICTED
    else:
        word = INCONCLUSIVE
    accuracies = [
        f"{100 * one.accuracy:.1f} % ({100 * one.ci95[0]:.1f} to {100 * one.ci95[1]:.1f})"
        for _, one in sorted(by_seed.items())
    ]
    return Verdict(word, f"{'; '.join(accuracies)}; limit {100 * limit:g} %.")


def compare(first: BySeed, second: BySeed, kind: str, spread: SeedSpread | None) -> Verdict:
    """Return the verdict on a claim about two accuracies.

    Args:
      first: measurements by seed of the side that is claimed to be higher, or not to gain.
      second: measurements of the other side.
      kind: "higher", "no_gain" (less than one point higher) or "equal" (no significant difference).
      spread: between seeds; None if no config has several. It is not used for two evaluations of
        the same training or of the same weights: these are compared on the seeds that both have.
    """
    seeds = _common_seeds(first, second)
    if _training(first) == _training(second) or _have_same_weights(first, second, seeds):
        if not seeds:
            return Verdict(NOT_RUN, "")
        first, second = ({seed: side[seed] for seed in seeds} for side in (first, second))
        if seeds == _identical_seeds(first, second):
            return Verdict(
                INCONCLUSIVE, "Both are the same model: the best checkpoint is the last."
            )
        spread = None
    elif spread is None:
        return Verdict(INCONCLUSIVE, f"{_in_words(first, second)}; no config has several seeds.")
    difference = subtract(first, second, spread)
    return Verdict(_verdict_word(difference, kind), _evidence(first, second, difference))


def _common_seeds(first: BySeed, second: BySeed) -> list[int]:
    return sorted(first.keys() & second.keys())


def _have_same_weights(first: BySeed, second: BySeed, seeds: list[int]) -> bool:
    return bool(seeds) and all(first[seed].source[0] == second[seed].source[0] for seed in seeds)


def _identical_seeds(first: BySeed, second: BySeed) -> list[int]:
    """Return the seeds in which both sides are the same evaluation of the same weights."""
    if _training(first) != _training(second):
        return []
    return [s for s in _common_seeds(first, second) if first[s].source == second[s].source]


def _training(by_seed: BySeed) -> str:
    return next(iter(by_seed.values())).training


def _verdict_word(difference: Difference, kind: str) -> str:
    if kind == "equal":
        return CONTRADICTED if difference.is_significant else SUPPORTED
    if kind == "no_gain":
        if difference.high < _NO_GAIN:
            return SUPPORTED
        return CONTRADICTED if difference.low > _NO_GAIN else INCONCLUSIVE
    if not difference.is_significant:
        return INCONCLUSIVE
    return SUPPORTED if difference.low > 0 else CONTRADICTED


def subtract(first: BySeed, second: BySeed, spread: SeedSpread | None) -> Difference:
    """Return the difference of two means over seeds with its 95 % confidence interval.

    Its variance is the sum of two: that of the images, paired if all measurements are of the same
    images, and that of the seeds. With three or more seeds on both sides, the latter is that of
    each side (Welch, 1947), otherwise the pooled spread. Student's t has the degrees of freedom of
    Satterthwaite (1946).

    Args:
      first: measurements by seed.
      second: measurements by seed; the seeds may be others.
      spread: between seeds; None if both are of the same trainings.

    >>> robust = np.array([True] * 90 + [False] * 10)
    >>> one = Measurement(0.9, (0.8, 0.95), robust, "net_adamw", ("aee1", "pgd40"))
    >>> subtract({0: one}, {0: one}, None)
    Difference(value=0.0, low=0.0, high=0.0)
    """
    from scipy.stats import norm, t  # takes a second to import

    value = _mean(first) - _mean(second)
    of_seeds = _seed_variances(first, second, spread) if spread else []
    variance = _image_variance(first, second) + sum(part for part, _ in of_seeds)
    denominator = sum(part**2 / freedom for part, freedom in of_seeds)
    # With so many images their variance counts as known.
    quantile = float(t.ppf(0.975, variance**2 / denominator) if denominator else norm.ppf(0.975))
    half = quantile * math.sqrt(variance)
    return Difference(value, value - half, value + half)


def _seed_variances(first: BySeed, second: BySeed, spread: SeedSpread) -> list[tuple[float, int]]:
    """Return the variances of the difference due to seeds, with their degrees of freedom."""
    if min(len(first), len(second)) < _ENOUGH_SEEDS:
        return [(spread.deviation**2 * (1 / len(first) + 1 / len(second)), spread.freedom)]
    return [
        (statistics.variance(one.accuracy for one in side.values()) / len(side), len(side) - 1)
        for side in (first, second)
    ]


def _mean(by_seed: BySeed) -> float:
    return statistics.mean(one.accuracy for one in by_seed.values())


def _image_variance(first: BySeed, second: BySeed) -> float:
    """Return the variance of the difference of two means over seeds due to the images."""
    images = {one.images for side in (first, second) for one in side.values()}
    if len(images) == 1 and images != {None}:
        shares = [
            np.array([one.robust for one in side.values()]).mean(0) for side in (first, second)
        ]
        return float((shares[0] - shares[1]).var() / len(shares[0]))
    # A Wilson interval is about as wide as the normal approximation. Seeds share their images.
    halves = [
        statistics.mean((one.ci95[1] - one.ci95[0]) / 2 for one in side.values())
        for side in (first, second)
    ]
    return (math.hypot(*halves) / 1.96) ** 2


def mcnemar(first: Measurement, second: Measurement) -> float | None:
    """Return the p value of McNemar's exact test, two-sided.

    Returns:
      None if the results per image are missing or of other images.
    """
    from scipy.stats import binomtest

    if first.robust is None or second.robust is None or first.images != second.images:
        return None
    gained = int((first.robust & ~second.robust).sum())
    lost = int((second.robust & ~first.robust).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _evidence(first: BySeed, second: BySeed, difference: Difference) -> str:
    value, low, high = (_points(share) for share in difference)
    counts = len(first), len(second)
    seeds = "one seed each" if counts == (1, 1) else f"{counts[0]} and {counts[1]} seeds"
    tested = [mcnemar(first[seed], second[seed]) for seed in _common_seeds(first, second)]
    p_values = [_p_value(p) for p in tested if p is not None]
    tests = f"; McNemar p {', '.join(p_values)}" if p_values else ""
    identical = len(_identical_seeds(first, second))
    note = f" In {identical} of {len(first)} seeds the best checkpoint is the last."
    return (
        f"{_in_words(first, second)}: {value} ({low} to {high}) points, {seeds}{tests}."
        f"{note if identical else ''}"
    )


def _in_words(first: BySeed, second: BySeed) -> str:
    return f"{100 * _mean(first):.1f} % vs. {100 * _mean(second):.1f} %"


def _points(difference: float) -> str:
    digits = 2 if abs(difference) < 0.001 else 1  # shows the sign of values near zero
    return f"{100 * difference:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
