"""Where a figure comes from: the command, the code, the device and the time."""

import datetime
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax

from jaxadv.parallel import describe_devices

_SOURCE = (":/", ":(top,exclude)results")  # as git names all of the checkout but that folder


def provenance(seconds: float) -> dict:
    """Returns what a reader needs to measure a figure again.

    Args:
      seconds: how long the measurement took.
    """
    return {
        "command": shlex.join(["python", *sys.argv]),
        **note_source(),
        "device": describe_devices(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
    }


@cache
def note_source() -> dict:
    """Returns the commit of this source tree at the first call, and whether it was changed since.

    A program calls it when it begins, for the tree may be another when it ends. What lies in
    `results` is not source: a study writes there before its next run begins.
    """
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_SOURCE)),
    }


def _git(*arguments: str) -> str | None:
    """Returns what git says of this source tree; None where it is not a checkout."""
    try:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
