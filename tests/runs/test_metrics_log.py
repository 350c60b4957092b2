"""The metrics log is written with PyTorch installed, and without importing it."""

import json
import os
import subprocess
import sys

CODE = """
import sys
from pathlib import Path
from jaxadv.runs.metrics_log import open_metrics_log

with open_metrics_log(Path("run"), 0) as log:
    log({"epoch": 1, "loss": 0.5})
assert "torch" not in sys.modules
import torch
assert torch.is_a_stand_in
"""


def test_pytorch_is_not_imported(tmp_path):
    (tmp_path / "torch.py").write_text("is_a_stand_in = True\n")
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "loss": 0.5}]
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
