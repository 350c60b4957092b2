"""Run the job of a config: train, evaluate, sample or study."""

import ctypes
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from absl import app, logging

from jaxadv.cli import flags

# By mode: the module whose `run` does the job, and the file of its results in the workdir.
_JOBS = {
    "train": "training.train",
    "evaluate": "evaluation.checkpoint",
    "gan": "gan.train",
    "sample": "gan.sampling",
    "study": "study.runner",
}
_RESULTS = {"train": "evaluation.json", "evaluate": "evaluation.json", "gan": "gan.json"}
_M_ARENA_MAX = -8  # of glibc's malloc.h
_EXIT_CODE_OF_WARNINGS = 3  # with config.evaluation.fail_on_warnings


def run_command(argv: Sequence[str]) -> NoReturn:
    """Parse the arguments of a command, run the job of its config, and exit.

    Args:
      argv: name of the program, then flags.
    """
    from jaxadv.reports.terminal import protect_output

    protect_output()
    app.run(main, [*argv], flags_parser=flags.parse_flags)
    raise AssertionError("app.run exits")


def main(_: list[str]) -> None:
    """Run the job of the config. An error of the user ends it with a message of one line."""
    _limit_arenas()
    from jaxadv.runs import signals

    def exit_stopped(stopped: signals.Stopped) -> NoReturn:
        from jaxadv.core.command_line import command_line
        from jaxadv.runs import distributed

        # SIGTERM of a cluster is no failure. After Ctrl-C a shell expects 128 + the signal.
        code = 0 if stopped.signum == signal.SIGTERM else 128 + stopped.signum
        distributed.exit_all(code, f"Stopped ({stopped}). Resume with: {command_line()}")

    signals.install_handlers(exit_stopped)
    try:
        from jaxadv.core.types import UserError
        from jaxadv.runs import distributed
    except ValueError as error:  # JAX reads its environment variables on import
        raise SystemExit(f"error: {error}: correct that environment variable") from None

    try:
        code = _run_job()
    except signals.Stopped as stopped:
        exit_stopped(stopped)
    except (UserError, OSError) as error:
        code, message = 1, traceback.format_exc() if flags.DEBUG.value else f"error: {error}"
    except Exception:
        code, message = 1, traceback.format_exc()
    else:
        distributed.shutdown()
        sys.exit(code)
    distributed.exit_all(code, message)


def _limit_arenas() -> None:
    """Let all threads share two arenas of glibc's allocator.

    By default each of many threads has its own. Their fragments made the memory of a run grow by
    2.5 % from epoch 200 to epoch 1,000, instead of 0.9 %.
    """
    with suppress(AttributeError, OSError, TypeError):  # of systems without glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _run_job() -> int:
    """Set up JAX, check the config and run its job; return the exit code."""
    from jaxadv.core import devices
    from jaxadv.core.types import UserError
    from jaxadv.reports.terminal import protect_output
    from jaxadv.runs import distributed

    config = flags.CONFIG.value
    if flags.JSON.value and config.mode not in _RESULTS:
        raise UserError(f"--json works for {', '.join(_RESULTS)}, not for {config.mode}: omit it")
    logging.set_verbosity(logging.DEBUG if flags.DEBUG.value else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    devices.set_up_arithmetic()
    devices.set_up_cpu()
    of_processes = (flags.COORDINATOR.value, flags.NUM_PROCESSES.value, flags.PROCESS_ID.value)
    if flags.DISTRIBUTED.value or any(value is not None for value in of_processes):
        if config.mode == "study":
            raise UserError(
                "config.mode is study, whose runs are executed one after another in one process: "
                "omit --distributed, --coordinator, --num_processes and --process_id"
            )
        distributed.initialize(*of_processes)
        protect_output()  # again, since sys.stdout is another stream now
    if config.get("compilation_cache", True):
        devices.enable_compilation_cache()
    devices.check_devices()
    # These imports take seconds, so they come after the flags are checked.
    import jax

    from jaxadv.config import check, set_defaults
    from jaxadv.runs.workdir import check_processes, expand_paths

    job = import_module(f"jaxadv.{_JOBS[config.mode]}")
    expand_paths(config)
    check_processes(config)
    workdir = _get_workdir()
    with _output():
        for line in set_defaults(config):
            print(line, flush=True)
        check(config, jax.device_count())
        raised_warnings = job.run(config, workdir)
    if flags.JSON.value and distributed.is_first():
        print((workdir / _RESULTS[config.mode]).read_text(encoding="utf-8"))
    failed = raised_warnings and config.evaluation.fail_on_warnings
    return _EXIT_CODE_OF_WARNINGS if failed else 0


@contextmanager
def _output() -> Iterator[None]:
    """Discard the output of a job with --quiet, and send it to stderr with --json."""
    from jaxadv.runs import distributed

    if flags.QUIET.value:
        os.environ["TQDM_DISABLE"] = "1"  # read by core/progress.py
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    elif flags.JSON.value and distributed.is_first():  # other processes print nothing
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def _get_workdir() -> Path:
    """Return --workdir or its default. The paths of the config must be expanded."""
    if flags.WORKDIR.value not in (None, "None"):
        from jaxadv.core.files import user_path

        return user_path(flags.WORKDIR.value)
    path, argument = flags.config_source()
    if flags.CONFIG.value.mode == "evaluate" and flags.CONFIG.value.checkpoint:
        suite = "" if argument == "default" else argument
        return Path(flags.CONFIG.value.checkpoint) / (suite or "evaluate")
    argument = re.sub(r"[/:]+", "_", argument)  # of a source such as folder:DIR
    return Path("runs") / "_".join(filter(None, (Path(path).stem, argument)))
