"""Output to closed pipes and in encodings that lack some characters."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRINTS = """
import sys
from pathlib import Path
from jaxadv.reports.terminal import protect_output
protect_output()
for _ in range(3):
    print("Fr\\u00e9chet \\u2013 \\u221e \\u4e2d \\udcff", flush=True)
    print("progress \\u221e", file=sys.stderr)
Path(sys.argv[1]).touch()
"""


def run_prints(tmp_path, encoding, stdout):
    done = tmp_path / "done"
    result = subprocess.run(
        [sys.executable, "-c", PRINTS, done],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    assert done.exists()
    assert result.returncode == 0
    return result


def test_closed_pipe_raises_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    result = run_prints(tmp_path, "utf-8", writer)
    os.close(writer)
    assert result.stderr.decode("utf-8") == 3 * "progress ∞\n"


def test_characters_that_the_encoding_lacks_are_replaced(tmp_path):
    result = run_prints(tmp_path, "ascii", subprocess.PIPE)
    assert result.stdout == 3 * b"Frechet - inf \\u4e2d \\udcff\n"
    assert result.stderr == 3 * b"progress inf\n"
