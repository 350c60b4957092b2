# ruff: noqa: RUF001 (pages contain en dashes and minus signs)
import base64
import copy
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxadv.attacks import ATTACKS
from jaxadv.core.results import AttackEntry, Evaluation
from jaxadv.core.types import UserError
from jaxadv.reports import plots, report, tables

CONFIG = {
    "data": {"name": "cifar10"},
    "model": {"name": "bignet"},
    "validation": {"eps": 0.03},
}
N = 200


def entry(accuracy, **attack):
    interval = [max(0.0, accuracy - 0.0333), accuracy + 0.0333]
    return {"accuracy": accuracy, "ci95": interval, "n": N, **attack}


def attack_entry(accuracy, **attack):
    counts = {"attacked": N, "unmoved": 0, "nonfinite_logits": 0, "nonfinite_gradients": 0}
    return entry(accuracy, **{**counts, "noise": "on", **attack})


def pgd(accuracy, eps, **settings):
    budget = {"eps": eps, "step_size": 0.005, "num_steps": 40, "queries": 4321, "seconds": 61.5}
    return attack_entry(
        accuracy, attack="pgd", norm="linf", loss="margin", **{**budget, **settings}
    )


REQUIRED = {"step_size": 0.1, "num_steps": 5, "num_queries": 10}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_arguments_of_every_attack_are_described(name):
    spec = ATTACKS[name]
    given = {key: REQUIRED.get(key, default) for key, default in spec.defaults.items()}
    measured = {"queries": 10, "seconds": 1.0}
    named = {"name": name, "attack": name, "norm": spec.norms[0], "eps": 0.1}
    content = attack_entry(0.5, **{**given, **named, **measured})
    words = report.settings(AttackEntry.from_json(content))
    assert words.startswith(f"{name}, L")
    assert "None" not in words
    assert ("sigma" in words) == name.startswith("nes")
    assert ("square over" in words) == (name == "square")


def worst(accuracy, eps, *attacks):
    return entry(accuracy, norm="linf", eps=eps, attacks=list(attacks))


EVALUATION = {
    "checkpoint": {"workdir": "runs/x", "which": "best", "epoch": 2, "sha256": "c0ffee"},
    "model": "bignet",
    "num_parameters": 263406,
    "dataset": "CIFAR-10",
    "split": "test",
    "n": N,
    "stochastic": False,
    "num_passes": 1,
    "largest_class": 0.1,
    "clean": entry(0.5519, varying=0, nonfinite_logits=0),
    "clean_noise": {},
    "attacks": {
        "pgd40/0.1": pgd(0.0123, 0.1),
        "pgd40/0.03": pgd(0.2931, 0.03),
        "fgsm/0.03": attack_entry(
            0.3377,
            attack="fgsm",
            norm="linf",
            eps=0.03,
            loss="cross_entropy",
            queries=1,
            seconds=1.0,
        ),
        "restarts/0.03": pgd(0.2871, 0.03, num_restarts=5, random_start=True, num_odi_steps=2),
    },
    "worst_case": {"linf/0.03": worst(0.2853, 0.03), "linf/0.1": worst(0.0119, 0.1)},
    "aggregated_score": {"pgd40": 0.3054},
    "warnings": [],
    "provenance": {
        "command": "python run.py --config configs/x.py",
        "commit": "abc1234",
        "dirty": False,
        "device": "2 x cpu",
        "jax": "0.10.2",
        "date": "2026-11-22T20:00:00+00:00",
        "seconds": 123.4,
    },
}


def metrics_line(epoch):
    budget = {"eps": 0.01 * epoch, "step_size": 0.01, "num_steps": 9 + epoch}
    train = {"train_loss": 2.0, "train_loss_adversarial": None, "train_accuracy_clean": 0.4}
    validation = {"validation_accuracy_clean": 0.5, "validation_accuracy_robust": 0.3}
    return {"epoch": epoch, "step": epoch, **budget, **train, **validation, "seconds": 3700.0}


def make_examples(image_shape=(32, 32, 3)):
    rng = np.random.default_rng(0)
    images = np.full((2, *image_shape), 0.5, np.float32)
    arrays = {
        "labels": np.zeros(N, int),
        "class_names": np.array(["cat", "dog", "ship"]),
        "predictions/clean": np.zeros(N, int),
        "margin/clean": rng.normal(size=N),
        "sample/ids": np.array([3, 5]),
        "sample/images": images,
    }
    for name, attack in EVALUATION["attacks"].items():
        signs = rng.choice([-1, 1], images.shape).astype(np.float32)
        arrays[f"margin/{name}"] = rng.normal(size=N)
        arrays[f"survived/{name}"] = np.ones(N, bool)
        arrays[f"sample/adversarial/{name}"] = images + np.float32(attack["eps"]) * signs
        arrays[f"sample/predictions/{name}"] = np.array([1, 2])
    return arrays


def fill(workdir):
    """Write every file of a workdir; the last checkpoint is worse than the best."""
    last = copy.deepcopy(EVALUATION)
    last["checkpoint"] |= {"which": "last", "epoch": 3}
    last["clean"] = entry(0.5319)
    contents = {"config": CONFIG, "evaluation": EVALUATION, "evaluation_last": last}
    for name, content in contents.items():
        (workdir / f"{name}.json").write_text(json.dumps(content))
    lines = [json.dumps(metrics_line(epoch)) + "\n" for epoch in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    np.savez(workdir / "examples.npz", **make_examples())
    return workdir


@pytest.fixture
def workdir(tmp_path):
    return fill(tmp_path)


@pytest.fixture
def undrawn(workdir, monkeypatch):
    """Return a workdir; figures are replaced by empty ones to save time."""
    for name in ("accuracy_over_eps", "training_curves", "margin_histogram"):
        monkeypatch.setattr(plots, name, lambda *args, **kwargs: "<svg></svg>")
    return workdir


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render(fill(tmp_path_factory.mktemp("run")))


class Page(HTMLParser):
    """The text, table rows, images and addresses of a page."""

    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.text, self.rows, self.images, self.addresses, self.tags = "", [], [], [], []
        self._open = []
        self.feed(html)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        if tag == "img":
            self.images.append(attributes["src"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data.strip()


def render(workdir):
    return Page(report.write_report(workdir).read_text(encoding="utf-8"))


def rewrite(workdir, change, name="evaluation.json"):
    content = json.loads((workdir / name).read_text())
    change(content)
    (workdir / name).write_text(json.dumps(content))


def printed(evaluation):
    console = Console(width=100, file=io.StringIO())
    console.print(tables.table(Evaluation.from_json(evaluation)))
    return console.file.getvalue()


def test_writes_the_page_into_the_workdir(undrawn):
    assert report.write_report(str(undrawn)) == undrawn / "report.html"


def test_evaluation_rows_contain_the_numbers_of_the_json(page):
    rows = page.rows
    pgd_settings = "pgd, L∞, 40 steps of 0.005, margin loss"
    assert ["clean", "", "", "55.2 %", "51.9 – 58.5", "", ""] in rows
    first = ["pgd40", pgd_settings, "0.03", "29.3 %", "26.0 – 32.6", "4,321", "61.5"]
    at = rows.index(first)
    assert rows[at + 1] == ["0.10", "1.2 %", "0.0 – 4.6", "4,321", "61.5"]  # by ascending eps
    assert ["fgsm", "fgsm, L∞, cross-entropy loss", "0.03", "33.8 %"] in [row[:4] for row in rows]
    restarts = next(row for row in rows if row[0] == "restarts")
    assert restarts[1] == pgd_settings + ", random start, 2 steps of ODI, 5 restarts"
    worst_row = next(row for row in rows if row[0] == "worst case")
    assert worst_row[2:4] == ["0.03", "28.5 %"]
    assert any(row[0] == "pgd40" and "0.305" in row for row in rows)


def test_best_and_last_checkpoint_are_compared(page):
    assert ["clean", "55.2 %", "53.2 %", "−2.0"] in page.rows
    assert ["worst case, L∞ eps 0.03", "28.5 %", "28.5 %", "+0.0"] in page.rows
    assert ["aggregated score, pgd40", "0.305", "0.305", "+0.000"] in page.rows


def test_headline_uses_the_eps_of_the_validation_attack(page, undrawn):
    assert "Robust accuracy, L∞ eps 0.0328.5 %" in page.text
    rewrite(undrawn, lambda config: config["validation"].update(eps=0.09), "config.json")
    assert "Robust accuracy, L∞ eps 0.101.2 %" in render(undrawn).text


def test_margins_are_of_the_strongest_single_attack_at_the_headline_eps(page):
    assert "clean and under restarts/0.03" in page.text


def test_provenance_and_config(page, undrawn):
    text = page.text
    for fact in ("python run.py --config configs/x.py", "abc1234", "2 x cpu", "0.10.2", "c0ffee"):
        assert fact in text
    assert "3 epochs in 3 h 05 min" in text
    assert '"validation": {' in text
    assert "uncommitted changes" not in text
    rewrite(undrawn, lambda evaluation: evaluation["provenance"].update(dirty=True))
    assert "uncommitted changes" in render(undrawn).text


def test_adversarial_examples_show_the_attack_with_most_eps_and_amplified_perturbations(page):
    assert len(page.images) == 2 * (1 + 2 * 2)  # examples x (original + radii x (image, noise))
    header = next(row for row in page.rows if row[0] == "clean" and "×" in row[1])
    assert header == ["clean", "eps 0.03×16.7", "eps 0.10×5"]
    assert ["cat→ cat", "→ dog", "→ dog"] in page.rows
    assert ["cat→ cat", "→ ship", "→ ship"] in page.rows
    png = base64.b64decode(page.images[2].removeprefix("data:image/png;base64,"))
    noise = np.asarray(Image.open(io.BytesIO(png)))
    assert set(np.unique(noise)) == {0, 255}


def test_adversarial_examples_show_the_stronger_of_two_attacks_with_as_many_eps(undrawn):
    def add_fgsm(evaluation):
        weak = pgd(0.3, 0.1)
        evaluation["attacks"] = {"fgsm/0.1": weak, **evaluation["attacks"]}

    rewrite(undrawn, add_fgsm)
    arrays = make_examples()
    for kind in ("survived", "sample/adversarial", "sample/predictions"):
        arrays[f"{kind}/fgsm/0.1"] = arrays[f"{kind}/pgd40/0.1"]
    np.savez(undrawn / "examples.npz", **arrays)
    assert "not selected further, under pgd40." in render(undrawn).text


@pytest.mark.parametrize(
    ("image_shape", "thumbnail_size"),
    [((8, 8, 1), (8, 8)), ((5, 9, 2), (5, 9)), ((1, 1, 4), (1, 1)), ((600, 300, 3), (200, 100))],
)
def test_adversarial_examples_of_every_image_shape(undrawn, image_shape, thumbnail_size):
    np.savez(undrawn / "examples.npz", **make_examples(image_shape))
    images = render(undrawn).images
    assert len(images) == 10
    for uri in images:
        png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        image = np.asarray(Image.open(io.BytesIO(png)))
        assert image.shape == (*thumbnail_size, 3)
        if image_shape[-1] < 3:
            assert (image == image[..., :1]).all(), "grey"


def test_class_minus_one_is_shown_as_no_class(undrawn):
    arrays = make_examples()
    arrays["sample/predictions/pgd40/0.03"] = np.array([-1, 2])
    np.savez(undrawn / "examples.npz", **arrays)
    no_class = "→ no class (NaN or infinite logits)"
    assert ["cat→ cat", no_class, "→ dog"] in render(undrawn).rows


def test_no_adversarial_examples_without_stored_images(undrawn):
    empty = {"sample/ids": np.array([], int), "sample/images": np.zeros((0, 32, 32, 3))}
    np.savez(undrawn / "examples.npz", **make_examples() | empty)
    assert not render(undrawn).images


def test_page_is_self_contained(page):
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.findall(r"url\((?!#)|@import", page.html)


def test_names_are_escaped_everywhere(workdir):
    hostile = '<script>alert("x")</script>&$[red]'

    def poison(evaluation):
        for key in ("model", "dataset"):
            evaluation[key] = hostile
        evaluation["warnings"] = [hostile]
        for key in ("command", "commit", "device", "jax", "date"):
            evaluation["provenance"][key] = hostile
        evaluation["attacks"][f"{hostile}/0.03"] = evaluation["attacks"].pop("restarts/0.03")

    rewrite(workdir, poison)
    rewrite(workdir, lambda config: config.update(note=hostile), "config.json")
    arrays = make_examples()
    arrays["class_names"] = np.array([hostile] * 3)
    for kind in ("survived", "margin"):
        arrays[f"{kind}/{hostile}/0.03"] = arrays[f"{kind}/restarts/0.03"]
    np.savez(workdir / "examples.npz", **arrays)
    page = render(workdir)
    assert "script" not in page.tags
    assert page.text.count(hostile) >= 13
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert f"│ {hostile} " in printed(evaluation)


def test_warnings_of_the_gradient_masking_diagnostics(page, undrawn):
    assert "No warnings from the gradient-masking diagnostics" in page.text
    assert "<dt>AutoAttack" not in page.html
    rewrite(undrawn, lambda evaluation: evaluation.update(warnings=["fgsm beats pgd40"]))
    text = render(undrawn).text
    assert "fgsm beats pgd40" in text
    assert "Warnings: the accuracies on this page" in text
    assert "No warnings" not in text


def test_digits_are_labelled_as_not_cifar(page, undrawn):
    assert "digits" not in page.text
    rewrite(undrawn, lambda evaluation: evaluation.update(dataset="digits, not CIFAR"))
    assert "bignet on digits, not CIFAR" in render(undrawn).text
    (undrawn / "evaluation.json").unlink()
    rewrite(undrawn, lambda config: config["data"].update(source="digits"), "config.json")
    assert "bignet on digits, not CIFAR" in render(undrawn).text


@pytest.mark.parametrize(
    ("missing", "says", "num_svgs"),
    [
        ("metrics.jsonl", "there is no metrics.jsonl", 2),
        ("evaluation.json", "There is no evaluation.json", 1),
        ("examples.npz", "there is no examples.npz", 2),
        ("config.json", "There is no config.json", 3),
        ("evaluation_last.json", None, 3),
    ],
)
def test_missing_files_omit_their_sections(undrawn, missing, says, num_svgs):
    (undrawn / missing).unlink()
    page = render(undrawn)
    assert page.tags.count("svg") == num_svgs
    if says:
        assert says in page.text
    else:
        assert "Best and last" not in page.text


def test_empty_workdir_gives_a_page(tmp_path):
    assert "Not evaluated yet" in render(tmp_path).text


def test_missing_workdir_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no workdir"):
        report.write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "examples.npz"])
def test_damaged_files_are_named_in_the_error(undrawn, name):
    content = (undrawn / name).read_bytes()
    (undrawn / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        report.write_report(undrawn)
    assert not (undrawn / "report.html").exists()


def test_multiples_of_1_255_are_shown_as_fractions(undrawn):
    rewrite(undrawn, lambda e: e["attacks"].update({"eight/0.03137": pgd(0.2, 8 / 255)}))
    assert any("0.03137 = 8/255" in row for row in render(undrawn).rows)


@pytest.mark.parametrize(("radii", "num_figures"), [((0.5,), 3), ((0.25, 0.5), 4)])
def test_each_norm_has_a_worst_case_and_with_several_eps_a_figure(undrawn, radii, num_figures):
    def add_l2(evaluation):
        for eps in radii:
            evaluation["attacks"][f"l2/{eps}"] = {**pgd(0.2, eps), "norm": "l2"}
            evaluation["worst_case"][f"l2/{eps}"] = {**worst(0.2, eps), "norm": "l2"}

    rewrite(undrawn, add_l2)
    page = render(undrawn)
    assert page.tags.count("svg") == num_figures
    assert {"worst case, L∞", "worst case, L2"} <= {row[0] for row in page.rows}


def test_records_without_later_keys_give_the_same_page(workdir):
    current = render(workdir).html

    def remove_later_keys(evaluation):
        for key in ("split", "stochastic", "num_passes", "largest_class", "clean_noise"):
            del evaluation[key]
        for key in ("varying", "nonfinite_logits"):
            evaluation["clean"].pop(key, None)
        for attack in evaluation["attacks"].values():
            for key in ("noise", "attacked", "nonfinite_logits", "nonfinite_gradients"):
                del attack[key]

    for name in ("evaluation.json", "evaluation_last.json"):
        rewrite(workdir, remove_later_keys, name)
    assert render(workdir).html == current


def test_published_records_give_a_page(tmp_path):
    published = Path(__file__).parents[2] / "results" / "curriculum"
    shutil.copytree(published, tmp_path / "curriculum")
    page = render(tmp_path / "curriculum")
    assert ["clean", "", "", "60.2 %", "59.3 – 61.2", "", ""] in page.rows
    assert "Robust accuracy, L∞ eps 0.0329.0 %" in page.text
