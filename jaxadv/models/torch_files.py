"""Files of `torch.save`, read without PyTorch.

A file of PyTorch 1.6 or later is a zip archive of one pickle and the contents of its storages. An
older file is a sequence of pickles (magic number, protocol version, system, content, keys of the
storages), followed by the contents. In both, a tensor is a view of a storage.
"""

import zipfile
from collections.abc import Callable, Mapping
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxadv.models import safe_pickle

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage:
    """A one-dimensional array whose content is read after the pickle."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.content: np.ndarray | None = None


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def to_array(self) -> np.ndarray:
        content, dtype = self.storage.content, self.storage.dtype
        if not all(isinstance(size, int) and size >= 0 for size in (self.offset, *self.shape)):
            raise ValueError("a tensor has a wrong shape")
        if not all(isinstance(stride, int) and stride >= 0 for stride in self.strides):
            raise ValueError("a tensor has wrong strides")
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        is_empty = 0 in self.shape
        if content is None or (not is_empty and last >= len(content)):
            raise ValueError("a tensor exceeds its storage")
        if is_empty:
            return np.zeros(self.shape, dtype)
        strides = [stride * dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(content[self.offset :], self.shape, strides)
        return np.array(view)


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): lambda sizes: tuple(sizes),
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    **safe_pickle.NUMPY_FUNCTIONS,
}


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of `torch.save`: tensors as arrays, in nested dictionaries.

    Raises:
      UserError: loading could run code.
      ValueError: the file is damaged, or was not written by `torch.save`; or another error of the
        readers of zip archives and pickles.
    """
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
        file.seek(0)
        if not is_archive:
            return _read_sequence(file)
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive)


def _read_archive(archive: zipfile.ZipFile) -> Any:
    (pickle_name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    folder = pickle_name.removesuffix("data.pkl")
    has_order = f"{folder}byteorder" in archive.namelist()
    order = archive.read(f"{folder}byteorder").decode() if has_order else "little"
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise ValueError("it refers to something other than a storage")
        if key not in storages:
            storages[key] = _Storage(dtype)
            data = archive.read(f"{folder}data/{key}")
            storages[key].content = _numbers(data, storages[key].dtype, order)
        return storages[key]

    file = BytesIO(archive.read(pickle_name))
    return _to_arrays(safe_pickle.load(file, _FUNCTIONS, storage))


def _read_sequence(file: BufferedIOBase) -> Any:
    def load(persistent: Callable[[Any], Any] | None = None) -> Any:
        return safe_pickle.load(file, _FUNCTIONS, persistent)

    if load() != _MAGIC_NUMBER:
        raise ValueError("it is a pickle, but not of torch.save")
    load()  # protocol version
    order = "little" if load()["little_endian"] else "big"
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple) -> _Storage:
        kind, dtype, key, _, _, view = pid
        if kind != "storage" or view is not None:
            raise ValueError("it has views of storages: save it again with a newer PyTorch")
        return storages.setdefault(key, _Storage(dtype))

    tree = load(storage)
    for key in load():
        num_elements = int.from_bytes(file.read(8), order)  # type: ignore[arg-type]
        data = file.read(num_elements * storages[key].dtype.itemsize)
        storages[key].content = _numbers(data, storages[key].dtype, order)
    return _to_arrays(tree)


def _numbers(data: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    numbers = np.frombuffer(data, dtype)
    return numbers if order == "little" else numbers.byteswap()


def _to_arrays(tree: Any) -> Any:
    if isinstance(tree, _Tensor):
        return tree.to_array()
    if isinstance(tree, Mapping):
        return {key: _to_arrays(value) for key, value in tree.items()}
    return safe_pickle.plain(tree)
