"""The table of accuracies that a run prints, and the labels that it shares with the report."""

import html
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxadv.core.results import (
    AttackEntry,
    Evaluation,
    NoisyAccuracy,
    SuiteResult,
    WorstCase,
)
from jaxadv.reports import formats
from jaxadv.reports.terminal import encodable

WORST_CASE = "worst case"


_WIDTH = 120  # characters of a table that is not printed to a terminal


def show(evaluation: Evaluation) -> None:
    """Print the table of accuracies."""
    console = Console()
    console.print(table(evaluation, console.encoding))


def as_text(evaluation: Evaluation) -> str:
    """Return the table of accuracies as text."""
    console = _console()
    console.print(table(evaluation))
    return console.export_text(styles=False).rstrip()


def as_html(evaluation: Evaluation) -> str:
    """Return the table of accuracies and the warnings as HTML, for a notebook."""
    console = _console()
    console.print(table(evaluation))
    warnings = "".join(f"<li>{html.escape(one)}</li>" for one in evaluation.warnings)
    return console.export_html(
        inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>'
    ) + (f"<p>Warnings:</p><ul>{warnings}</ul>" if warnings else "")


def _console() -> Console:
    """Return a console that records its output and shows nothing, also in a notebook."""
    return Console(
        file=io.StringIO(), width=_WIDTH, record=True, force_jupyter=False, force_terminal=False
    )


def table(evaluation: Evaluation, encoding: str = "utf-8") -> Table:
    """Return the table of accuracies: clean, under each attack, and the worst case over attacks.

    Args:
      evaluation: results to show.
      encoding: of the terminal. Characters that it lacks are replaced before the columns are
        aligned.
    """

    def text(cell: str) -> Text:
        return Text(encodable(cell, encoding))

    def add_row(*cells: str) -> None:
        rows.add_row(*map(text, cells))

    rows = Table(title=text(title(evaluation)))
    rows.add_column("attack")
    rows.add_column("norm")
    passes = ["single forward pass", "majority vote"] if evaluation.stochastic else []
    for heading in ("eps", "accuracy", "95 % interval", "seconds", *passes):
        rows.add_column(heading, justify="right")
    add_row("clean", "", "", *_accuracy(evaluation.clean), "", *_passes(evaluation.clean))
    for name, entries in evaluation.by_name().items():
        rows.add_section()
        for entry in entries:
            seconds = f"{entry.seconds:.1f}"
            add_row(name, *_ball(entry), *_accuracy(entry), seconds, *_passes(entry))
            for row in _details(entry):
                add_row(*row)
    for name, worst_cases in worst_cases_by_label(evaluation).items():
        rows.add_section()
        for worst_case in worst_cases:
            add_row(name, *_ball(worst_case), *_accuracy(worst_case), "")
    rows.add_section()
    for name, (score, num_radii) in aggregated_scores(evaluation).items():
        add_row(f"{name}, aggregated score", "", "", f"{score:.3f}", f"sum over {num_radii} eps")
    return rows


def title(evaluation: Evaluation) -> str:
    """Return the title of a table: what was evaluated, on how many images."""
    dataset = f" on {evaluation.dataset}" if evaluation.dataset else ""
    checkpoint = evaluation.checkpoint
    which = f", {checkpoint.which} checkpoint (epoch {checkpoint.epoch})" if checkpoint else ""
    return f"{evaluation.model}{dataset}{which}, n = {evaluation.n}"


def _ball(result: AttackEntry | WorstCase) -> tuple[str, str]:
    return formats.norm(result.norm), formats.eps(result.eps)


def _accuracy(result: NoisyAccuracy | WorstCase) -> tuple[str, str]:
    return formats.percent(result.accuracy), formats.interval(result.ci95)


def _passes(result: NoisyAccuracy) -> tuple[str, ...]:
    """Return the cells for single forward passes and the majority vote, if there are several."""
    if result.single_pass is None or result.majority is None:
        return ()
    mean, std = result.single_pass.mean, result.single_pass.std
    return (
        f"{100 * mean:.1f} \N{PLUS-MINUS SIGN} {100 * std:.1f}",
        formats.percent(result.majority.accuracy),
    )


def _details(entry: AttackEntry) -> list[Sequence[str]]:
    """Return a row for each attack of AutoAttack, and a row for the exported images."""
    rows: list[Sequence[str]] = [
        (f"  {stage.name}", "", "", f"{stage.broken:,} misclassified", "", f"{stage.seconds:.1f}")
        for stage in entry.stages or ()
    ]
    if rounded := entry.uint8:
        again = f"{rounded.lost:,} correct again"
        rows.append(("  rounded to 8 bits", "", "", formats.percent(rounded.accuracy), again))
    return rows


def worst_cases_by_label(results: SuiteResult) -> dict[str, list[WorstCase]]:
    """Return the worst cases of each norm by ascending eps; labels name the norm if several do."""
    norms = results.worst_case_by_norm()
    return {
        WORST_CASE if len(norms) == 1 else f"{WORST_CASE}, {formats.norm(norm)}": worst_cases
        for norm, worst_cases in norms.items()
    }


def aggregated_scores(results: SuiteResult) -> dict[str, tuple[float, int]]:
    """Return each attack's aggregated score and number of radii, by ascending score."""
    attacks = results.by_name()
    scores = sorted(results.aggregated_score.items(), key=lambda item: item[1])
    return {name: (score, len(attacks[name])) for name, score in scores}
