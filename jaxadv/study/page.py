"""The page of the study: `index.html`, `index.md` with the same tables, and `verdicts.json`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxadv.core.files import write_json
from jaxadv.reports.plots import standalone
from jaxadv.reports.report import template
from jaxadv.study import curves, evidence, findings, records, texts
from jaxadv.study.differences import SeedSpread, seed_spreads
from jaxadv.study.findings import Assessed
from jaxadv.study.measurements import Measurements, measure
from jaxadv.study.plan import Run
from jaxadv.study.records import Record
from jaxadv.study.specification import ORIGINAL, PGD_EPS, SCORE, Cell, Experiment
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
    CONTRADICTED,
    SUPPORTED,
    assess,
    differences_from_slides,
    holm_of_claims,
)


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
    gan = describe_gan(done, scale)
    assessed = _assess(experiments, measured, spreads, gan)
    sections, comparisons = [], []
    for name, measurements in measured.items():
        experiment = experiments[name]
        differences = differences_from_slides(measurements, spreads)
        if experiment.slides and experiment.original:
            comparisons.append(compare_with_slides(experiment, measurements, differences))
        significant = {key for key, one in differences.items() if one.is_significant}
        sections.append(
            _section(experiment, measurements, significant, plan)
            | {"samples": describe_samples(experiment.trainings.values(), plan, done)}
            | {"claims": [_link(one) for one in assessed if one.experiment == name]}
        )
    content = {
        "scale": scale,
        "dataset": _dataset(done.values()),
        "findings": _findings(assessed, comparisons, gan),
        "overestimation": describe_overestimation(done),
        "topics": _topics(experiments, assessed),
        "counts": Counter(one.verdict.decisive.word for one in assessed),
        "survivors": _num_survivors(assessed),
        "comparisons": comparisons,
        "sections": sections,
        "tests": _tests(assessed),
        "runs": runs_table(plan, done, records.read_json_file(results / "costs.json"), failures),
        "warnings": warnings_of_runs(done),
        "spread": spreads.get(PGD_EPS),
        **texts.TEXTS,
    }
    _write_plots(sections, results / "figures")
    for name in ("index.html", "index.md"):
        text = template(name, "jaxadv.study").render(**content)
        (results / name).write_text(text, encoding="utf-8")
    write_json(results / "verdicts.json", {"claims": _verdicts(experiments, assessed)})
    return results / "index.html"


def _assess(
    experiments: Mapping[str, Experiment],
    measured: Mapping[str, Measurements],
    spreads: Mapping[str, SeedSpread],
    gan: str,
) -> list[Assessed]:
    """Return the verdict on each claim, in the order of the page."""
    claims = [(name, claim) for name, one in experiments.items() for claim in one.claims]
    verdicts = [assess(claim, measured[name], spreads) for name, claim in claims]
    return [
        Assessed(number, claim, claim.text.format(gan=gan), name, verdict, corrected)
        for number, ((name, claim), verdict, corrected) in enumerate(
            zip(claims, verdicts, holm_of_claims(verdicts), strict=True), start=1
        )
    ]


def _findings(
    assessed: Sequence[Assessed], comparisons: Sequence[Comparison], gan: str
) -> list[str]:
    """Return the sentences at the top of the page."""
    by_claim = {one.claim: one for one in assessed}
    sentences = [
        findings.in_words(finding, by_claim, gan)
        for finding in findings.FINDINGS
        if all(claim in by_claim for claim, _ in finding.claims)
    ]
    return [*sentences, *_slides_finding(comparisons)]


def _slides_finding(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a sentence on the values of the slides; none if there is nothing to compare."""
    num_compared = sum(one.num_compared for one in comparisons)
    if not num_compared:
        return []
    different = [
        f"{one.num_different} of {one.num_compared} in “{one.title}”"
        + (f" ({one.note})" if one.note else "")
        for one in comparisons
        if one.num_different
    ]
    missing = dict.fromkeys(label for one in comparisons for label in one.missing)
    return [
        f"Of {num_compared} values of the slides that we measured too, "
        f"{sum(one.num_different for one in comparisons)} are significantly different from ours "
        f"under the study's own protocol: {', '.join(different) or 'none'}."
        + (f" Not run under that protocol: {'; '.join(missing)}." if missing else "")
    ]


def _topics(
    experiments: Mapping[str, Experiment], assessed: Sequence[Assessed]
) -> dict[str, dict[str, Any]]:
    """Return for each topic the rows of its claims, and the claims that were not run."""
    topics: dict[str, dict[str, Any]] = {}
    for one in assessed:
        topic = topics.setdefault(experiments[one.experiment].topic, {"rows": [], "not_run": []})
        if not one.verdict.ran:
            topic["not_run"].append(one)
            continue
        evidence_rows = [
            {
                "attack": found.attack,
                "sentence": evidence.sentence(one.claim, found),
                "holm": _p(one.corrected.get(found.attack)),
            }
            for found in one.verdict.ran
        ]
        topic["rows"].append(_link(one) | {"origin": one.claim.origin, "evidence": evidence_rows})
    return topics


def _num_survivors(assessed: Sequence[Assessed]) -> tuple[int, int]:
    """Return how many verdicts remain after Holm's correction, and how many there are before.

    Counts the claims with a p value that the decisive attack supports or contradicts.
    """
    decided = [
        one.corrected[decisive.attack] < 0.05
        for one in assessed
        if (decisive := one.verdict.decisive).attack in one.corrected
        and decisive.word in (SUPPORTED, CONTRADICTED)
    ]
    return sum(decided), len(decided)


def _tests(assessed: Sequence[Assessed]) -> list[dict[str, str]]:
    """Return a row for each test: accuracies by seed and p values."""
    return [
        {
            "number": str(one.number),
            "attack": found.attack,
            "p": _p(found.p),
            "holm": _p(one.corrected.get(found.attack)),
            **evidence.details(found),
        }
        for one in assessed
        for found in one.verdict.ran
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
    experiments: Mapping[str, Experiment], assessed: Sequence[Assessed]
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
                evidence.numbers(found) | {"p_holm": one.corrected.get(found.attack)}
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
