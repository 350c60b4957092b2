"""The verdicts on the study's page, recomputed from the raw records."""

import json
from pathlib import Path

import pytest

from benchmarks.recompute_verdicts import check

RESULTS = Path(__file__).parents[2] / "results" / "study"
pytestmark = pytest.mark.skipif(
    not (RESULTS / "verdicts.json").exists(), reason="the results have no verdicts.json"
)


def test_verdicts_are_those_of_the_raw_records():
    lines, _ = check(RESULTS)
    assert not lines


def test_changed_values_are_reported(tmp_path):
    content = json.loads((RESULTS / "verdicts.json").read_text())
    compared = [
        (claim, one) for claim in content["claims"] for one in claim["evidence"] if "low" in one
    ]
    (first, evidence), (last, other) = compared[0], compared[-1]
    word, low = evidence["verdict"], other["low"]
    evidence["verdict"] = "inconclusive" if word == "supported" else "supported"
    other["low"] = low + 1e-4
    (tmp_path / "verdicts.json").write_text(json.dumps(content))
    (tmp_path / "runs").symlink_to(RESULTS / "runs")
    lines, _ = check(tmp_path)
    changed = {line.split(" (")[0]: line for line in lines}
    assert list(changed) == [f"claim {first['number']}", f"claim {last['number']}"]
    changes = f"page {evidence['verdict']}, recomputed {word}", f"page {low + 1e-4}, recomputed"
    assert all(change in line for change, line in zip(changes, lines, strict=True))
