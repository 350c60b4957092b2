"""State dicts of PyTorch as variables of Flax modules.

The submodules of published architectures have the names that they have in PyTorch, so the path of
a variable is the key of the state dict: `params/block1.layer.0/conv1/kernel` is
`block1.layer.0.conv1.weight`. Kernels of convolutions are transposed from OIHW to HWIO, those of
dense layers from (out, in) to (in, out).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from jaxadv.core.types import UserError

_LEAVES = {
    "kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"
}  # fmt: skip
_PREFIXES = ("module.", "model.")  # of DataParallel, and of wrappers that normalise
_COUNTER = "num_batches_tracked"  # of batch norm, which uses it without a momentum only
_NUM_LISTED = 4  # keys in a message


def to_variables(
    state_dict: Mapping[str, np.ndarray],
    target: PyTree,
    *,
    unused: Sequence[str] = (),
    head: Collection[str] = (),
) -> PyTree:
    """Return the variables of a module with the values of a state dict.

    Prefixes `module.` and `model.` and counters of batch norm are dropped.

    Args:
      state_dict: arrays in PyTorch's naming and layout.
      target: variables of the module, or their shapes.
      unused: prefixes of keys that the published files have and the network does not use.
      head: keys that keep the values of `target` if their shapes differ.

    Raises:
      UserError: keys are missing or unexpected, or arrays have other shapes or are not finite.
    """
    arrays = {
        key: array for key, array in without_prefixes(state_dict).items()
        if not key.endswith(_COUNTER) and not key.startswith(tuple(unused))
    }  # fmt: skip
    flat = traverse_util.flatten_dict(target)
    keys = {path: state_dict_key(path) for path in flat}
    problems = [
        *_list("missing", [key for key in keys.values() if key not in arrays]),
        *_list("unexpected", [key for key in arrays if key not in keys.values()]),
        *_list(
            "of another shape",
            [
                f"{key} {arrays[key].shape} instead of {_shape(leaf)}"
                for key, leaf in ((keys[path], flat[path]) for path in flat)
                if key in arrays and arrays[key].shape != _shape(leaf) and key not in head
            ],
        ),
        *_list("not finite", [key for key in arrays if not np.isfinite(_float(arrays[key])).all()]),
    ]
    if problems:
        raise UserError(f"the weights do not fit the model: {'; '.join(problems)}")
    values = {
        path: leaf if arrays[keys[path]].shape != _shape(leaf) else _from_torch(arrays[keys[path]])
        for path, leaf in flat.items()
    }
    return traverse_util.unflatten_dict(values)


def to_state_dict(variables: PyTree) -> dict[str, np.ndarray]:
    """Return variables as arrays in PyTorch's naming and layout: the inverse of `to_variables`."""
    flat = traverse_util.flatten_dict(variables)
    return {
        state_dict_key(path): np.ascontiguousarray(
            np.asarray(leaf).transpose(_to_torch_axes(leaf.ndim))
        )
        for path, leaf in flat.items()
    }


def state_dict_key(path: tuple[str, ...]) -> str:
    """Return the key of a variable, given its collection, modules and name.

    >>> state_dict_key(("batch_stats", "block1.layer.0", "bn1", "mean"))
    'block1.layer.0.bn1.running_mean'
    """
    return ".".join([*path[1:-1], _LEAVES.get(path[-1], path[-1])])


def without_prefixes(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict whose keys have no prefixes of wrappers.

    >>> without_prefixes({"module.model.fc.bias": np.zeros(2)})
    {'fc.bias': array([0., 0.])}
    """
    stripped = {}
    for key, array in state_dict.items():
        while key.startswith(_PREFIXES):
            key = key.split(".", 1)[1]
        stripped[key] = array
    return stripped


def _to_torch_axes(ndim: int) -> tuple[int, ...]:
    return {2: (1, 0), 4: (3, 2, 0, 1)}.get(ndim, tuple(range(ndim)))


def _from_torch(array: np.ndarray) -> np.ndarray:
    axes = np.argsort(_to_torch_axes(array.ndim))
    return np.ascontiguousarray(_float(array).transpose(axes))


def _float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape[axis] for axis in _to_torch_axes(len(leaf.shape)))


def _list(problem: str, items: Sequence[str]) -> list[str]:
    more = f" and {len(items) - _NUM_LISTED} more" if len(items) > _NUM_LISTED else ""
    return [f"{problem}: {', '.join(items[:_NUM_LISTED])}{more}"] if items else []
