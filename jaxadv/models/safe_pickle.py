"""Pickles of weights, read without running the code that a pickle may name.

A pickle can call any function. The reader replaces the few that weights need (ordered dictionaries,
tensors of PyTorch, arrays of NumPy) by functions of this project, and refuses all others.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from typing import Any

import numpy as np

from jaxadv.core.types import UserError

_PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "dict"): dict,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # bytes in pickles of protocol 2
}


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows the given functions only."""

    def __init__(
        self,
        file: BufferedIOBase,
        functions: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(file, encoding="latin-1")  # strings of Python 2, as in arrays of NumPy
        self._functions = {**_PLAIN, **functions}
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._functions[module, name]
        except KeyError:
            raise UserError(
                f"it is a pickle that asks for {module}.{name}, which could run code: save the "
                "weights alone, such as torch.save(model.state_dict(), FILE)"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to other data")
        return self._persistent(pid)


def load(
    file: BufferedIOBase,
    functions: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Load one pickle from a file, at its position.

    Args:
      file: open for reading.
      functions: what the pickle may call, by module and name, besides dictionaries and bytes.
      persistent: returns the object of a persistent id.

    Raises:
      UserError: the pickle asks for anything else. The message does not name the file.
    """
    return _Unpickler(file, functions, persistent).load()


class _DType:
    """A data type of NumPy in a pickle."""

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        self.code = code
        self.byte_order: Any = "="

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = state[1]

    def as_numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.byte_order)


class _Array:
    """An array of NumPy in a pickle: numbers in bytes, or a list of objects."""

    def __init__(self, *_: Any) -> None:
        self.content: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, list):
            self.content = data[0] if shape == () else data
            return
        data = data.encode("latin-1") if isinstance(data, str) else data
        order: Any = "F" if is_fortran else "C"
        self.content = np.frombuffer(data, dtype.as_numpy()).reshape(shape, order=order)


def _scalar(dtype: _DType, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype.as_numpy())[0]


NUMPY_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "the class of all arrays",  # never called
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in {"_reconstruct": _Array, "scalar": _scalar}.items()
    },
}
"""Functions in pickles of NumPy arrays; `plain` turns their results into arrays."""


def plain(tree: Any) -> Any:
    """Replace what `NUMPY_FUNCTIONS` returned in nested dictionaries and sequences by arrays."""
    if isinstance(tree, _Array):
        return plain(tree.content) if isinstance(tree.content, Mapping | list) else tree.content
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return tree
