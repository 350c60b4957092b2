"""The page of the study: `index.html`, `index.md` with the same tables, and `verdicts.json`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxadv.core.files import write_json
from jaxadv.reports.plots import standalone
from jaxadv.reports.report import template
from jaxadv.study import curves, evidence, findings, records
from jaxadv.study.differences import SeedSpread, seed_spreads
from jaxadv.study.measurements import Measurements, measure
from jaxadv.study.plan import Run
from jaxadv.study.records import Record
from jaxadv.study.specification import ORIGINAL, SCORE, Cell, Claim, Experiment
from jaxadv.study.tables import (
    Comparison,
    compare_with_slides,
    describe_gan,
    describe_overestimation,
    describe_samples,
    rows_of_training,
    runs_table,
    warnings_of_runs,
)
from jaxadv.study.verdicts import (
    COMMON,
    CONTRADICTED,
    NOT_RUN,
    SUPPORTED,
    Verdict,
    assess,
    differences_from_slides,
    holm_of_claims,
)


class Assessed(NamedTuple):
    """A claim with its number on the page, its text, the name of its experiment and its verdict."""

    number: int
    claim: Claim
    text: str
    experiment: str
    verdict: Verdict


def write_page(
    experiments: Mapping[str, Experiment],
    plan: Mapping[str, Run],
    scale: str,
    results: Path,
    failures: Mapping[str, str],
) -> Path:
    """Write the page from the records of the runs, and from nothing else.

    Args:
      experiments: by name, in the order of the page; those of one topic follow each other.
      plan: all runs.
      scale: of the study: "smoke", "cpu" or "full".
      results: folder of the records and of the page.
      failures: error messages by the name of the run.

    Returns:
      The path of the page.
    """
    done = records.current_records(results, plan)
    measured = {name: measure(experiment, done) for name, experiment in experiments.items()}
    spreads = seed_spreads(measured.values())
    gan = describe_gan(done)
    assessed = _assess(experiments, measured, spreads, gan)
    corrected = holm_of_claims([one.verdict for one in assessed])
    sections, comparisons = [], []
    for name, measurements in measured.items():
        experiment = experiments[name]
        differences = differences_from_slides(measurements, spreads)
        if experiment.slides and experiment.original:
            comparisons.append(compare_with_slides(experiment, differences))
        significant = {key for key, one in differences.items() if one.is_significant}
        sections.append(
            _section(experiment, measurements, significant, plan)
            | {"samples": describe_samples(experiment.trainings.values(), plan, done)}
            | {"claims": [_link(one) for one in assessed if one.experiment == name]}
        )
    content = {
        "scale": scale,
        "dataset": _dataset(done.values()),
        "findings": _findings(experiments, assessed, comparisons, gan),
        "overestimation": describe_overestimation(done),
        "topics": _topics(experiments, assessed, corrected),
        "counts": Counter(one.verdict.decisive.word for one in assessed),
        "survivors": _num_survivors(assessed, corrected),
        "comparisons": comparisons,
        "sections": sections,
        "tests": _tests(assessed, corrected),
        "runs": runs_table(plan, done, records.read_json_file(results / "costs.json"), failures),
        "warnings": warnings_of_runs(done),
        "spread": spreads.get(COMMON),
        **TEXTS,
    }
    _write_plots(sections, results / "figures")
    for name in ("index.html", "index.md"):
        text = template(name, "jaxadv.study").render(**content)
        (results / name).write_text(text, encoding="utf-8")
    write_json(results / "verdicts.json", {"claims": _verdicts(experiments, assessed, corrected)})
    return results / "index.html"


def _assess(
    experiments: Mapping[str, Experiment],
    measured: Mapping[str, Measurements],
    spreads: Mapping[str, SeedSpread],
    gan: str,
) -> list[Assessed]:
    claims = [(name, claim) for name, one in experiments.items() for claim in one.claims]
    return [
        Assessed(
            number, claim, claim.text.format(gan=gan), name, assess(claim, measured[name], spreads)
        )
        for number, (name, claim) in enumerate(claims, start=1)
    ]


def _findings(
    experiments: Mapping[str, Experiment],
    assessed: Sequence[Assessed],
    comparisons: Sequence[Comparison],
    gan: str,
) -> list[str]:
    """Return the sentences at the top of the page."""
    verdicts = {one.claim: one.verdict for one in assessed}
    sentences = [
        findings.in_words(finding, verdicts, gan)
        for finding in findings.FINDINGS
        if all(claim in verdicts for claim, _ in finding.claims)
    ]
    return [*sentences, _slides_finding(comparisons)] if comparisons else sentences


def _slides_finding(comparisons: Sequence[Comparison]) -> str:
    num_compared = sum(one.num_compared for one in comparisons)
    num_different = sum(one.num_different for one in comparisons)
    missing = dict.fromkeys(label for one in comparisons for label in one.missing)
    not_run = f" Not run: {'; '.join(missing)}." if missing else ""
    return (
        f"Of {num_compared} values of the slides that we measured too, {num_different} are "
        f"significantly different from ours under the study's own protocol.{not_run}"
    )


def _topics(
    experiments: Mapping[str, Experiment],
    assessed: Sequence[Assessed],
    corrected: Mapping[tuple[int, str], float],
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the tables of claims by topic."""
    topics: dict[str, list[dict[str, Any]]] = {}
    for one in assessed:
        rows = [
            {
                "attack": found.attack,
                "sentence": evidence.sentence(one.claim, found),
                "holm": _p(corrected.get((one.number - 1, found.attack))),
            }
            for found in one.verdict.evidence
            if found.word != NOT_RUN
        ]
        row = {
            "number": one.number,
            "text": one.text,
            "origin": one.claim.origin,
            "verdict": evidence.verdict_in_words(one.verdict),
            "evidence": rows,
        }
        topics.setdefault(experiments[one.experiment].topic, []).append(row)
    return topics


def _num_survivors(
    assessed: Sequence[Assessed], corrected: Mapping[tuple[int, str], float]
) -> tuple[int, int]:
    """Return how many verdicts remain after Holm's correction, and how many there are before.

    Counts the claims that are supported or contradicted.
    """
    decided = [
        corrected.get((one.number - 1, one.verdict.decisive.attack), 0.0) < 0.05
        for one in assessed
        if one.verdict.decisive.word in (SUPPORTED, CONTRADICTED)
    ]
    return sum(decided), len(decided)


def _tests(
    assessed: Sequence[Assessed], corrected: Mapping[tuple[int, str], float]
) -> list[dict[str, str]]:
    """Return a row for each test: accuracies by seed and p values."""
    return [
        {
            "number": str(one.number),
            "attack": found.attack,
            "p": _p(found.p),
            "holm": _p(corrected.get((one.number - 1, found.attack))),
            **evidence.details(found),
        }
        for one in assessed
        for found in one.verdict.evidence
        if found.p is not None
    ]


def _p(p: float | None) -> str:
    return "" if p is None else evidence.p_value(p)


def _link(one: Assessed) -> dict[str, Any]:
    return {
        "number": one.number,
        "text": one.text,
        "verdict": evidence.verdict_in_words(one.verdict),
    }


def _verdicts(
    experiments: Mapping[str, Experiment],
    assessed: Sequence[Assessed],
    corrected: Mapping[tuple[int, str], float],
) -> list[dict[str, Any]]:
    """Return the content of verdicts.json: each claim with the numbers of its evidence."""
    return [
        {
            "number": one.number,
            "experiment": one.experiment,
            "text": one.text,
            "origin": one.claim.origin,
            "kind": one.claim.kind,
            "threshold": one.claim.threshold,
            "first": _cell(one.claim.first, experiments[one.experiment]),
            "second": one.claim.second and _cell(one.claim.second, experiments[one.experiment]),
            "verdict": evidence.verdict_in_words(one.verdict),
            "evidence": [
                evidence.numbers(found) | {"p_holm": corrected.get((one.number - 1, found.attack))}
                for found in one.verdict.evidence
            ],
        }
        for one in assessed
    ]


def _cell(cell: Cell, experiment: Experiment) -> dict[str, str]:
    return {**cell._asdict(), "training": experiment.trainings.get(cell.label, "")}


def _write_plots(sections: Iterable[Mapping[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for earlier in folder.glob(f"{section['name']}_*.svg"):
            earlier.unlink()
        for kind, plot in section["plots"].items():
            path = folder / f"{section['name']}_{kind}.svg"
            path.write_text(standalone(plot), encoding="utf-8")


def _dataset(done: Iterable[Record]) -> str:
    """Return the name of the data set in the evaluations."""
    return ", ".join(sorted({one.evaluation.dataset for one in done if one.evaluation}))


def _section(
    experiment: Experiment,
    measurements: Measurements,
    significant: set[tuple[str, str]],
    plan: Mapping[str, Run],
) -> dict[str, Any]:
    """Return what the templates show of an experiment.

    Args:
      experiment: the experiment.
      measurements: its values.
      significant: labels and columns whose value differs significantly from that of the slides.
      plan: all runs.
    """
    columns = [one for one in experiment.columns if _has_values(one, experiment, measurements)]
    if columns and "eps" in experiment.plots:
        columns.append(SCORE)
    rows = {
        label: rows_of_training(
            label, columns, experiment.slides, measurements, significant, bool(training)
        )
        for label, training in experiment.trainings.items()
    }
    return {
        "name": experiment.name,
        "title": experiment.title,
        "text": experiment.text,
        "columns": columns,
        "rows": rows,
        "has_slides": bool(experiment.slides),
        "has_original": any(
            row.source.startswith(ORIGINAL) for of_label in rows.values() for row in of_label
        ),
        "plots": curves.draw(experiment, measurements, plan),
    }


def _has_values(column: str, experiment: Experiment, measurements: Measurements) -> bool:
    """Return whether some row has a value in a column."""
    return any(
        column in experiment.slides.get(label, {}) or measurements[Cell(label, column)]
        for label in experiment.trainings
    )


TEXTS = {
    "guide": (
        "Accuracies are in %, at eps 0.03 in L-inf unless noted; pixels are in [0, 1]. "
        "Brackets hold 95 % intervals.",
        "Two attacks decide whether a model is more robust than another: AutoAttack on the first "
        "1,000 test images, and PGD-40 on all 10,000. AutoAttack is the stronger one and comes "
        "first where both decide differently; its intervals are wider, because it has fewer "
        "images.",
        "Verdicts follow from the interval of the difference. A claim is supported or contradicted "
        "if the interval lies on one side of zero, and inconclusive otherwise; then the interval "
        "bounds the effect. A verdict is borderline if the 90 % or the 99 % interval gives another "
        "one. A claim of no gain is contradicted if the interval lies above zero, and supported if "
        "it ends below one point. A model did not train if its clean accuracy is no better than "
        "that of a constant guess; it decides the verdict, and the comparison is that of the other "
        "seeds.",
        "The interval covers the images and the variation between trainings. One seed against "
        "three is weaker evidence: the variation of the one seed is taken from other trainings.",
        "“Holm” is the p value of the difference, corrected for the number of tests on this page. "
        "Below 0.05, the verdict would hold if all claims were tested at once.",
        "The corrected protocol evaluates the best checkpoint on held-out images, on the test "
        "split, with random starts, in evaluation mode. The original protocol is the study's: the "
        "last checkpoint on 1,024 held-out train images, attacked from the clean image, in "
        "training mode if the model has dropout or batch norm. The aggregated score is the sum of "
        "the accuracies under PGD-40 at the six radii.",
    ),
    "method": (
        "The difference of means over seeds has Student's t distribution. Its variance is the sum "
        "of that of the images, paired if both sides have the same images, and that of the seeds. "
        "With three or more seeds on both sides, the latter is that of each side (Welch). "
        "Otherwise it is the variance between seeds of one config in that column (at eps 0.03 if "
        "unknown), pooled over all configs with several seeds and assumed equal for all. Models "
        "that did not train are left out. Two evaluations of the same training, or of the same "
        "weights, differ by the images only. A claim that an accuracy is at most a limit is "
        "decided by the Wilson interval, without regard to seeds. McNemar's exact test, for each "
        "seed, compares two models on the same images and says nothing about the variation between "
        "trainings."
    ),
    "flaws": (
        "Flaws of the study: (1) it evaluated models in training mode, with dropout and batch "
        "statistics; (2) its PNI keeps the standard deviation of the weights at initialisation, "
        "and weight decay applies to alpha; (3) random models were attacked with one noise "
        "sample per gradient; (4) it has 1,024 images and one seed; (5) some of its attacks take "
        "steps of 0.02 at eps 0.01; (6) its curriculum ends at three times the eps of interest."
    ),
    "compared": (
        "The values of the slides beside ours under the study's own protocol, on the same number "
        "of images, one seed each. Different: the 95 % interval of the difference excludes zero. "
        "All values of the original protocol are on the same 1,024 images, so that one difference "
        "makes others more likely."
    ),
    "values": (
        "A value of one seed has its 95 % interval. A mean over seeds has their standard "
        "deviation, with their number in brackets. AutoAttack attacks the first 1,000 images. "
        "Models with a random defence are attacked at each eps with 20 steps of gradients averaged "
        "over 10 noise samples. ≠: significantly different from the slides. †: measured before "
        "this page existed; see the runs. ‡: did not train."
    ),
    "costs": (
        "Gradients: the largest number of gradient evaluations of single images, for a training "
        "with its own evaluations; for black-box attacks, of queries. The time of a run that is "
        "done is that of its epochs, without validation, and of its evaluations; interruptions "
        "may hide a part. Other times are estimates of a dry run, if there was one with as many "
        "gradients."
    ),
    "solid": (
        "Solid lines, filled points and bars: corrected protocol. Bands and error bars: 95 % "
        "interval of one seed, or range of several seeds."
    ),
    "dashed": "Dashed lines or crosses: original protocol.",
    "hollow": "Hollow points: slides, to be compared with the original protocol.",
}
