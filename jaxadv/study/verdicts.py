"""Verdicts on claims: what the confidence interval of each attack says about them."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from jaxadv.study.differences import (
    LEVEL,
    Difference,
    SeedSpread,
    common_seeds,
    subtract,
    training,
)
from jaxadv.study.measurements import BySeed, Measurements
from jaxadv.study.slides import EPS
from jaxadv.study.specification import (
    AUTOATTACK,
    CORRECTED,
    ORIGINAL,
    PGD_EPS,
    SCORE,
    SLIDES,
    Cell,
    Claim,
)

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
DID_NOT_TRAIN, NOT_RUN = "did not train", "not run"
NO_GAIN = 0.01  # a gain below one point supports a claim of no gain
_OTHER_LEVELS = (0.90, 0.99)  # a verdict that differs at one of them is borderline
_AUTOATTACK_COLUMN = next(iter(AUTOATTACK))


@dataclass(frozen=True)
class Evidence:
    """What one attack says about a claim.

    Attributes:
      attack: name of the attack, or of the column that it compares.
      word: one of the words above.
      first: measurements of the first side by seed, of the seeds that trained.
      second: of the second side; empty for a limit.
      borderline: whether the 90 % or the 99 % interval gives another word.
      difference: of the means; None if it cannot be computed, and for a limit.
      p: two-sided p value of the bound that decides the claim; None without a test.
      collapsed: for each side the seeds that did not train, and the number of all its seeds.
      identical: seeds in which both sides are the same evaluation of the same weights.
      images_only: whether both sides have the same weights or trainings, so that the interval
        covers the images alone.
    """

    attack: str
    word: str
    first: BySeed
    second: BySeed
    borderline: bool = False
    difference: Difference | None = None
    p: float | None = None
    collapsed: tuple[tuple[list[int], int], ...] = ()
    identical: tuple[int, ...] = ()
    images_only: bool = False


class Verdict(NamedTuple):
    """The verdict on a claim: the evidence of each attack, first that of AutoAttack if it has one.

    A claim without AutoAttack's evidence compares other columns than PGD-40 at eps 0.03.
    """

    evidence: tuple[Evidence, ...]

    @property
    def ran(self) -> tuple[Evidence, ...]:
        """Return the evidence of the attacks that were run."""
        return tuple(one for one in self.evidence if one.word != NOT_RUN)

    @property
    def decisive(self) -> Evidence:
        """Return AutoAttack's evidence if AutoAttack was run, otherwise that of PGD-40."""
        return next(iter(self.ran), self.evidence[0])


def assess(claim: Claim, measurements: Measurements, spreads: Mapping[str, SeedSpread]) -> Verdict:
    """Return the verdict on a claim.

    A claim that one model is more robust than another at eps 0.03 is decided by AutoAttack and by
    PGD-40, other claims by the columns that they name.

    Args:
      claim: the claim.
      measurements: by seed, of the cells that it names.
      spreads: between seeds, for each column.
    """
    cells_by_attack = _cells_by_attack(claim, measurements)
    sides_by_attack = {
        attack: [measurements.get(cell, {}) for cell in cells]
        for attack, cells in cells_by_attack.items()
    }
    # Whether a seed trained does not depend on the attack.
    collapsed = [
        {seed for side in sides for seed, one in side.items() if not one.learned}
        for sides in zip(*sides_by_attack.values(), strict=True)
    ]
    return Verdict(
        tuple(
            _evidence(
                attack,
                claim,
                sides,
                collapsed,
                _spread_of(cells_by_attack[attack][0].column, spreads),
            )
            for attack, sides in sides_by_attack.items()
        )
    )


def _cells_by_attack(claim: Claim, measurements: Measurements) -> dict[str, list[Cell]]:
    """Return for each attack that decides a claim the cells that it compares."""
    cells = [claim.first] if claim.second is None else [claim.first, claim.second]
    if any(cell[1:] != (PGD_EPS, CORRECTED) for cell in cells):
        return {_heading(cells): cells}
    with_pgd = {"PGD-40": cells}
    sides = [measurements.get(cell) for cell in cells]
    trainings = {training(side) if side else "" for side in sides}
    if claim.second is None or (len(trainings) == 1 and all(sides)):
        return with_pgd  # AutoAttack attacks only the best checkpoint of a training
    return {"AutoAttack": [cell._replace(column=_AUTOATTACK_COLUMN) for cell in cells], **with_pgd}


def _heading(cells: Sequence[Cell]) -> str:
    """Return what a claim compares other than the corrected protocol's PGD-40 at eps 0.03."""
    column = cells[0].column
    if any(cell.source == ORIGINAL for cell in cells):
        return ORIGINAL
    if column in EPS:
        return f"PGD-40, eps {column}"
    if column == SCORE:
        return "aggregated score"
    return f"{int(column):,} queries" if column.isdigit() else column


def _spread_of(column: str, spreads: Mapping[str, SeedSpread]) -> SeedSpread | None:
    """Return the spread of a column; if no config has several seeds there, that of `PGD_EPS`."""
    return spreads.get(column) or spreads.get(PGD_EPS)


def _evidence(
    attack: str,
    claim: Claim,
    sides: Sequence[BySeed],
    collapsed: Sequence[Set[int]],
    spread: SeedSpread | None,
) -> Evidence:
    """Return what the measurements of the sides of a claim say about it.

    Seeds that did not train are left out of the comparison, and decide its word.

    Args:
      attack: name of the attack.
      claim: the claim.
      sides: one or two.
      collapsed: for each side the seeds that did not train.
      spread: between seeds.
    """
    if not all(sides):
        return Evidence(attack, NOT_RUN, sides[0], sides[1] if len(sides) > 1 else {})
    trained = [
        {seed: one for seed, one in side.items() if seed not in seeds}
        for side, seeds in zip(sides, collapsed, strict=True)
    ]
    first, second = (*trained, {})[:2]
    if not all(trained):
        found = Evidence(attack, DID_NOT_TRAIN, first, second)
    elif claim.second is None:
        found = compare_with_limit(attack, first, claim.threshold)
    else:
        found = compare(attack, first, second, claim, spread)
    if not any(collapsed):
        return found
    return replace(
        found,
        word=DID_NOT_TRAIN,
        borderline=False,
        collapsed=tuple(
            (sorted(seeds), len(side.keys() | seeds))
            for side, seeds in zip(sides, collapsed, strict=True)
        ),
    )


def compare_with_limit(attack: str, by_seed: BySeed, limit: float) -> Evidence:
    """Return whether an accuracy is at most a limit, by its Wilson interval in every seed."""
    words = {level: _word_at_limit(by_seed, limit, level) for level in (LEVEL, *_OTHER_LEVELS)}
    return Evidence(
        attack,
        words[LEVEL],
        by_seed,
        {},
        borderline=len(set(words.values())) > 1,
        p=max(_score_test(one.accuracy, one.n, limit) for one in by_seed.values()),
    )


def _word_at_limit(by_seed: BySeed, limit: float, level: float) -> str:
    from scipy.stats import binomtest

    intervals = [
        binomtest(round(one.accuracy * one.n), one.n).proportion_ci(level, method="wilson")
        for one in by_seed.values()
    ]
    if all(interval.high <= limit for interval in intervals):
        return SUPPORTED
    return CONTRADICTED if all(interval.low > limit for interval in intervals) else INCONCLUSIVE


def _score_test(share: float, n: int, limit: float) -> float:
    """Return the p value of the test whose inversion is the Wilson interval (Wilson, 1927)."""
    return Difference(share, (limit * (1 - limit) / n) ** 0.5).p_value(limit)


def compare(
    attack: str, first: BySeed, second: BySeed, claim: Claim, spread: SeedSpread | None
) -> Evidence:
    """Return what two accuracies say about a claim.

    Args:
      attack: name of the attack.
      first: measurements by seed of the first side of the claim.
      second: of the second side.
      claim: the claim.
      spread: between seeds; None if no config has several. It is not used for two evaluations of
        the same training or of the same weights: these are compared on the seeds that both have.
    """
    seeds = common_seeds(first, second)
    identical: tuple[int, ...] = ()
    same_training = training(first) == training(second)
    if same_training or _have_same_weights(first, second, seeds):
        if not seeds:
            return Evidence(attack, NOT_RUN, first, second)
        first, second = ({seed: side[seed] for seed in seeds} for side in (first, second))
        if same_training:
            identical = tuple(s for s in seeds if first[s].source == second[s].source)
        if list(identical) == seeds:
            return Evidence(attack, INCONCLUSIVE, first, second, identical=identical)
        spread = None
    elif spread is None:
        return Evidence(attack, INCONCLUSIVE, first, second)
    difference = subtract(first, second, spread)
    word = word_of(claim, difference.interval())
    return Evidence(
        attack,
        word,
        first,
        second,
        borderline=any(word_of(claim, difference.interval(at)) != word for at in _OTHER_LEVELS),
        difference=difference,
        p=_p_value(claim, difference, word),
        identical=identical,
        images_only=spread is None,
    )


def _p_value(claim: Claim, difference: Difference, word: str) -> float | None:
    """Return the p value of the bound that decides a claim; None if no small value supports it."""
    if claim.kind == "equal":
        return None
    if claim.kind == "no_gain":
        return difference.p_value(0.0 if word == CONTRADICTED else NO_GAIN)
    return difference.p_value(claim.threshold)


def _have_same_weights(first: BySeed, second: BySeed, seeds: list[int]) -> bool:
    return bool(seeds) and all(first[seed].source[0] == second[seed].source[0] for seed in seeds)


def word_of(claim: Claim, interval: tuple[float, float]) -> str:
    """Return what the confidence interval of a difference says about a claim."""
    low, high = interval
    if claim.kind == "equal":
        return CONTRADICTED if low > 0 or high < 0 else SUPPORTED
    if claim.kind == "no_gain":
        if low > 0:
            return CONTRADICTED
        return SUPPORTED if high < NO_GAIN else INCONCLUSIVE
    if claim.kind == "lower":
        low, high = -high, -low
    if low > claim.threshold:
        return SUPPORTED
    return CONTRADICTED if high < claim.threshold else INCONCLUSIVE


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def holm_of_claims(verdicts: Sequence[Verdict]) -> list[dict[str, float]]:
    """Return for each verdict the p value of each attack, corrected for all tests together."""
    tests = [
        (index, one.attack, one.p)
        for index, verdict in enumerate(verdicts)
        for one in verdict.evidence
        if one.p is not None
    ]
    corrected: list[dict[str, float]] = [{} for _ in verdicts]
    for (index, attack, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        corrected[index][attack] = p
    return corrected


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
        if cell.source == SLIDES and slide and ours and spread:
            differences[cell.label, cell.column] = subtract(ours, slide, spread)
    return differences
