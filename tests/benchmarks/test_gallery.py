import re
import shutil
from pathlib import Path

from benchmarks import gallery

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_made_from_the_results(monkeypatch, tmp_path):
    monkeypatch.chdir(DOCS.parent)
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    gallery.main()
    page = (tmp_path / "gallery.md").read_text()
    assert page == (DOCS / "gallery.md").read_text(), "run benchmarks/gallery.py"
    names = re.findall(r"\]\(gallery/(\w+\.svg)\)", page)
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == set(names)
    assert all((DOCS / "gallery" / name).exists() for name in names)


def test_each_seed_is_a_point(monkeypatch, tmp_path):
    def draw():
        return gallery.training_time()[0].count("<use ")

    monkeypatch.chdir(DOCS.parent)
    every = draw()
    shutil.copytree("results/fast/fast_2_epochs_seed_0", tmp_path / "fast/fast_2_epochs_seed_0")
    monkeypatch.setattr(gallery, "RESULTS", tmp_path)
    assert draw() < every
