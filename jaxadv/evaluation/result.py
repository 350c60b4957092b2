"""The result of `jaxadv.evaluate`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxadv.core.example_results import ExampleResults
from jaxadv.core.files import atomic_write
from jaxadv.core.results import AttackEntry, CleanResult, Evaluation, WorstCase
from jaxadv.core.types import UserError
from jaxadv.reports import tables


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """Accuracies of a classifier under attack, in total and for each example.

    `print` shows the table of accuracies and the warnings; a notebook shows it as HTML.

    Attributes:
      evaluation: the accuracies, as in `evaluation.json`.
      examples: the results of each example, as in `examples.npz`.
    """

    evaluation: Evaluation
    examples: ExampleResults

    @property
    def clean(self) -> CleanResult:
        """Return the accuracy on the images as given, with its interval."""
        return self.evaluation.clean

    @property
    def attacks(self) -> dict[str, AttackEntry]:
        """Return the accuracy and the cost of each attack, by name and radius: "pgd40/0.03137"."""
        return {entry.key: entry for entry in self.evaluation.attacks}

    @property
    def worst_case(self) -> WorstCase:
        """Return the share of examples robust under all attacks, with its interval.

        With several radii or norms it is that of the radius nearest to 8/255. The others are in
        `evaluation.worst_case`.
        """
        worst_case = self.evaluation.headline()
        if worst_case is None:
            raise UserError("there is no worst case: no attack ran on the model with its noise on")
        return worst_case

    @property
    def robust_accuracy(self) -> float:
        """Return the worst-case accuracy over all attacks, see `worst_case`."""
        return self.worst_case.accuracy

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the reasons to doubt the accuracies, a sentence each."""
        return self.evaluation.warnings

    def to_json(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`: settings, accuracies, intervals, provenance."""
        return self.evaluation.to_json()

    def save(self, path: str | os.PathLike) -> Path:
        """Write the report, one self-contained HTML page.

        Args:
          path: of the page; it must end with ".html".

        Raises:
          UserError: the path has another ending, or cannot be written.
        """
        path = Path(path).expanduser()
        if path.suffix != ".html":
            raise UserError(f"cannot save {path}: the name of a report must end with .html")
        from jaxadv.reports.report import render_report  # imports Matplotlib, which is slow

        html = render_report(self.evaluation, self.examples)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                partial.write_text(html, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror})") from None
        return path

    def __str__(self) -> str:
        """Return the table of accuracies, and the warnings."""
        return "\n".join(
            [tables.as_text(self.evaluation), *map("warning: {}".format, self.warnings)]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.as_html(self.evaluation)
