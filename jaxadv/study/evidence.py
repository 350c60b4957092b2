"""Verdicts and their evidence in words."""

from collections.abc import Mapping
from typing import Any

from jaxadv.study.differences import Difference, common_seeds, mcnemar, mean
from jaxadv.study.measurements import BySeed
from jaxadv.study.specification import SCORE, Claim
from jaxadv.study.verdicts import (
    DID_NOT_TRAIN,
    INCONCLUSIVE,
    NOT_RUN,
    SUPPORTED,
    Evidence,
    Verdict,
)


def verdict_in_words(verdict: Verdict) -> str:
    """Return a verdict, for each attack if they decide differently or one was not run.

    >>> verdict_in_words(Verdict((Evidence("clean", "supported", {}, {}, borderline=True),)))
    'supported (borderline)'
    """
    ran = verdict.ran
    if not ran:
        return NOT_RUN
    if any(one.word == DID_NOT_TRAIN for one in ran):
        return DID_NOT_TRAIN
    missing = "".join(f"; {one.attack} not run" for one in verdict.evidence if one.word == NOT_RUN)
    if len({one.word for one in ran}) > 1:
        return ", ".join(f"{_with_borderline(one)} under {one.attack}" for one in reversed(ran))
    if missing:
        return f"{_with_borderline(ran[0])} under {ran[0].attack}{missing}"
    borderline = [one.attack for one in ran if one.borderline]
    if 0 < len(borderline) < len(ran):
        return f"{ran[0].word} (borderline under {borderline[0]})"
    return _with_borderline(ran[0])


def _with_borderline(evidence: Evidence) -> str:
    return f"{evidence.word} (borderline)" if evidence.borderline else evidence.word


def qualifiers(verdict: Verdict, corrected: Mapping[str, float]) -> list[str]:
    """Return what weakens the verdict of the decisive attack, for a reader of its figures alone.

    Args:
      verdict: the verdict.
      corrected: p value of each attack after Holm's correction.
    """
    decisive = verdict.decisive
    found = ["borderline"] if decisive.borderline else []
    if decisive.word != INCONCLUSIVE and corrected.get(decisive.attack, 0.0) >= 0.05:
        found.append("not significant after Holm's correction")
    found += [f"{one.word} under {one.attack}" for one in verdict.ran if one.word != decisive.word]
    found += [f"{one.attack} not run" for one in verdict.evidence if one.word == NOT_RUN]
    if decisive.second and len(decisive.first) != len(decisive.second):
        found.append(_counts(decisive))
    return found


def sentence(claim: Claim, evidence: Evidence) -> str:
    """Return the evidence of an attack that was run: accuracies, their difference and its bound."""
    collapsed = _collapsed(claim, evidence)
    if not evidence.first or (claim.second and not evidence.second):
        return collapsed
    if claim.second is None:
        return collapsed + _limit(claim, evidence)
    shown = _number if claim.first.column == SCORE else percent
    names = claim.sides or (claim.first.label, claim.second.label)
    sides = f"{names[0]} {shown(mean(evidence.first))}, {names[1]} {shown(mean(evidence.second))}"
    if evidence.difference is None:
        same = "both are the same model: the best checkpoint is the last"
        return (
            f"{collapsed}{sides}; {same if evidence.identical else 'no config has several seeds'}"
        )
    parts = [f"{sides}: {change(evidence.difference)}"]
    if bound := _bound(claim, evidence):
        parts.append(bound)
    parts.append(_seeds(evidence))
    if evidence.images_only:
        parts.append("the interval covers the images only")
    if evidence.identical:
        parts.append(f"in {len(evidence.identical)} the best checkpoint is the last")
    return collapsed + "; ".join(parts)


def _limit(claim: Claim, evidence: Evidence) -> str:
    accuracies = [
        f"{percent(one.accuracy)} ({_number(one.ci95[0])} to {_number(one.ci95[1])})"
        for _, one in sorted(evidence.first.items())
    ]
    return f"{'; '.join(accuracies)}; limit {100 * claim.threshold:g} %"


def _collapsed(claim: Claim, evidence: Evidence) -> str:
    """Return which seeds did not train, or "" if all did."""
    cells = [claim.first, claim.second]
    texts = [
        f"{_share_of_seeds(len(seeds), num_seeds)} of “{cell.label}” did not train"
        for cell, (seeds, num_seeds) in zip(cells, evidence.collapsed, strict=False)
        if cell and seeds
    ]
    if not texts:
        return ""
    others = evidence.first and (evidence.second or claim.second is None)
    return " and ".join(texts) + ("; the others: " if others else "")


def _share_of_seeds(num: int, total: int) -> str:
    return "the only seed" if total == 1 else f"{num} of {total} seeds"


def _bound(claim: Claim, evidence: Evidence) -> str:
    """Return the bound that the interval gives for an effect that is not shown."""
    if evidence.difference is None or claim.kind == "equal" or claim.threshold:
        return ""
    low, high = evidence.difference.interval()
    if claim.kind == "lower" and evidence.word == INCONCLUSIVE:
        return f"a loss of up to {_number(-low)} points is possible" if low < 0 else ""
    bounds_gain = evidence.word == INCONCLUSIVE or (
        claim.kind == "no_gain" and evidence.word == SUPPORTED and high > 0
    )
    return f"a gain of up to {_number(high)} points is possible" if bounds_gain else ""


def _seeds(evidence: Evidence) -> str:
    """Return the numbers of seeds and of images."""
    sides = evidence.first, evidence.second
    images = dict.fromkeys(one.n for side in sides for one in side.values())
    return f"{_counts(evidence)}, {' and '.join(f'{n:,}' for n in images)} images"


def _counts(evidence: Evidence) -> str:
    first, second = len(evidence.first), len(evidence.second)
    if first == second:
        return "one seed each" if first == 1 else f"{first} seeds each"
    return " against ".join("one seed" if n == 1 else f"{n} seeds" for n in (first, second))


def details(evidence: Evidence) -> dict[str, str]:
    """Return the accuracy of each seed, and McNemar's p value of each seed that both sides have."""
    tests = {
        seed: p
        for seed in common_seeds(evidence.first, evidence.second)
        if (p := mcnemar(evidence.first[seed], evidence.second[seed])) is not None
    }
    return {
        "first": _by_seed(evidence.first),
        "second": _by_seed(evidence.second),
        "mcnemar": ", ".join(p_value(p) for p in tests.values()),
    }


def _by_seed(side: BySeed) -> str:
    return ", ".join(_number(one.accuracy) for _, one in sorted(side.items()))


def numbers(evidence: Evidence) -> dict[str, Any]:
    """Return the evidence as values of JSON; accuracies are shares."""
    found = {
        "attack": evidence.attack,
        "verdict": evidence.word,
        "borderline": evidence.borderline,
        "first": {seed: one.accuracy for seed, one in evidence.first.items()},
        "second": {seed: one.accuracy for seed, one in evidence.second.items()},
        "p": evidence.p,
    }
    if evidence.difference:
        low, high = evidence.difference.interval()
        found |= {"difference": evidence.difference.value, "low": low, "high": high}
    return found


def values(evidence: Evidence) -> dict[str, str]:
    """Return the values that a sentence may show of a comparison.

    `first` and `second` are accuracies, `change` is their difference with its interval, and `size`
    the same without its sign.
    """
    if evidence.difference is None:
        raise ValueError("the evidence compares nothing")
    value, (low, high) = evidence.difference.value, evidence.difference.interval()
    size = (low, high) if value > 0 else (-high, -low)
    return {
        "attack": evidence.attack,
        "first": percent(mean(evidence.first)),
        "second": percent(mean(evidence.second)),
        "change": change(evidence.difference),
        "size": f"{_number(abs(value))} points ({_number(size[0])} to {_number(size[1])})",
    }


def percent(share: float) -> str:
    """Return a share in percent, such as "32.2 %", with a space that does not break the line."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def change(difference: Difference) -> str:
    """Return a difference with its interval, such as "+7.0 points (+6.4 to +7.7)"."""
    low, high = (_signed(end) for end in difference.interval())
    return f"{_signed(difference.value)} points ({low} to {high})"


def _signed(share: float) -> str:
    return _with_digits(share, "+")


def _number(share: float) -> str:
    return _with_digits(share, "")


def _with_digits(share: float, sign: str) -> str:
    digits = 2 if 0 < abs(share) < 0.001 else 1  # does not round values near zero to zero
    return f"{100 * share:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """Return a p value, such as "0.012" or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
