"""Independent recomputation of the verdicts on the study's page from the raw records.

    python benchmarks/recompute_verdicts.py results/study

From verdicts.json the script takes the claims alone: their cells, kinds and thresholds. It computes
accuracies, intervals, p values and verdicts again from the per-image results in runs/, and prints
each value of verdicts.json that differs. It exits with 1 if there is one.

The script follows the description of the method and shares no code with jaxadv/study/. It was
written by someone who had not read that code.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

RADII = ("0.01", "0.02", "0.03", "0.04", "0.05", "0.1")
# For each column the keys of its values in the records, "<kind>:<key>" outside the training's own
# evaluation; the first that exists counts.
COLUMNS = {
    "corrected protocol": {
        "clean": ("clean", "noise:clean"),
        **{eps: (f"pgd40/{eps}", f"averaged:eot10/{eps}") for eps in RADII},
        "AutoAttack 0.03": ("autoattack:autoattack/0.03",),
        "one noise sample": ("pgd10/0.03", "noise:pgd10/0.03"),
        "200 gradients": ("eot20/0.03", "noise:pgd200/0.03"),
        "noise off": ("noise_off/0.03",),
        **{n: (f"nes:nes{n}/0.1",) for n in ("500", "1000", "2000", "3000", "4000")},
        "PGD-40": ("nes:pgd40/0.1",),
    },
    "original protocol": {
        "clean": ("study:clean/training", "study:clean"),
        **{eps: (f"study:training_mode/{eps}", f"study:pgd40/{eps}") for eps in RADII},
        **{f"evaluation mode {eps}": (f"study:pgd40/{eps}",) for eps in RADII},
        "0.01, steps of 0.02": ("study:pgd40_coarse/0.01",),
        "one noise sample": ("study:pgd40/0.03",),
    },
}
EXCEPTIONS = {
    ("nes", "corrected protocol"): {"clean": ("nes:clean",)},
    ("randomness", "original protocol"): {"clean": ("study:clean",)},
    ("augmentation", "original protocol"): {
        eps: (f"study_coarse:training_mode_coarse/{eps}", f"study:pgd40_coarse/{eps}")
        for eps in RADII
    },
}
SLIDES = {  # accuracy in %, and number of images
    ("randomness", "RSE", "one noise sample"): (32.50, 1024),
    ("randomness", "plain", "one noise sample"): (31.15, 1024),
    ("nes", "the study's net", "4000"): (3.0, 200),
}
FIELDS = ("verdict", "borderline", "first", "second", "difference", "low", "high", "p", "p_holm")
LEVELS = (0.95, 0.90, 0.99)  # a verdict is that of the first, and borderline if another differs


class Measurement(NamedTuple):
    """Accuracy of one seed, or sum of accuracies.

    Attributes:
      value: accuracy, or aggregated score.
      n: number of images.
      half_width: of the 95 % interval; for an accuracy that of Wilson.
      images: for each image whether it is correctly classified, or at how many radii; None if
        there are no per-image results.
      trained: whether the clean accuracy is better than that of a constant guess.
      split: of the images.
      key: of the value in the records.
      sha256: checksum of the weights; None for the slides.
    """

    value: float
    n: int
    half_width: float
    images: np.ndarray | None = None
    trained: bool = True
    split: str | None = None
    key: str = ""
    sha256: str | None = None


Side = dict[str, Measurement]  # by seed


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of a share of n images."""
    z = stats.norm.ppf((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def _half_width(share: float, n: int) -> float:
    low, high = wilson(share, n)
    return (high - low) / 2


@cache
def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a record and its packed per-image results; both are empty if there are none."""
    packed = path.with_suffix(".npz")
    arrays = dict(np.load(packed)) if packed.exists() else {}
    return (json.loads(path.read_text()) if path.exists() else {}), arrays


def _own_evaluation(record: dict[str, Any], which: str) -> str:
    return "evaluation_last" if which == "last" and "evaluation_last" in record else "evaluation"


def _measure(path: Path, which: str, key: str) -> Measurement | None:
    """Return a value of the training whose record is at a path; None if it was not measured."""
    kind, _, name = key.rpartition(":")
    record, arrays = _read(path)
    part = _own_evaluation(record, which)
    if kind:
        trained, part = record, "evaluation"
        record, arrays = _read(path.with_suffix("") / f"{kind}.json")
    if part not in record:
        return None
    evaluation = record[part]
    source = evaluation["checkpoint"]
    if kind:
        weights = trained[_own_evaluation(trained, which or source["which"])]["checkpoint"]
        if source["sha256"] != weights["sha256"]:
            return None
    clean, n = evaluation["clean"], evaluation["n"]
    noises = {f"clean/{noise}": found for noise, found in evaluation["clean_noise"].items()}
    found = {"clean": clean, **noises, **evaluation["attacks"]}.get(name)
    if found is None:
        return None
    images, value = None, found["accuracy"]
    if f"{part}/{name}" in arrays:
        images = np.unpackbits(arrays[f"{part}/{name}"], count=n).astype(int)
        value = float(images.mean())
    return Measurement(
        value=value,
        n=n,
        half_width=_half_width(value, n),
        images=images,
        trained=wilson(clean["accuracy"], clean["n"])[0] > evaluation["largest_class"],
        split=evaluation.get("split"),
        key=key,
        sha256=source["sha256"],
    )


def _sum(radii: Sequence[Measurement]) -> Measurement:
    """Return the aggregated score.

    Its half-width is that of the normal approximation, from the sum of each image. Without results
    per image it is the largest possible: as if all radii erred together.
    """
    half_width, images = sum(one.half_width for one in radii), None
    if all(one.images is not None for one in radii):
        images = np.sum([one.images for one in radii], axis=0)
        half_width = 1.96 * float(np.std(images)) / math.sqrt(len(images))
    return radii[0]._replace(
        value=sum(one.value for one in radii), half_width=half_width, images=images
    )


def _side(runs: Path, training: str, column: str, columns: Mapping[str, Sequence[str]]) -> Side:
    """Return the measurements of a training in a column, with ":last" of its last checkpoint."""
    if column == "score":
        radii = [_side(runs, training, eps, columns) for eps in RADII]
        seeds = [seed for seed in radii[0] if all(seed in side for side in radii)]
        return {seed: _sum([side[seed] for side in radii]) for seed in seeds}
    name, _, which = training.partition(":")
    side = {}
    for path in sorted((runs / name).glob("*.json")):
        found = (_measure(path, which, key) for key in columns.get(column, ()))
        side[path.stem] = next((one for one in found if one), None)
    return {seed: one for seed, one in side.items() if one}


def measure(runs: Path, experiment: str, cell: Mapping[str, str]) -> Side:
    """Return the measurements of a cell."""
    column, source = cell["column"], cell["source"]
    if source == "slides":
        percent, n = SLIDES[experiment, cell["label"], column]
        value = round(percent / 100 * n) / n
        return {"0": Measurement(value, n, _half_width(value, n))}
    columns = COLUMNS[source] | EXCEPTIONS.get((experiment, source), {})
    return _side(runs, cell["training"], column, columns)


def _trained(side: Side) -> Side:
    return {seed: one for seed, one in side.items() if one.trained}


@cache
def _pooled_variance(runs: Path, column: str) -> tuple[float, int]:
    """Return the variance between seeds over all trainings, and its degrees of freedom."""
    trainings = sorted(path.name for path in runs.iterdir() if path.is_dir())
    sides = [_trained(_side(runs, one, column, COLUMNS["corrected protocol"])) for one in trainings]
    values = [[one.value for one in side.values()] for side in sides if len(side) >= 2]
    if not values:
        return _pooled_variance(runs, "0.03")
    freedom = sum(len(sample) - 1 for sample in values)
    return sum((len(sample) - 1) * np.var(sample, ddof=1) for sample in values) / freedom, freedom


def _image_variance(sides: Sequence[Side]) -> float:
    measured = [one for side in sides for one in side.values()]
    complete = all(one.images is not None for one in measured)
    if complete and len({(one.split, one.n) for one in measured}) == 1:
        first, second = (np.mean([one.images for one in side.values()], axis=0) for side in sides)
        return float(np.var(first - second)) / measured[0].n
    return (math.hypot(*(np.mean([m.half_width for m in s.values()]) for s in sides)) / 1.96) ** 2


def _seed_variances(sides: Sequence[Side], pooled: tuple[float, int]) -> list[tuple[float, int]]:
    values = [[one.value for one in side.values()] for side in sides]
    if all(len(sample) >= 3 for sample in values):
        return [(np.var(sample, ddof=1) / len(sample), len(sample) - 1) for sample in values]
    variance, freedom = pooled
    return [(variance * sum(1 / len(sample) for sample in values), freedom)]


def _word(kind: str, threshold: float, low: float, high: float) -> str:
    if kind == "equal":
        return "supported" if low <= 0 <= high else "contradicted"
    if kind == "no_gain":
        return "contradicted" if low > 0 else "supported" if high < 0.01 else "inconclusive"
    if kind == "lower":
        low, high = -high, -low
    return (
        "supported" if low > threshold else "contradicted" if high < threshold else "inconclusive"
    )


def _assess_difference(
    sides: Sequence[Side], parts: Sequence[tuple[float, int]], kind: str, threshold: float
) -> tuple[list[str], dict[str, float]]:
    """Return the verdict at each level, and the difference with its interval and p value."""
    first, second = (float(np.mean([one.value for one in side.values()])) for side in sides)
    variance = _image_variance(sides) + sum(part for part, _ in parts)
    squares = sum(part**2 / freedom for part, freedom in parts)
    distribution = stats.t(variance**2 / squares if squares else math.inf)
    difference, error = first - second, math.sqrt(variance)
    halves = [distribution.ppf((1 + level) / 2) * error for level in LEVELS]
    words = [_word(kind, threshold, difference - half, difference + half) for half in halves]
    numbers = {
        "difference": difference,
        "low": difference - halves[0],
        "high": difference + halves[0],
    }
    if kind == "equal":  # a small p value would not support it
        return words, numbers
    bound = 0.01 if kind == "no_gain" and words[0] != "contradicted" else threshold
    excess = (-difference if kind == "lower" else difference) - bound
    return words, numbers | {"p": float(2 * distribution.sf(abs(excess) / error))}


def _assess_at_most(side: Side, threshold: float) -> tuple[list[str], dict[str, float]]:
    """Return the verdict at each level, and the p value."""
    words = []
    for level in LEVELS:
        intervals = [wilson(one.value, one.n, level) for one in side.values()]
        is_above = all(low > threshold for low, _ in intervals)
        is_below = all(high <= threshold for _, high in intervals)
        words.append("supported" if is_below else "contradicted" if is_above else "inconclusive")
    variance = threshold * (1 - threshold)
    scores = [abs(one.value - threshold) / math.sqrt(variance / one.n) for one in side.values()]
    return words, {"p": float(2 * stats.norm.sf(min(scores)))}


def _training(cell: Mapping[str, str]) -> str | None:
    return cell["training"].partition(":")[0] if cell["source"] != "slides" else None


def _compare(
    runs: Path, claim: Mapping[str, Any], cells: Sequence[Mapping[str, str]], sides: list[Side]
) -> tuple[list[str], dict[str, float]]:
    """Return the verdict at each level, and the numbers; restrict `sides` to what is compared."""
    common = [seed for seed in sides[0] if seed in sides[1]]
    pairs = [tuple(side[seed] for side in sides) for seed in common]
    has_same_weights = all(one.sha256 == other.sha256 is not None for one, other in pairs)
    first, second = map(_training, cells)
    is_shared = bool(common) and (has_same_weights or first == second is not None)
    if is_shared:
        sides[:] = [{seed: side[seed] for seed in common} for side in sides]
        if first == second and all(
            (one.sha256, one.key) == (other.sha256, other.key) for one, other in pairs
        ):
            return ["inconclusive"], {}
    pooled = _pooled_variance(runs, cells[0]["column"])
    parts = [] if is_shared else _seed_variances(sides, pooled)
    return _assess_difference(sides, parts, claim["kind"], claim["threshold"])


def assess(
    runs: Path,
    claim: Mapping[str, Any],
    measured: Sequence[Side],
    cells: Sequence[Mapping[str, str]],
    collapsed: Sequence[set[str]],
) -> dict[str, Any]:
    """Return the evidence of an attack on one or two cells, without Holm's correction.

    Args:
      runs: folder of the records.
      claim: of verdicts.json.
      measured: values of the cells.
      cells: of the claim, with the column of the attack.
      collapsed: for each cell the seeds that did not train, by any attack.
    """
    sides = [
        {seed: one for seed, one in side.items() if seed not in seeds}
        for side, seeds in zip(measured, collapsed, strict=True)
    ]
    words, numbers = ["not run"], {}
    if all(measured):
        if all(sides) and len(sides) == 1:
            words, numbers = _assess_at_most(sides[0], claim["threshold"])
        elif all(sides):
            words, numbers = _compare(runs, claim, cells, sides)
        if any(collapsed):
            words = ["did not train"]
    values = [{seed: one.value for seed, one in side.items()} for side in (*sides, {})]
    is_borderline = len(set(words)) > 1
    evidence = {"verdict": words[0], "borderline": is_borderline}
    return evidence | {"first": values[0], "second": values[1]} | numbers


def assess_claim(runs: Path, claim: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the evidence for or against a claim by attack; "" if one attack alone decides."""
    cells = [cell for cell in (claim["first"], claim["second"]) if cell]
    columns = {(cell["column"], cell["source"]) for cell in cells}
    cells_by_attack = {"": cells}
    if len(set(map(_training, cells))) > 1 and columns == {("0.03", "corrected protocol")}:
        stronger = [{**cell, "column": "AutoAttack 0.03"} for cell in cells]
        cells_by_attack = {"AutoAttack": stronger, "PGD-40": cells}
    measured = {
        attack: [measure(runs, claim["experiment"], cell) for cell in those]
        for attack, those in cells_by_attack.items()
    }
    collapsed = [
        {seed for side in sides for seed in side.keys() - _trained(side).keys()}
        for sides in zip(*measured.values(), strict=True)
    ]
    return {
        attack: assess(runs, claim, measured[attack], those, collapsed)
        for attack, those in cells_by_attack.items()
    }


def add_holm(evidence: Sequence[dict[str, Any]]) -> int:
    """Add Holm's correction to all evidence that has a p value; return the number of tests."""
    tests = sorted((one for one in evidence if "p" in one), key=lambda one: one["p"])
    corrected = 0.0
    for index, one in enumerate(tests):
        corrected = one["p_holm"] = max(corrected, min(1.0, (len(tests) - index) * one["p"]))
    return len(tests)


def headline(evidence: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the verdict of a claim over all attacks."""
    ran = {attack: one for attack, one in reversed(evidence.items()) if one["verdict"] != "not run"}
    words = {one["verdict"] for one in ran.values()}
    if not ran or "did not train" in words:
        return "did not train" if ran else "not run"
    shown = {a: one["verdict"] + " (borderline)" * one["borderline"] for a, one in ran.items()}
    if len(words) > 1 or len(ran) < len(evidence):
        texts = [", ".join(f"{word} under {attack}" for attack, word in shown.items())]
        return "; ".join(
            [*texts, *(f"{attack} not run" for attack in evidence if attack not in ran)]
        )
    at_the_edge = [attack for attack, one in ran.items() if one["borderline"]]
    if at_the_edge and len(at_the_edge) < len(ran):
        return f"{words.pop()} (borderline under {at_the_edge[0]})"
    return next(iter(shown.values()))


def _is_equal(page: Any, own: Any, field: str) -> bool:
    if isinstance(page, dict) and isinstance(own, dict):
        return page.keys() == own.keys() and all(_is_equal(page[k], own[k], field) for k in own)
    if isinstance(page, float) and isinstance(own, float):  # a p value may be tiny
        return math.isclose(page, own, rel_tol=1e-6, abs_tol=0 if field[0] == "p" else 1e-12)
    return page == own


def _differences(claim: Mapping[str, Any], evidence: dict[str, dict[str, Any]]) -> list[str]:
    """Return a text for each quantity of a claim that differs."""
    page = {one["attack"]: one for one in claim["evidence"]}
    if "" in evidence and len(page) == 1:
        evidence = dict.fromkeys(page, evidence[""])
    compared = [("attacks", list(page), list(evidence))]
    compared += [("verdict", claim["verdict"], headline(evidence))]
    for attack in [attack for attack in page if attack in evidence]:
        both = page[attack], evidence[attack]
        compared += [(f"{f}, {attack}", *(one.get(f) for one in both)) for f in FIELDS]
    unequal = [one for one in compared if not _is_equal(one[1], one[2], one[0])]
    return [f"{quantity}: page {theirs}, recomputed {own}" for quantity, theirs, own in unequal]


def check(folder: Path) -> tuple[list[str], str]:
    """Compare verdicts.json with its recomputation.

    Args:
      folder: results of the study.

    Returns:
      a line for each claim with a difference, and the number of claims and tests.
    """
    claims = json.loads((folder / "verdicts.json").read_text())["claims"]
    recomputed = [assess_claim(folder / "runs", claim) for claim in claims]
    num_tests = add_holm([one for evidence in recomputed for one in evidence.values()])
    lines = []
    for claim, evidence in zip(claims, recomputed, strict=True):
        if found := _differences(claim, evidence):
            lines.append(f"claim {claim['number']} ({claim['text']}): {'; '.join(found)}")
    return lines, f"{len(claims)} claims, {num_tests} tests"


def main() -> None:
    """Print the claims with differences; exit with 1 if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results/study"))
    lines, counts = check(parser.parse_args().folder)
    print(*lines, f"{counts}: {f'{len(lines)} claims differ' if lines else 'all equal'}", sep="\n")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
