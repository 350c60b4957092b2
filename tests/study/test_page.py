"""Tests of what the page says of all records together."""

import json
import shutil
from pathlib import Path

from study_measurements import measurement

from jaxadv.configs import study
from jaxadv.study.experiments import EXPERIMENTS
from jaxadv.study.findings import Assessed
from jaxadv.study.page import _num_survivors, write_page
from jaxadv.study.plan import make_plan
from jaxadv.study.records import Record, current_records
from jaxadv.study.specification import Cell, higher
from jaxadv.study.tables import _accuracy_cell, describe_gan, describe_overestimation
from jaxadv.study.verdicts import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Evidence, Verdict

RESULTS = Path(__file__).parents[2] / "results" / "study"
CLAIM = higher("", Cell("a", "0.03"), Cell("b", "0.03"))


def test_the_gan_is_described_by_its_record():
    done = current_records(RESULTS, make_plan(study.get_config()))
    share = done["gan/0/synthetic"].manifest["judged"]["samples"]["judge_accuracy"]
    assert describe_gan(done, "cpu") == (
        f"of a small GAN, whose samples the evaluator recognises at {100 * share:.1f} %,"
    )
    assert describe_gan(done, "full").startswith("of a GAN, whose")
    assert describe_gan({}, "cpu") == "of a small GAN"


def test_overestimation_is_that_on_the_images_of_autoattack():
    done = current_records(RESULTS, make_plan(study.get_config()))
    gaps = []
    for path in RESULTS.rglob("autoattack.json"):
        found = json.loads(path.read_text())["evaluation"]["attacks"]
        gaps.append(found["pgd40/0.03"]["accuracy"] - found["autoattack/0.03"]["accuracy"])
    assert describe_overestimation(done).endswith(
        f"leaves {100 * min(gaps):.1f} to {100 * max(gaps):.1f} points fewer in the {len(gaps)} "
        "models that both attack."
    )
    assert describe_overestimation({"net/0": Record()}) == ""


def test_verdicts_that_holms_correction_leaves_are_counted():
    def assessed(word, *, corrected, p=0.01):
        evidence = Evidence("PGD-40", word, {}, {}, p=p)
        return Assessed(1, CLAIM, "", "", Verdict((evidence,)), corrected)

    claims = [
        assessed(SUPPORTED, corrected={"PGD-40": 0.03}),
        assessed(CONTRADICTED, corrected={"PGD-40": 0.08}),
        assessed(INCONCLUSIVE, corrected={"PGD-40": 0.5}),
        assessed(SUPPORTED, corrected={}, p=None),
    ]
    assert _num_survivors(claims) == (1, 2)


def test_page_of_first_seeds_has_no_intervals_over_seeds(tmp_path):
    """The study runs the first seed of all trainings first."""
    for name in ("bignet_standard", "bignet_pni", "bignet_pni_frozen"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for path in (RESULTS / "runs" / name).glob("0.*"):
            shutil.copy(path, tmp_path / "runs" / name)
        if (RESULTS / "runs" / name / "0").exists():
            shutil.copytree(RESULTS / "runs" / name / "0", tmp_path / "runs" / name / "0")
    few = {"randomness": EXPERIMENTS["randomness"]}
    write_page(few, make_plan(study.get_config()), "cpu", tmp_path, {})
    lines = (tmp_path / "index.md").read_text(encoding="utf-8").splitlines()
    findings = [line for line in lines if line[:3] in ("1. ", "2. ", "3. ")]
    assert len(findings) == 2  # none on the slides: without other seeds there is no comparison
    assert "PNI makes BigNet more robust under EOT: inconclusive" in findings[1]
    assert "no config has several seeds" in findings[1]
    assert "| Random defences | 0 | 0 |  | RSE |" in lines


def test_seeds_that_did_not_train_do_not_hide_the_others_in_a_table():
    net = {seed: measurement((0, share)) for seed, share in enumerate((250, 270))}
    guess = measurement((0, 100), learned=False)
    assert _accuracy_cell(net | {2: guess}) == ("26.0", "± 1.4 [2 of 3]")
    assert _accuracy_cell(net) == ("26.0", "± 1.4 [2]")
    assert _accuracy_cell({0: guess}).value == "10.0"
    assert _accuracy_cell({}) == ("", "")
