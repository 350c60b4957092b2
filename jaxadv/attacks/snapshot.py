"""Snapshots of Python functions: their code and all values that it can reach.

Tracing a model takes tens of milliseconds, more than an attack on a few images of a small model. It
can be skipped if nothing that the function can reach has changed. This is known for code,
constants, JAX arrays (which are immutable), containers of these, and Linen modules of Flax. For all
other values, such as NumPy arrays, it is not known, and the function is traced again. Inputs from
outside of Python, such as files or clocks, are not detected.
"""

import dataclasses
import dis
import functools
import importlib.util
from collections.abc import Hashable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen
from flax.core import FrozenDict

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, type(...))
# Code that uses these names may reach any value.
_UNBOUNDED = {"__import__", "eval", "exec", "globals", "locals", "vars"}
_IMPORT = dis.opmap["IMPORT_NAME"]
# Packages whose functions and classes do not change after their import.
_PACKAGES = ("builtins", "functools", "operator", "math", "numpy", "jax", "flax", "jaxadv")


class Snapshot(NamedTuple):
    """Everything that the result of a function can depend on.

    Attributes:
      structure: code and values other than arrays, with array types in place of arrays.
      arrays: JAX arrays that the function can reach.
    """

    structure: Hashable
    arrays: tuple[jax.Array, ...]


class _UnknownError(Exception):
    """The function can reach a value that may change unnoticed."""


def take_snapshot(function: Any) -> Snapshot | None:
    """Return a snapshot of a function, or None if it can reach values that may change unnoticed."""
    walk = _Walk()
    try:
        structure = walk.describe(function)
    except _UnknownError:
        return None
    return Snapshot(structure, tuple(walk.arrays))


class _Walk:
    """A traversal of all values that a function can reach, each object once."""

    def __init__(self) -> None:
        self.arrays: list[jax.Array] = []
        self._positions: dict[int, int] = {}  # id of a visited object -> position in `_visited`
        self._visited: list[Any] = []  # the references keep ids from being reused

    def describe(self, value: Any) -> Hashable:
        """Return a hashable description of a value and of all that it can reach."""
        if isinstance(value, np.generic):
            return value.dtype, value.tobytes()
        if type(value) in _CONSTANTS:
            return type(value), repr(value) if isinstance(value, (float, complex)) else value
        if id(value) in self._positions:
            return "visited", self._positions[id(value)]
        self._positions[id(value)] = len(self._visited)
        self._visited.append(value)
        return self._describe_new(value)

    def _describe_new(self, value: Any) -> Hashable:
        match value:
            case jax.core.Tracer():
                raise _UnknownError
            case jax.Array():
                self.arrays.append(value)
                return "array", jax.typeof(value)
            case np.dtype():
                return value
            case dict() | FrozenDict() if type(value) in (dict, FrozenDict):
                items = tuple((name, self.describe(entry)) for name, entry in value.items())
                return type(value), items
            case list() | tuple() if type(value) in (list, tuple) or _is_package_class(type(value)):
                return type(value), tuple(map(self.describe, value))
            case functools.partial() if _is_package_class(type(value)):
                return "partial", self._all(value.func, value.args, value.keywords)
            case MethodType():
                return "method", self._all(value.__func__, value.__self__)
            case FunctionType():
                return self._describe_function(value)
            case linen.Module():
                return "module", self._all(type(value), dict(_fields(value)))
            case type():
                return value if _is_package_class(value) else self._describe_class(value)
            case ModuleType():
                return _constant_of(value, value.__name__)
            case BuiltinFunctionType() if isinstance(value.__self__, ModuleType):
                return _constant_of(value, value.__self__.__name__)
            case np.ufunc() | jax.custom_jvp() | jax.custom_vjp():
                return _constant_of(value, getattr(value, "__module__", "numpy"))
        if _is_frozen_dataclass(value) and _is_package_class(type(value)):
            entries = [getattr(value, field.name) for field in dataclasses.fields(value)]
            return type(value), self._all(*entries)
        if _is_jitted(value):
            return "jitted", self._all(value.__wrapped__)
        raise _UnknownError

    def _all(self, *values: Any) -> Hashable:
        return tuple(map(self.describe, values))

    def _describe_function(self, function: FunctionType) -> Hashable:
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        attributes = function.__dict__
        described = self._all(cells, function.__defaults__, function.__kwdefaults__, attributes)
        if _is_in_package(function.__code__.co_filename):
            return function.__code__, described
        if _is_unbounded(function.__code__):
            raise _UnknownError
        reached = {
            name: function.__globals__[name]
            for name in sorted(set(_names(function.__code__)))
            if name in function.__globals__
        }
        return function.__code__, described, self.describe(reached)

    def _describe_class(self, kind: type) -> Hashable:
        """Describe a class of the user, which must be a Linen module."""
        if not issubclass(kind, linen.Module):
            raise _UnknownError
        own = {
            name: entry
            for name, entry in vars(kind).items()
            if not name.startswith("__") or name == "__call__"
        }
        methods = {name: e for name, e in own.items() if isinstance(e, FunctionType)}
        constants = {name: e for name, e in own.items() if isinstance(e, (*_CONSTANTS, jax.Array))}
        if len(methods) + len(constants) + len(_FLAX_ATTRIBUTES & own.keys()) < len(own):
            raise _UnknownError
        return kind, self._all(methods, constants, kind.__bases__)


# Attributes that Flax adds to each module class.
_FLAX_ATTRIBUTES = {"_state", "_parent_ref", "_id", "_abc_impl", "scope", "parent", "name"}


def _fields(module: linen.Module) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a module that is not bound to variables."""
    if module.scope is not None:
        raise _UnknownError
    for name in module.__dataclass_fields__:
        if name != "parent":
            yield name, getattr(module, name)


def _constant_of(value: Any, package: str) -> Hashable:
    """Return a value of a package that does not change after its import."""
    if not _is_of_package(package):
        raise _UnknownError
    return value


def _is_package_class(kind: type) -> bool:
    return _is_of_package(kind.__module__)


def _is_of_package(name: str) -> bool:
    return name.partition(".")[0] in _PACKAGES


@functools.cache
def _is_in_package(filename: str) -> bool:
    return any(root in Path(filename).parents for root in _roots())


@functools.cache
def _roots() -> tuple[Path, ...]:
    specs = filter(None, map(importlib.util.find_spec, _PACKAGES))
    return tuple(Path(root) for spec in specs for root in spec.submodule_search_locations or ())


def _is_frozen_dataclass(value: Any) -> bool:
    parameters = getattr(value, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _is_jitted(value: Any) -> bool:
    """Return whether the value is a function returned by `jax.jit`."""
    return hasattr(value, "lower") and hasattr(value, "__wrapped__")


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@functools.cache
def _is_unbounded(code: CodeType) -> bool:
    """Return whether code imports, or may read names that it does not spell out."""
    if not _UNBOUNDED.isdisjoint(code.co_names) or _IMPORT in code.co_code[::2]:
        return True
    return any(_is_unbounded(inner) for inner in code.co_consts if isinstance(inner, CodeType))


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that code and its inner functions read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
