"""One part of the run in test_elastic.py: two epochs of 3 steps, without an attack.

python tests/runs/elastic_job.py WORKDIR [NUM_CHECKS]

A run checks after each step and each epoch whether it must stop: this one stops at check
NUM_CHECKS.
"""

import sys
from pathlib import Path

from tiny_config import tiny_config

from jaxadv.data import load
from jaxadv.runs import signals
from jaxadv.training import train


def train_until(workdir: Path, num_checks: int | None) -> None:
    checks = iter(range(1, 100))
    signals.stop_requested = lambda: next(checks) == num_checks
    # The sign of a gradient near 0 depends on rounding, and so would an attack.
    changes = {"train.num_epochs": 2, "train.batch_size": 440, "attack.fraction": 0.0}
    try:
        digits = load("digits", data_dir=None, validation_fraction=0.04)
        train.train(tiny_config(**changes), digits, workdir)
    except signals.Stopped:
        assert num_checks


if __name__ == "__main__":
    train_until(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None)
