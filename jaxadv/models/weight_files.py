"""Files of published weights: PyTorch, safetensors, and NumPy dictionaries of Haiku networks.

No file is executed: pickles may contain arrays and dictionaries only.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxadv.core.types import UserError
from jaxadv.models import safe_pickle
from jaxadv.models.haiku_names import to_state_dict
from jaxadv.models.torch_files import read_torch_file

StateDict = dict[str, np.ndarray]
"""Arrays by the names of PyTorch, such as `block1.layer.0.conv1.weight`, in its layout."""

# Where training scripts put the state dict in a file; the first that is there is used.
_KEYS = ("model_state_dict", "state_dict", "model", "net")
_DAMAGED = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError,
    OverflowError, MemoryError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_state_dict(path: Path) -> StateDict:
    """Read the state dict of a file: `.pt`, `.pth` or `.bin`, `.safetensors`, or `.npy`.

    A PyTorch file may be a state dict, or a dictionary that has one under `model_state_dict`,
    `state_dict`, `model` or `net`. An `.npy` file has the parameters and the state of a Haiku
    network, as DeepMind publishes them.

    Raises:
      UserError: the file does not exist, is damaged, has no state dict, or could run code.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: pass a file of weights")
    try:
        content = _read(path)
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot read {path} ({reason}): it is damaged, or not a file of PyTorch, safetensors "
            "or NumPy; download it again"
        ) from None
    return _state_dict(content, path)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npy":
        return _read_npy(path)
    return read_torch_file(path)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # unlike that of NumPy, it reads bfloat16

    try:
        return {name: np.asarray(array) for name, array in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(error) from None


def _read_npy(path: Path) -> Any:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        *_, dtype = np.lib.format.read_array_header_1_0(file)
        if not dtype.hasobject:
            raise ValueError("it is an array, not dictionaries of parameters and state")
        content = safe_pickle.plain(safe_pickle.load(file, safe_pickle.NUMPY_FUNCTIONS))
    if isinstance(content, Mapping):
        params, state = content["params"], content.get("state", {})
    else:
        params, state = content
    return to_state_dict(params, state)


def _state_dict(content: Any, path: Path) -> StateDict:
    candidates = [*(content[key] for key in _KEYS if _has_key(content, key)), content]
    for candidate in candidates:
        if _is_state_dict(candidate):
            return {name: array for name, array in candidate.items() if _is_array(array)}
    keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{path} has no state dict ({keys[:200]}): save torch.save(model.state_dict(), FILE), or a "
        f"dictionary with one under {', '.join(_KEYS)}"
    )


def _has_key(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and key in content


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and all(isinstance(name, str) for name in content)
        and any(_is_array(value) for value in content.values())
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
