"""Flags of the command line: the config, its values, and the options of a run."""

import ast
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import reduce
from importlib.resources import files
from operator import getitem
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import FieldReference, config_flags
from ml_collections.config_flags import config_path, tuple_parser

_ARGUMENTS: list[str] = []  # of the command line, without those of `_MODEL_OPTION`
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config: a name such as curriculum or curriculum:digits, or a file such as "
    "configs/curriculum.py:digits.",
    sys_argv=_ARGUMENTS,
)
# Options of a user's module, which no config declares.
_MODEL_OPTION = re.compile(r"--?config\.((?:\w+\.)*model\.options)\.(\w+)(?:=(.*))?", re.DOTALL)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for the files of the run. Default: runs/CONFIG, or for an evaluation a folder in that "
    "of the training. A run that was interrupted resumes in its folder.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Run in several processes, detected from Slurm, Open MPI or a TPU pod."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, to run in several processes."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
QUIET = flags.DEFINE_bool("quiet", False, "Print warnings and errors only.")
JSON = flags.DEFINE_bool(
    "json", False, "Print the results as JSON to stdout, and everything else to stderr."
)
DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

_REQUIRED_KEYS = {  # by mode, a section or key that its config has
    "train": "attack",
    "evaluate": "checkpoint",
    "gan": "generator",
    "sample": "generator",
    "study": "study",
}


_FOLDER = Path(str(files("jaxadv.configs")))


def config_names() -> list[str]:
    """Return the names of the configs of the package, without those of the study's trainings."""
    others = ("__init__", "attack_suites", "default")
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in others)


def find_config(name: str) -> str:
    """Return the path of a config, given its path, or its name in the package.

    A path configs/NAME.py that does not exist is that of the package too.

    >>> find_config("curriculum:digits").endswith("curriculum.py:digits")
    True

    Args:
      name: such as fast, experiments/randomness or mine/fast.py, with an argument after a colon.

    Raises:
      ValueError: there is no such file, and the package has no config of that name.
    """
    given, colon, argument = name.partition(":")
    path = Path(os.path.expanduser(given))
    if path.suffix != ".py" or (not path.exists() and path.parts[0] == "configs"):
        in_package = _FOLDER / f"{given.removeprefix('configs/').removesuffix('.py')}.py"
        path = in_package if in_package.exists() else path
    if not path.is_file():
        raise ValueError(
            f"no config {given!r}: use one of {', '.join(config_names())}, or the path of a file"
        )
    return f"{path}{colon}{argument}"


def config_source() -> tuple[str, str]:
    """Return the path of the config file and the argument after its colon."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return path, argument


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags and load the config. An error ends the program with a message of one line."""
    try:
        model_options = [match for match in map(_MODEL_OPTION.fullmatch, argv) if match]
        _ARGUMENTS[:] = [argument for argument in argv if not _MODEL_OPTION.fullmatch(argument)]
        _expand_config(_ARGUMENTS)
        arguments = flags.FLAGS(_ARGUMENTS)
        if len(arguments) > 1:
            raise ValueError(f"unknown argument {arguments[1]!r}: flags begin with --")
        if WORKDIR.value == "":
            raise ValueError("--workdir is empty: pass a folder")
        if CONFIG.value is None:
            raise ValueError("no config: pass --config curriculum, or another")
        mode = CONFIG.value.mode
        if mode not in _REQUIRED_KEYS:
            raise ValueError(f"config.mode is {mode!r}: use {', '.join(_REQUIRED_KEYS)}")
        if _REQUIRED_KEYS[mode] not in CONFIG.value:
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
        text = " ".join(" ".join(message).split())
        raise SystemExit(f"error: {text.removeprefix('ValueError: ')}") from None
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
    if section.split(".")[0] not in CONFIG.value:
        raise ValueError(f"--config.{section}.{name}: the config has no section model")
    parent = reduce(getitem, section.split("."), CONFIG.value)
    with parent.unlocked(), parent.ignore_type():
        parent[name] = value


def _expand_config(arguments: list[str]) -> None:
    """Replace the name of a config by its path. Shells do not expand `~` in `--config=~/x.py`."""
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            if equals:
                arguments[index] = f"{flag}={find_config(value)}"
            elif index + 1 < len(arguments):
                arguments[index + 1] = find_config(arguments[index + 1])


def _check_override(key: str, value: Any) -> None:
    """Check the value of a flag `--config.KEY`; set an optional key to None for "None".

    Raises:
      ValueError: the key needs a value, or numbers.
    """
    *path, name = config_path.split(key)
    parent = reduce(getitem, path, CONFIG.value)
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
