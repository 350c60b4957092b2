"""Files of `torch.save`, read without PyTorch.

A file of PyTorch 1.6 or later is a zip archive of one pickle and the contents of its storages. An
older file is a sequence of pickles (magic number, protocol version, system, content, keys of the
storages), followed by the contents. In both, a tensor is a view of a storage.
"""

import math
import zipfile
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxadv.core.types import UserError
from jaxadv.models import safe_pickle
from jaxadv.models.safe_pickle import Functions, Name

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_DTYPES: dict[str, Any] = {
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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}


class _Storage:
    """A one-dimensional array whose content is read after the pickle.

    Attributes:
      kind: class of the storage, or the data type of a tensor that is not supported.
      content: None until it is read.
    """

    def __init__(self, kind: Any) -> None:
        if not isinstance(kind, Name):
            raise ValueError("a storage has no type")
        self.kind = kind.name
        self.content: np.ndarray | None = None

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_DTYPES[self.kind])

    def set_content(self, data: bytes, order: str) -> None:
        content = np.frombuffer(data, self.dtype)
        self.content = content if order == "little" else content.byteswap()


def _unsupported_type(storage: _Storage) -> UserError:
    return UserError(
        f"it has tensors of type {safe_pickle.printable(storage.kind)}, which is not supported: "
        "save model.float().state_dict()"
    )


class Tensor:
    """A view of a storage, as the file describes it; offset and strides count elements."""

    def __init__(
        self, storage: Any, offset: Any = 0, shape: Any = (), strides: Any = (), *_: Any
    ) -> None:
        self._storage, self._offset, self._shape, self._strides = storage, offset, shape, strides

    def to_array(self) -> np.ndarray:
        """Return the view as an array, without a copy.

        Raises:
          UserError: its data type is not supported, or it repeats elements.
          ValueError: it does not fit its storage.
        """
        storage, offset = self._storage, self._offset
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        if storage.kind not in _DTYPES or storage.kind.startswith("Complex"):
            raise _unsupported_type(storage)
        shape, strides = tuple(self._shape), tuple(self._strides)
        if not all(isinstance(size, int) and size >= 0 for size in (offset, *shape, *strides)):
            raise ValueError("a tensor has a wrong shape")
        steps = zip(shape, strides, strict=True)
        last = offset + sum((size - 1) * stride for size, stride in steps)
        content, num_elements = storage.content, math.prod(shape)
        if content is None or (num_elements and last >= len(content)):
            raise ValueError("a tensor exceeds its storage")
        if num_elements > len(content):
            raise UserError(
                "it has a tensor with more elements than its storage, as tensor.expand returns: "
                "save tensor.clone()"
            )
        if not num_elements:
            return np.zeros(shape, content.dtype)
        bytes_per_step = [stride * content.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(
            content[offset:], shape, bytes_per_step, writeable=False
        )


def _unsupported(kind: Any) -> Tensor:
    return Tensor(_Storage(kind))


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """Return a tensor whose data type is no class of storages, such as float8_e4m3fn."""
    return _unsupported(dtype)


_FUNCTIONS: Functions = {
    Name("torch._utils", "_rebuild_tensor"): Tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): Tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Name("torch._utils", "_rebuild_qtensor"): lambda *_: _unsupported(Name("torch", "quantized")),
    Name("torch._utils", "_rebuild_sparse_tensor"): lambda *_: _unsupported(
        Name("torch", "sparse")
    ),
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    Name("torch.serialization", "_get_layout"): lambda layout: layout,
    Name("torch", "device"): lambda *device: device,
    Name("torch", "Size"): lambda sizes: sizes,
    **safe_pickle.NUMPY_FUNCTIONS,
}


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of `torch.save`, with `Tensor` and `NumpyArray` for arrays.

    Raises:
      UserError: loading could run code, or the file is of another format.
      Exception: the file is damaged.
    """
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
        file.seek(0)
        if not is_archive:
            return _read_sequence(file)
        with zipfile.ZipFile(file) as archive:
            _check_archive(archive, path.stat().st_size)
            return _read_archive(archive)


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Check that an archive is one of `torch.save`, and that reading it takes no more memory."""
    names = archive.namelist()
    is_torchscript = any(name.endswith("/constants.pkl") for name in names)
    if is_torchscript or sum(name.endswith("/data.pkl") for name in names) != 1:
        raise UserError(
            "it is a zip archive, but not of torch.save"
            f"{' (TorchScript)' if is_torchscript else ''}: save the weights with "
            "torch.save(model.state_dict(), FILE)"
        )
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which files of torch.save are not")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries are larger than the file")


def _read_archive(archive: zipfile.ZipFile) -> Any:
    (pickle_name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    folder = pickle_name.removesuffix("data.pkl")
    has_order = f"{folder}byteorder" in archive.namelist()
    order = archive.read(f"{folder}byteorder").decode() if has_order else "little"
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, kind, key, _, _ = pid
        if not isinstance(key, str):
            raise ValueError("the key of a storage is not text")
        if key not in storages:
            storages[key] = _Storage(kind)
            if storages[key].kind in _DTYPES:
                storages[key].set_content(archive.read(f"{folder}data/{key}"), order)
        return storages[key]

    return safe_pickle.load(BytesIO(archive.read(pickle_name)), _FUNCTIONS, storage)


def _read_sequence(file: BufferedIOBase) -> Any:
    def load(persistent: Callable[[Any], Any] | None = None) -> Any:
        return safe_pickle.load(file, _FUNCTIONS, persistent)

    if load() != _MAGIC_NUMBER:
        raise ValueError("it is a pickle, but not of torch.save")
    load()  # protocol version
    order: Any = "little" if load()["little_endian"] else "big"
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, kind, key, _, _, view = pid
        if not isinstance(key, str) or view is not None:
            raise ValueError("it has views of storages: save it again with a newer PyTorch")
        return storages.setdefault(key, _Storage(kind))

    content = load(storage)
    for key in load():
        if not isinstance(key, str):
            raise ValueError("the key of a storage is not text")
        current = storages[key]
        if current.kind not in _DTYPES:  # the number of bytes is not known
            raise _unsupported_type(current)
        num_elements = int.from_bytes(file.read(8), order)
        current.set_content(file.read(num_elements * current.dtype.itemsize), order)
    return content
