"""Train, evaluate or study robust classifiers and GANs: `python run.py --config FILE`.

The config names the job in `config.mode`. For example, `python run.py --config
configs/curriculum.py:digits` trains a classifier and evaluates it.
"""

import ast
import ctypes
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import reduce
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import FieldReference, config_flags
from ml_collections.config_flags import config_path, tuple_parser

_ARGUMENTS: list[str] = []  # of the command line, without those of `_MODEL_OPTION`
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, such as configs/curriculum.py or configs/curriculum.py:digits.",
    sys_argv=_ARGUMENTS,
)
# Options of a user's module, which no config declares.
_MODEL_OPTION = re.compile(r"--?config\.((?:\w+\.)*model\.options)\.(\w+)(?:=(.*))?", re.DOTALL)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for the files of the run. Default: runs/CONFIG, or CHECKPOINT/evaluate for an "
    "evaluation. A run that was interrupted resumes in its folder.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Run in several processes, detected from Slurm, Open MPI or a TPU pod."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, to run in several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

# By mode: the module whose `run` does the job, and a section or key that its config has.
_JOBS = {
    "train": "training.train",
    "evaluate": "evaluation.checkpoint",
    "gan": "gan.train",
    "sample": "gan.sampling",
    "study": "study.runner",
}
_REQUIRED_KEYS = {
    "train": "attack",
    "evaluate": "checkpoint",
    "gan": "generator",
    "sample": "generator",
    "study": "study",
}
_M_ARENA_MAX = -8  # of glibc's malloc.h
_EXIT_CODE_OF_WARNINGS = 3  # with config.evaluation.fail_on_warnings


def main(_: list[str]) -> None:
    """Run the job of the config. An error of the user ends it with a message of one line."""
    _limit_arenas()
    from jaxadv.runs import signals

    def exit_stopped(stopped: signals.Stopped) -> NoReturn:
        from jaxadv.runs import distributed

        command = shlex.join(["python", *sys.argv])
        # SIGTERM of a cluster is no failure. After Ctrl-C a shell expects 128 + the signal.
        code = 0 if stopped.signum == signal.SIGTERM else 128 + stopped.signum
        distributed.exit_all(code, f"Stopped ({stopped}). Resume with: {command}")

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
        code, message = 1, traceback.format_exc() if _DEBUG.value else f"error: {error}"
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

    config = _CONFIG.value
    logging.set_verbosity(logging.DEBUG if _DEBUG.value else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    devices.set_up_arithmetic()
    devices.set_up_cpu()
    of_processes = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _DISTRIBUTED.value or any(value is not None for value in of_processes):
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
    for line in set_defaults(config):
        print(line, flush=True)
    check(config, jax.device_count())
    raised_warnings = job.run(config, _get_workdir())
    failed = raised_warnings and config.evaluation.fail_on_warnings
    return _EXIT_CODE_OF_WARNINGS if failed else 0


def _get_workdir() -> Path:
    """Return --workdir or its default. The paths of the config must be expanded."""
    if _WORKDIR.value not in (None, "None"):
        from jaxadv.core.files import user_path

        return user_path(_WORKDIR.value)
    if _CONFIG.value.mode == "evaluate" and _CONFIG.value.checkpoint:
        return Path(_CONFIG.value.checkpoint) / "evaluate"
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    argument = re.sub(r"[/:]+", "_", argument)  # of a source such as folder:DIR
    return Path("runs") / "_".join(filter(None, (Path(path).stem, argument)))


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags and load the config. An error ends the program with a message of one line."""
    try:
        model_options = [match for match in map(_MODEL_OPTION.fullmatch, argv) if match]
        _ARGUMENTS[:] = [
            _expand_home(argument) for argument in argv if not _MODEL_OPTION.fullmatch(argument)
        ]
        arguments = flags.FLAGS(_ARGUMENTS)
        if len(arguments) > 1:
            raise ValueError(f"unknown argument {arguments[1]!r}: flags begin with --")
        if _WORKDIR.value == "":
            raise ValueError("--workdir is empty: pass a folder")
        if _CONFIG.value is None:
            raise ValueError("no config: pass --config configs/curriculum.py, or another")
        mode = _CONFIG.value.mode
        if mode not in _JOBS:
            raise ValueError(f"config.mode is {mode!r}: use {', '.join(_JOBS)}")
        if _REQUIRED_KEYS[mode] not in _CONFIG.value:
            raise ValueError(
                f"config.mode is {mode!r}, but the config has no key {_REQUIRED_KEYS[mode]!r}: "
                "pass a config of that mode"
            )
        for key, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
            _check_override(key, value)
        for match in model_options:
            _set_model_option(*match.groups())
        return arguments
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # ml_collections nests errors, and puts whole tracebacks into their messages.
        cause = next((arg for arg in error.args if isinstance(arg, BaseException)), error)
        lines = str((type(cause).__name__, *cause.args)[-1]).strip().split("\n")
        message = lines[-1:] if "Traceback (most recent call last):" in lines else lines
        raise SystemExit(f"error: {' '.join(' '.join(message).split())}") from None
    except Exception as error:  # raised by the code of the config file
        raise SystemExit(f"error: the config: {type(error).__name__}: {error}") from None


def _set_model_option(section: str, name: str, text: str | None) -> None:
    """Set an option of a model to a Python literal, or to a string if the text is none."""
    if text is None:
        raise ValueError(f"--config.{section}.{name} has no value: write it after =, without space")
    try:
        value = _parse_literal(text)
    except ValueError:
        value = text
    if section.split(".")[0] not in _CONFIG.value:
        raise ValueError(f"--config.{section}.{name}: the config has no section model")
    parent = reduce(getitem, section.split("."), _CONFIG.value)
    with parent.unlocked(), parent.ignore_type():
        parent[name] = value


def _expand_home(argument: str) -> str:
    """Expand `~` in `--config=~/file.py`, which shells do not."""
    if not argument.startswith(("--config=~", "-config=~")):
        return argument
    flag, path = argument.split("=", 1)
    return f"{flag}={os.path.expanduser(path)}"


def _check_override(key: str, value: Any) -> None:
    """Check the value of a flag `--config.KEY`; set an optional key to None for "None".

    Raises:
      ValueError: the key needs a value, or numbers.
    """
    *path, name = config_path.split(key)
    parent = reduce(getitem, path, _CONFIG.value)
    field = dict(parent.items(preserve_field_references=True))[name]
    is_optional = isinstance(field, FieldReference)  # a placeholder
    default = flags.FLAGS[f"config.{key}"].default
    if value in (None, "None") and is_optional:
        parent[name] = None
    elif value is None:
        raise ValueError(f"--config.{key} is None: pass a value")
    elif value == "" and default != "":
        raise ValueError(f"--config.{key} is empty: pass a value{', or None' * is_optional}")
    elif isinstance(value, tuple) and default and _are_numbers(default) and not _are_numbers(value):
        raise ValueError(
            f"--config.{key}={','.join(map(str, value))} is not a tuple of numbers: "
            "write 8/255, or '(4/255, 8/255)'"
        )


def _are_numbers(values: Iterable) -> bool:
    return all(isinstance(value, int | float) for value in values)


class _FloatParser(flags.FloatParser):
    """Parse numbers, fractions such as 8/255, and None."""

    def parse(self, argument: Any) -> Any:
        if argument == "None":
            return None
        is_fraction = isinstance(argument, str) and "/" in argument
        return super().parse(_parse_literal(argument) if is_fraction else argument)


class _IntegerParser(flags.IntegerParser):
    """Parse integers, and None."""

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else super().parse(argument)


class _BooleanParser(flags.BooleanParser):
    """Parse booleans, and None."""

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else super().parse(argument)


class _TupleParser(tuple_parser.TupleParser):
    """Parse tuples in which numbers may be fractions: 8/255, or (4/255, 8/255)."""

    def parse(self, argument: Any) -> tuple:
        if isinstance(argument, list):  # of a repeated flag
            return tuple(value for part in argument for value in self.parse(part))
        if isinstance(argument, str) and "/" in argument:
            with suppress(ValueError):  # a name that contains a slash
                value = _parse_literal(argument)
                return super().parse(tuple(value) if isinstance(value, list) else value)
        return super().parse(argument)


def _parse_literal(text: str) -> Any:
    """Return the value of a Python literal in which numbers may be fractions."""
    try:
        return ast.literal_eval(_Fractions().visit(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError("it is not a number, nor a fraction such as 8/255") from None


class _Fractions(ast.NodeTransformer):
    """Replace divisions of two numbers by their results, since `8/255` is not a literal."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, ast.Div):
            return node
        return ast.Constant(ast.literal_eval(node.left) / ast.literal_eval(node.right))


config_flags.register_flag_parser_for_type(float, _FloatParser())
config_flags.register_flag_parser_for_type(int, _IntegerParser())
config_flags.register_flag_parser_for_type(bool, _BooleanParser())
config_flags.register_flag_parser_for_type(tuple, _TupleParser())


if __name__ == "__main__":
    from jaxadv.reports.terminal import protect_output

    protect_output()
    app.run(main, flags_parser=_parse_flags)
