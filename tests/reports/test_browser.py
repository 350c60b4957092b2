"""Pages in a real browser: no message in the console, no horizontal scrolling."""

import re
import shutil
import subprocess

import pytest
from test_report import fill

from jaxadv.reports.compare import write_comparison
from jaxadv.reports.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
# The window of a browser has a least width, that of a frame has none.
FRAME = """<!doctype html>
<iframe src="page.html" width="{width}" height="900" style="border: 0" onload="
    const root = this.contentDocument.documentElement;
    document.title = `measured ${{root.clientWidth}} ${{root.scrollWidth}}`;"></iframe>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = [folder / "first", folder / "second"]
    for run in runs:
        run.mkdir()
        fill(run)
    return {"report": write_report(runs[0]), "compare": write_comparison(runs, folder / "c.html")}


def show(html, width, folder):
    """Return the width of a page's window, that of its content, and the console's messages."""
    (folder / "page.html").write_text(html)
    (folder / "frame.html").write_text(FRAME.format(width=width))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--window-size=1400,1000", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    sizes = re.search(r"measured (\d+) (\d+)", found.stdout)
    messages = [line for line in found.stderr.splitlines() if "CONSOLE" in line]
    return int(sizes[1]), int(sizes[2]), messages


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_fits_its_window(pages, tmp_path, name, width):
    window, content, messages = show(pages[name].read_text(), width, tmp_path)
    assert width - 20 <= window <= width  # without its scroll bar
    assert content <= window
    assert not messages


def test_a_page_that_is_too_wide_or_fails_is_noticed(tmp_path):
    html = "<!doctype html><p style='width: 500px'>wide</p><script>missing()</script>"
    window, content, messages = show(html, 400, tmp_path)
    assert content > window
    assert "missing is not defined" in messages[0]
