"""Pickles of weights, read without running the code that a pickle may name.

A pickle is a program that can call any function. The interpreter here knows the few opcodes that
PyTorch and NumPy write. It imports nothing: a name in a pickle is a `Name`, and a call of a name
calls a function of this project. Names without such a function can be mentioned, but not called.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np

from jaxadv.core.types import UserError

_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class Name(NamedTuple):
    """A function or a class that a pickle names; it is not imported."""

    module: str
    name: str


Functions = Mapping[Name, Callable[..., Any]]


def load(
    file: BufferedIOBase, functions: Functions, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Load one pickle from a file, at its position.

    Ordered dictionaries become dictionaries, sets become lists, and frozen sets become tuples.

    Args:
      file: open for reading.
      functions: what the pickle may call, besides the types of Python in it. They must not copy
        their arguments, so that a small pickle cannot fill the memory.
      persistent: returns the object of a persistent id.

    Raises:
      UserError: the pickle calls anything else. The message does not name the file.
      Exception: the pickle is damaged.
    """
    functions = {**_PYTHON_FUNCTIONS, **functions}
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below the marks
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case literal if literal in _LITERALS:
                stack.append(argument)
            case constant if constant in _CONSTANTS:
                stack.append(_CONSTANTS[constant])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE" | "FROZENSET":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items, stack = stack, below.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [(key, value)])
            case "SETITEMS":
                items, stack = stack, below.pop()
                _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_call(functions, name, arguments))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "BINPERSID" if persistent is not None:
                stack.append(persistent(stack.pop()))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "STOP":
                return stack.pop()
            case name:
                raise UnpicklingError(f"the pickle has the opcode {name}")
    raise UnpicklingError("the pickle has no end")


def _name(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise UnpicklingError("a name is not text")
    return Name("builtins" if module == "__builtin__" else module, name)  # Python 2


def _call(functions: Functions, name: Any, arguments: Any) -> Any:
    if not isinstance(name, Name):
        raise UnpicklingError("the pickle calls what is not a function")
    if name not in functions:
        raise UserError(
            f"it is a pickle that asks for {printable('.'.join(name))}, which could run code: save "
            "the weights alone, such as torch.save(model.state_dict(), FILE)"
        )
    return functions[name](*arguments)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise UnpicklingError("the pickle appends to what is not a list")
    target.extend(items)


def _set_items(target: Any, items: Any) -> None:
    if not isinstance(target, dict):
        raise UnpicklingError("the pickle sets items of what is not a dictionary")
    for key, value in items:
        # The hash of nested tuples is recursive, without a limit.
        if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
            raise UnpicklingError("a dictionary has nested keys")
        target[key] = value


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, NumpyArray | _DType):
        target.set_state(*state)
    elif not isinstance(target, dict):  # whose state is attributes, such as versions of layers
        raise UnpicklingError("the pickle sets attributes")


def _argument(argument: Any = (), *_: Any) -> Any:
    return argument


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    """Return an ordered dictionary of Python 2, whose items are a list of lists."""
    dictionary: dict[Any, Any] = {}
    if pairs:
        _set_items(dictionary, pairs)
        pairs.clear()  # a pickle that uses the list many times takes no more memory
    return dictionary


class _DType:
    """A data type of NumPy in a pickle."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        self.code = code
        self.byte_order: Any = "="

    def set_state(self, version: Any, byte_order: Any, *_: Any) -> None:
        self.byte_order = byte_order


class NumpyArray:
    """An array or a scalar of NumPy in a pickle.

    Attributes:
      objects: elements of an array of objects; None if it has numbers.
    """

    def __init__(self, *_: Any) -> None:
        self.objects: list[Any] | None = None
        self._dtype: Any = None
        self._shape: Any = ()
        self._data: Any = b""
        self._is_fortran: Any = False

    def set_state(self, version: Any, shape: Any, dtype: Any, is_fortran: Any, data: Any) -> None:
        """Set the content as `numpy.ndarray.__setstate__` does."""
        self._shape, self._dtype, self._is_fortran = shape, dtype, is_fortran
        if isinstance(data, list):
            self.objects = data
        else:
            self._data = data

    @property
    def is_numeric(self) -> bool:
        """Whether the elements are real numbers."""
        code = getattr(self._dtype, "code", None)
        return isinstance(code, str) and re.fullmatch(r"[biuf]\d", code) is not None

    def to_array(self) -> np.ndarray:
        """Return the array, which must be numeric."""
        # In pickles of protocol 2, bytes are text.
        data = self._data.encode("latin-1") if isinstance(self._data, str) else self._data
        dtype = np.dtype(self._dtype.code).newbyteorder(self._dtype.byte_order)
        return np.frombuffer(data, dtype).reshape(
            self._shape, order="F" if self._is_fortran else "C"
        )


def _scalar(dtype: Any, data: Any = b"") -> NumpyArray:
    scalar = NumpyArray()
    scalar.set_state(1, (), dtype, False, data)
    return scalar


_PYTHON_FUNCTIONS: Functions = {
    Name("collections", "OrderedDict"): _dictionary,
    Name("builtins", "dict"): _dictionary,
    Name("collections", "Counter"): _argument,
    **{
        Name("builtins", name): _argument
        for name in ("set", "frozenset", "bytes", "bytearray", "complex")
    },
    Name("_codecs", "encode"): _argument,  # bytes in pickles of protocol 2
}
NUMPY_FUNCTIONS: Functions = {
    Name("numpy", "dtype"): _DType,
    **{Name(f"numpy.{core}.multiarray", "_reconstruct"): NumpyArray for core in ("core", "_core")},
    **{Name(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}
"""Functions in pickles of NumPy, which return `NumpyArray`."""


def printable(text: str) -> str:
    r"""Return text of a file for a message: without control characters, at most 200 characters.

    >>> printable("fc\n.weight")
    'fc\\n.weight'
    """
    return repr(text[:200])[1:-1]
