"""The table of accuracies in the terminal."""

# ruff: noqa: RUF001 (the table contains en dashes)
import re
import sys
from io import BytesIO, TextIOWrapper

import pytest
from test_report import EVALUATION, attack_entry, entry, printed

from jaxadv.core.results import Evaluation
from jaxadv.reports import tables


def test_every_result_has_a_row():
    lines = [
        re.sub(r"\s+", " ", line.replace("│", " ")).strip()
        for line in printed(EVALUATION).splitlines()
    ]
    assert [line for line in lines if "%" in line and "attack" not in line] == [
        "clean 55.2 % 51.9 – 58.5",
        "pgd40 L∞ 0.03 29.3 % 26.0 – 32.6 61.5",
        "pgd40 L∞ 0.10 1.2 % 0.0 – 4.6 61.5",
        "fgsm L∞ 0.03 33.8 % 30.4 – 37.1 1.0",
        "restarts L∞ 0.03 28.7 % 25.4 – 32.0 61.5",
        "worst case L∞ 0.03 28.5 % 25.2 – 31.9",
        "worst case L∞ 0.10 1.2 % 0.0 – 4.5",
    ]
    assert "pgd40, aggregated score 0.305 sum over 2 eps" in lines


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_columns_are_aligned_in_the_encoding_of_the_terminal(monkeypatch, encoding):
    output = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(output, encoding=encoding))
    monkeypatch.setenv("COLUMNS", "120")
    passes = {"single_pass": {"mean": 0.5, "std": 0.01}, "majority": entry(0.5)}
    fgsm = {"attack": "fgsm", "norm": "linf", "eps": 0.03, "queries": 1, "seconds": 1.0}
    evaluation = EVALUATION | {
        "model": "net",
        "dataset": "digits \N{EN DASH} mine",
        "stochastic": True,
        "clean": entry(0.5) | passes,
        "attacks": {"fgsm/0.03": attack_entry(0.1, **fgsm) | passes},
        "aggregated_score": {},
        "worst_case": {},
    }
    tables.show(Evaluation.from_json(evaluation))
    sys.stdout.flush()
    title, *lines = output.getvalue().decode(encoding).splitlines()
    assert title.strip().startswith("net on digits")
    assert len({len(line) for line in lines}) == 1
    text = "\n".join(lines)
    assert ("Linf" in text) == (encoding != "utf-8")
    assert ("50.0 +- 1.0" in text) == (encoding == "ascii")
