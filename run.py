"""Trains or evaluates a robust classifier: `python run.py --config configs/curriculum.py`."""

import shlex
import signal
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "As in configs/curriculum.py:digits.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default in runs/.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run with others, as the cluster says.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0: run with others.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many run together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
_JOBS = {
    "train": "train",
    "evaluate": "evaluate",
    "gan": "train_gan",
    "sample": "sample",
    "study": "study",
}
_SECTIONS = {
    "train": "attack",
    "evaluate": "checkpoint",
    "gan": "judge",
    "sample": "judge",
    "study": "study",
}
_TOGETHER = ("train", "evaluate")  # what several processes can do
_WARNED = 3  # the exit code of an evaluation that raised warnings, where one is asked for


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
    """Runs the job that the config names, and says in one line why it ends before it is done."""
    from jaxadv import stopping

    def end_as_asked(stopped: stopping.Stopped) -> NoReturn:
        from jaxadv import processes

        again = shlex.join(["python", *sys.argv])
        # To a cluster that sends SIGTERM nothing went wrong; a shell asks whether Ctrl-C ended it.
        code = 0 if stopped.signum == signal.SIGTERM else 128 + stopped.signum
        processes.end(code, f"Stopped ({stopped}). Go on with: {again}")

    stopping.heed_signals(end_as_asked)
    from jaxadv import processes
    from jaxadv.types import UserError

    try:
        code = _run()
    except stopping.Stopped as stopped:
        end_as_asked(stopped)
    except (UserError, OSError) as error:
        code, said = 1, traceback.format_exc() if _DEBUG.value else f"error: {error}"
    except Exception:
        code, said = 1, traceback.format_exc()
    else:
        processes.leave()
        sys.exit(code)
    processes.end(code, said)


def _run() -> int:
    """Runs the job, and returns the exit code."""
    from jaxadv import parallel, processes
    from jaxadv.types import UserError

    logging.set_verbosity(logging.DEBUG if _DEBUG.value else logging.WARNING)
    parallel.set_up_cpu()
    if _DISTRIBUTED.value or _COORDINATOR.value or _NUM_PROCESSES.value:
        processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if _CONFIG.value.mode not in _TOGETHER:
            raise UserError(f"config.mode {_CONFIG.value.mode} runs in one process only")
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    if _CONFIG.value.get("compilation_cache", True):
        parallel.keep_compilations()
    # Imports what takes seconds only once the flags are right.
    job = import_module(f"jaxadv.{_JOBS[_CONFIG.value.mode]}")
    warned = job.run(_CONFIG.value, Path(_WORKDIR.value or _default_workdir()))
    return _WARNED if warned and _CONFIG.value.evaluation.fail_on_warnings else 0


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
