"""Files of published weights: PyTorch, safetensors, and NumPy dictionaries of Haiku networks.

No file is executed: pickles may contain arrays and dictionaries only.
"""

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import traverse_util

from jaxadv.core.types import UserError
from jaxadv.models import safe_pickle
from jaxadv.models.haiku_names import to_state_dict
from jaxadv.models.safe_pickle import NumpyArray, printable
from jaxadv.models.torch_files import Tensor, read_torch_file

StateDict = dict[str, np.ndarray]
"""Arrays by the names of PyTorch, such as `block1.layer.0.conv1.weight`, in its layout."""

# Where training scripts put the state dict in a file; the first that is there is used.
_KEYS = ("model_state_dict", "state_dict", "model", "net")
_SAVE = (
    f"save torch.save(model.state_dict(), FILE), or a dictionary with one under {', '.join(_KEYS)}"
)
_MAX_EXPANSION = 10  # bytes of arrays, some of which share their content, for each byte of a file

_Key = TypeVar("_Key", bound=Hashable)


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
        return _read(path)
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except Exception as error:  # each reader raises errors of many types
        first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"cannot read {path} ({printable(first_line)}): it is damaged, or not a file of "
            "PyTorch, safetensors or NumPy; download it again"
        ) from None


def _read(path: Path) -> StateDict:
    limit = _MAX_EXPANSION * path.stat().st_size
    if path.suffix == ".npy":
        params, state = _read_npy(path)
        arrays = to_state_dict(_modules(params, limit), _modules(state, limit))
    elif path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    else:
        arrays = _to_arrays(_find_state_dict(read_torch_file(path)).items(), limit)
    for name in arrays:
        if printable(name) != name:
            raise UserError(f"it has the name '{printable(name)}': use the names of PyTorch")
    return arrays


def _read_safetensors(path: Path) -> StateDict:
    from safetensors.flax import load_file  # unlike that of NumPy, it reads bfloat16

    return {name: np.asarray(array) for name, array in load_file(path).items()}


def _read_npy(path: Path) -> tuple[Any, Any]:
    """Return the parameters and the state of a Haiku network."""
    needed = "use a dictionary with params and state of a Haiku network, or the pair of both"
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        *_, dtype = np.lib.format.read_array_header_1_0(file)
        if not dtype.hasobject:
            raise UserError(f"it is an array of numbers: {needed}")
        array = safe_pickle.load(file, safe_pickle.NUMPY_FUNCTIONS)
    content = array.objects
    if isinstance(content, list) and len(content) == 1:  # an array without axes
        (content,) = content
    if isinstance(content, Mapping) and "params" in content:
        params, state = content["params"], content.get("state", {})
    elif isinstance(content, list | tuple) and len(content) == 2:
        params, state = content
    else:
        raise UserError(f"it has {_describe(content)}: {needed}")
    for modules in (params, state):
        if not isinstance(modules, Mapping) or not all(
            isinstance(arrays, Mapping) for arrays in modules.values()
        ):
            raise UserError(f"its params or state are no dictionary by module: {needed}")
    return params, state


def _modules(modules: Mapping[str, Mapping[str, Any]], limit: int) -> Any:
    """Return the arrays of a Haiku network by module and name."""
    flat = (
        ((module, name), value)
        for module, values in modules.items()
        for name, value in values.items()
    )
    return traverse_util.unflatten_dict(_to_arrays(flat, limit))


def _find_state_dict(content: Any) -> Mapping[str, Any]:
    """Return the state dict in the content of a file of PyTorch."""
    if isinstance(content, Mapping):
        for candidate in (*(content[key] for key in _KEYS if key in content), content):
            if _is_state_dict(candidate):
                return candidate
    raise UserError(f"it has no state dict, but {_describe(content)}: {_SAVE}")


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and all(isinstance(name, str) for name in content)
        and any(_has_numbers(value) for value in content.values())
    )


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, NumpyArray) and value.is_numeric)


def _to_arrays(items: Iterable[tuple[_Key, Any]], limit: int) -> dict[_Key, np.ndarray]:
    """Return the arrays of numbers among the values, if they have `limit` bytes at most."""
    arrays, num_bytes = {}, 0
    for key, value in items:
        if _has_numbers(value):
            arrays[key] = value.to_array()
            num_bytes += arrays[key].nbytes + 1  # arrays without elements take memory too
            if num_bytes > limit:
                raise ValueError("its arrays are larger than the file")
    return arrays


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"the keys {printable(', '.join(map(str, list(content)[:20])))}"
    return f"a {type(content).__name__}"
