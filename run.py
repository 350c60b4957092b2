"""Trains or evaluates a robust classifier: `python run.py --config configs/curriculum.py`."""

import sys
import warnings
from importlib import import_module
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "As in configs/curriculum.py:digits.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default in runs/.")
_JOBS = {"train": "train", "evaluate": "evaluate", "gan": "train_gan", "sample": "sample"}
_SECTIONS = {"train": "attack", "evaluate": "checkpoint", "gan": "judge", "sample": "judge"}
_WARNED = 3  # the exit code of an evaluation that raised warnings, where one is asked for
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config; what is wrong with them is told in one line."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise ValueError(f"unknown argument {rest[1]!r}: flags begin with --")
        if _CONFIG.value is None:
            raise ValueError("no config: give --config configs/curriculum.py, or another")
        if _CONFIG.value.mode not in _JOBS:
            raise ValueError(f"config.mode is {_CONFIG.value.mode!r}: use {', '.join(_JOBS)}")
        if _SECTIONS[_CONFIG.value.mode] not in _CONFIG.value:
            raise ValueError(f"config.mode {_CONFIG.value.mode} is not of this config")
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # ml_collections puts errors in errors, and whole tracebacks in their messages.
        cause = error.args[0] if isinstance(error.args[0], BaseException) else error
        lines = str(cause.args[-1]).strip().split("\n")
        told = lines[-1:] if "Traceback (most recent call last):" in lines else lines
        raise SystemExit(f"error: {' '.join(' '.join(told).split())}") from None


def _default_workdir() -> Path:
    if _CONFIG.value.mode == "evaluate" and _CONFIG.value.checkpoint:
        return Path(_CONFIG.value.checkpoint) / "evaluate"
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "_".join(filter(None, (Path(path).stem, argument)))


def main(_: list[str]) -> None:
    """Runs the job that the config names; imports what takes seconds once the flags are right."""
    from jaxadv import parallel
    from jaxadv.types import UserError

    logging.set_verbosity(logging.DEBUG if _DEBUG.value else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    parallel.set_up_cpu()
    if _CONFIG.value.get("compilation_cache", True):
        parallel.keep_compilations()
    job = import_module(f"jaxadv.{_JOBS[_CONFIG.value.mode]}")
    try:
        warned = job.run(_CONFIG.value, Path(_WORKDIR.value or _default_workdir()))
    except UserError as error:
        if _DEBUG.value:
            raise
        raise SystemExit(f"error: {error}") from None
    if warned and _CONFIG.value.evaluation.fail_on_warnings:
        raise SystemExit(_WARNED)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
