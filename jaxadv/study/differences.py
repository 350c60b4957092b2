"""Differences of two mean accuracies, with confidence intervals over images and seeds."""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxadv.core import paired_test
from jaxadv.study.measurements import BySeed, Measurement, Measurements
from jaxadv.study.specification import CORRECTED

LEVEL = 0.95  # of the intervals that decide
_ENOUGH_SEEDS = 3  # to estimate a standard deviation from them alone


class Difference(NamedTuple):
    """An estimated difference; the estimate over its error has Student's t distribution.

    Attributes:
      value: first accuracy minus second, as shares.
      error: standard error.
      freedom: degrees of freedom; infinite for the normal distribution.
    """

    value: float
    error: float
    freedom: float = math.inf

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the confidence interval at a level."""
        from scipy.stats import t  # takes a second to import

        half = float(t.ppf((1 + level) / 2, self.freedom)) * self.error
        return self.value - half, self.value + half

    def p_value(self, threshold: float = 0.0) -> float:
        """Return the two-sided p value of the hypothesis that the difference is `threshold`."""
        from scipy.stats import t

        distance = abs(self.value - threshold)
        if self.error == 0:
            return float(distance == 0)
        return 2 * float(t.sf(distance / self.error, self.freedom))

    @property
    def is_significant(self) -> bool:
        """Return whether the 95 % interval excludes zero."""
        low, high = self.interval()
        return low > 0 or high < 0


class SeedSpread(NamedTuple):
    """How much trainings of one config differ between seeds.

    Attributes:
      deviation: standard deviation of their accuracies, pooled over all configs with several seeds.
      freedom: degrees of freedom, the number of seeds minus the number of configs.
    """

    deviation: float
    freedom: int


def seed_spreads(experiments: Iterable[Measurements]) -> dict[str, SeedSpread]:
    """Return the spread between seeds for each column in which a training has several seeds.

    Seeds that did not train are left out: their distance says nothing about the others.

    Args:
      experiments: measurements of each experiment; each training counts once per column.
    """
    repeated: dict[str, dict[str, BySeed]] = {}
    for measurements in experiments:
        for cell, by_seed in measurements.items():
            learned = {seed: one for seed, one in by_seed.items() if one.learned}
            if cell.source == CORRECTED and len(learned) > 1:
                repeated.setdefault(cell.column, {}).setdefault(training(learned), learned)
    return {column: _pool(list(trainings.values())) for column, trainings in repeated.items()}


def _pool(trainings: list[BySeed]) -> SeedSpread:
    freedom = sum(len(by_seed) - 1 for by_seed in trainings)
    squares = 0.0
    for by_seed in trainings:
        values = [one.accuracy for one in by_seed.values()]
        squares += statistics.variance(values) * (len(values) - 1)
    return SeedSpread(math.sqrt(squares / freedom), freedom)


def subtract(first: BySeed, second: BySeed, spread: SeedSpread | None) -> Difference:
    """Return the difference of two means over seeds.

    Its variance is the sum of two: that of the images, paired if all measurements are of the same
    images, and that of the seeds. With three or more seeds on both sides, the latter is that of
    each side (Welch, 1947), otherwise the pooled spread. Student's t has the degrees of freedom of
    Satterthwaite (1946), where the variance of the images, of which there are many, counts as
    known.

    Args:
      first: measurements by seed.
      second: measurements by seed; the seeds may be others.
      spread: between seeds; None if both are of the same trainings.

    >>> robust = np.array([True] * 90 + [False] * 10)
    >>> one = Measurement(0.9, (0.8, 0.95), 100, robust, "net_adamw", ("aee1", "pgd40"))
    >>> subtract({0: one}, {0: one}, None)
    Difference(value=0.0, error=0.0, freedom=inf)
    """
    of_seeds = _seed_variances(first, second, spread) if spread else []
    variance = _image_variance(first, second) + sum(part for part, _ in of_seeds)
    denominator = sum(part**2 / freedom for part, freedom in of_seeds)
    freedom = variance**2 / denominator if denominator else math.inf
    return Difference(mean(first) - mean(second), math.sqrt(variance), freedom)


def _seed_variances(first: BySeed, second: BySeed, spread: SeedSpread) -> list[tuple[float, int]]:
    """Return the variances of the difference due to seeds, with their degrees of freedom."""
    if min(len(first), len(second)) < _ENOUGH_SEEDS:
        return [(spread.deviation**2 * (1 / len(first) + 1 / len(second)), spread.freedom)]
    return [
        (statistics.variance(one.accuracy for one in side.values()) / len(side), len(side) - 1)
        for side in (first, second)
    ]


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


def mean(by_seed: BySeed) -> float:
    """Return the mean accuracy over seeds."""
    return statistics.mean(one.accuracy for one in by_seed.values())


def training(by_seed: BySeed) -> str:
    """Return the name of the training whose seeds these are."""
    return next(iter(by_seed.values())).training


def common_seeds(first: BySeed, second: BySeed) -> list[int]:
    """Return the seeds that both sides have."""
    return sorted(first.keys() & second.keys())


def mcnemar(first: Measurement, second: Measurement) -> float | None:
    """Return the p value of McNemar's exact test, two-sided.

    Returns:
      None if the results per image are missing, of other images, or sums over several radii.
    """
    if first.robust is None or second.robust is None or first.images != second.images:
        return None
    if first.robust.dtype != bool:
        return None
    return paired_test.mcnemar(first.robust, second.robust)
