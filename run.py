"""Trains or evaluates a robust classifier: `python run.py --config configs/curriculum.py`."""

import ast
import os
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


class _Fractions(ast.NodeTransformer):
    """Replaces the division of two numbers by its result: `8/255` is no literal of Python."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, ast.Div):
            return node
        return ast.Constant(ast.literal_eval(node.left) / ast.literal_eval(node.right))


def _literal(text: str) -> Any:
    """Returns the value of a Python literal in which numbers may be fractions."""
    try:
        return ast.literal_eval(_Fractions().visit(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError("it is no number, and no fraction such as 8/255") from None


class _FloatParser(flags.FloatParser):
    """Reads numbers, fractions such as 8/255, and None."""

    def parse(self, argument: Any) -> Any:
        if argument == "None":
            return None
        is_fraction = isinstance(argument, str) and "/" in argument
        return super().parse(_literal(argument) if is_fraction else argument)


class _IntegerParser(flags.IntegerParser):
    """Reads integers, and None."""

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else super().parse(argument)


class _TupleParser(tuple_parser.TupleParser):
    """Reads tuples in which numbers may be fractions: 8/255, or (4/255, 8/255)."""

    def parse(self, argument: Any) -> tuple:
        if isinstance(argument, list):  # of a flag that may be repeated
            return tuple(value for part in argument for value in self.parse(part))
        if isinstance(argument, str) and "/" in argument:
            with suppress(ValueError):  # a name with a slash in it
                value = _literal(argument)
                return super().parse(tuple(value) if isinstance(value, list) else value)
        return super().parse(argument)


config_flags.register_flag_parser_for_type(float, _FloatParser())
config_flags.register_flag_parser_for_type(int, _IntegerParser())
config_flags.register_flag_parser_for_type(tuple, _TupleParser())


def _settle(key: str, value: Any) -> None:
    """Checks what the command line gave a key of the config; sets `None` where it is a string.

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
        raise ValueError(f"--config.{key} is None: give a value")
    elif value == "" and default != "":
        raise ValueError(f"--config.{key} is empty: give a value{', or None' * is_optional}")
    elif isinstance(value, tuple) and default and _are_numbers(default) and not _are_numbers(value):
        raise ValueError(
            f"--config.{key}={','.join(map(str, value))} is no tuple of numbers: "
            "write 8/255, or '(4/255, 8/255)'"
        )


def _are_numbers(values: Iterable) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config; what is wrong with them is told in one line."""
    try:
        rest = flags.FLAGS([_expand_config(argument) for argument in argv])
        if len(rest) > 1:
            raise ValueError(f"unknown argument {rest[1]!r}: flags begin with --")
        if _WORKDIR.value == "":
            raise ValueError("--workdir is empty: give a folder")
        if _CONFIG.value is None:
            raise ValueError("no config: give --config configs/curriculum.py, or another")
        if _CONFIG.value.mode not in _JOBS:
            raise ValueError(f"config.mode is {_CONFIG.value.mode!r}: use {', '.join(_JOBS)}")
        if _SECTIONS[_CONFIG.value.mode] not in _CONFIG.value:
            raise ValueError(f"config.mode {_CONFIG.value.mode} is not of this config")
        for key, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
            _settle(key, value)
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # ml_collections puts errors in errors, and whole tracebacks in their messages.
        cause = next((arg for arg in error.args if isinstance(arg, BaseException)), error)
        lines = str((type(cause).__name__, *cause.args)[-1]).strip().split("\n")
        told = lines[-1:] if "Traceback (most recent call last):" in lines else lines
        raise SystemExit(f"error: {' '.join(' '.join(told).split())}") from None
    except Exception as error:  # of the config file, which is a program of the user's
        raise SystemExit(f"error: the config: {type(error).__name__}: {error}") from None


def _expand_config(argument: str) -> str:
    """Expands `~` in `--config=~/file.py`, which no shell does."""
    if not argument.startswith(("--config=~", "-config=~")):
        return argument
    flag, path = argument.split("=", 1)
    return f"{flag}={os.path.expanduser(path)}"


def _workdir() -> Path:
    """Returns the folder of the run, once the paths of the config are expanded."""
    if _WORKDIR.value not in (None, "None"):
        from jaxadv.files import user_path

        return user_path(_WORKDIR.value)
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
    try:
        from jaxadv import processes
        from jaxadv.types import UserError
    except ValueError as error:  # JAX reads its environment variables when it is imported
        raise SystemExit(f"error: {error}: correct that environment variable") from None

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
    from jaxadv import parallel, processes, terminal
    from jaxadv.types import UserError

    logging.set_verbosity(logging.DEBUG if _DEBUG.value else logging.WARNING)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    parallel.set_up_arithmetic()
    parallel.set_up_cpu()
    if _DISTRIBUTED.value or _COORDINATOR.value or _NUM_PROCESSES.value:
        processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        terminal.protect_output()  # again, for it is another stream
        if _CONFIG.value.mode not in _TOGETHER:
            raise UserError(f"config.mode {_CONFIG.value.mode} runs in one process only")
    if _CONFIG.value.get("compilation_cache", True):
        parallel.keep_compilations()
    parallel.check_devices()
    # Imports what takes seconds only once the flags are right.
    from jaxadv.config import expand_paths

    job = import_module(f"jaxadv.{_JOBS[_CONFIG.value.mode]}")
    expand_paths(_CONFIG.value)
    warned = job.run(_CONFIG.value, _workdir())
    return _WARNED if warned and _CONFIG.value.evaluation.fail_on_warnings else 0


if __name__ == "__main__":
    from jaxadv.terminal import protect_output

    protect_output()
    app.run(main, flags_parser=_parse)
