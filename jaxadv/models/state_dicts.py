"""Weights from files as variables of Flax modules.

The submodules of published architectures have the names that they have in PyTorch, so the path of
a variable is the key of the state dict: `params/block1.layer.0/conv1/kernel` is
`block1.layer.0.conv1.weight`. Kernels of convolutions are transposed from OIHW to HWIO, those of
dense layers from (out, in) to (in, out).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from jaxadv.core.types import UserError

VariablePath = tuple[str, ...]
"""Collection, modules and name of a variable."""

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
    last_layer: Collection[VariablePath] = (),
) -> PyTree:
    """Return the variables of a module with the values of a state dict.

    Prefixes `module.` and `model.` and counters of batch norm are dropped.

    Args:
      state_dict: arrays in PyTorch's naming and layout.
      target: variables of the module, or their shapes.
      unused: prefixes of keys that published files have and the network does not use.
      last_layer: variables that keep the values of `target` if their shapes differ.

    Raises:
      UserError: keys are missing, unexpected or ambiguous, or arrays have other shapes or are not
        finite.
    """
    known = {state_dict_key(path) for path in traverse_util.flatten_dict(target)}
    arrays = {
        key: array for key, array in without_prefixes(state_dict, known).items()
        if not key.endswith(_COUNTER) and not key.startswith(tuple(unused))
    }  # fmt: skip
    return _fill(target, arrays, state_dict_key, _to_torch_axes, last_layer)


def select_variables(
    tree: PyTree, target: PyTree, *, last_layer: Collection[VariablePath] = ()
) -> PyTree:
    """Return the variables of a module with the values of a tree of variables.

    Args:
      tree: by collection; those that the module does not have are ignored.
      target: see `to_variables`.
      last_layer: see `to_variables`.

    Raises:
      UserError: see `to_variables`.
    """
    flat = traverse_util.flatten_dict({name: tree[name] for name in tree if name in target})
    arrays = {"/".join(path): np.asarray(leaf) for path, leaf in flat.items()}
    return _fill(target, arrays, "/".join, lambda ndim: tuple(range(ndim)), last_layer)


def _fill(
    target: PyTree,
    arrays: Mapping[str, np.ndarray],
    key_of: Callable[[VariablePath], str],
    axes_of: Callable[[int], tuple[int, ...]],
    last_layer: Collection[VariablePath],
) -> PyTree:
    """Return the target with values of arrays in the naming and the layout of a file.

    Args:
      target: variables, or their shapes.
      arrays: of the file, by key.
      key_of: returns the key of a variable in the file.
      axes_of: returns the order of the axes in the file, given their number.
      last_layer: see `to_variables`.
    """

    def shape_in_file(leaf: Any) -> tuple[int, ...]:
        return tuple(leaf.shape[axis] for axis in axes_of(len(leaf.shape)))

    flat = traverse_util.flatten_dict(target)
    keys = {path: key_of(path) for path in flat}
    known = [*keys.values()]
    differing = {
        path: f"{keys[path]} {arrays[keys[path]].shape} instead of {shape_in_file(leaf)}"
        for path, leaf in flat.items()
        if keys[path] in arrays and arrays[keys[path]].shape != shape_in_file(leaf)
    }
    problems = [
        *_describe("ambiguous", [key for key in dict.fromkeys(known) if known.count(key) > 1]),
        *_describe("missing", [key for key in known if key not in arrays]),
        *_describe("unexpected", [key for key in arrays if key not in known]),
        *_describe("of another shape", [differing[p] for p in differing if p not in last_layer]),
    ]
    if problems:
        raise UserError(f"the weights do not fit the model: {'; '.join(problems)}")
    broken = [key for key in known if not np.isfinite(arrays[key].astype(np.float64)).all()]
    if broken:
        raise UserError(f"the weights are {_describe('NaN or infinite', broken)[0]}")

    def value(path: VariablePath, leaf: Any) -> Any:
        if path in differing:
            return leaf
        array = arrays[keys[path]]
        return np.array(array.transpose(np.argsort(axes_of(array.ndim))), leaf.dtype, order="C")

    return traverse_util.unflatten_dict({path: value(path, leaf) for path, leaf in flat.items()})


def to_state_dict(variables: PyTree) -> dict[str, np.ndarray]:
    """Return variables as arrays in PyTorch's naming and layout: the inverse of `to_variables`."""
    return {
        state_dict_key(path): np.array(
            np.asarray(leaf).transpose(_to_torch_axes(leaf.ndim)), order="C"
        )
        for path, leaf in traverse_util.flatten_dict(variables).items()
    }


def state_dict_key(path: VariablePath) -> str:
    """Return the key of a variable in a state dict.

    >>> state_dict_key(("batch_stats", "block1.layer.0", "bn1", "mean"))
    'block1.layer.0.bn1.running_mean'
    """
    return ".".join([*path[1:-1], _LEAVES.get(path[-1], path[-1])])


def without_prefixes(
    state_dict: Mapping[str, np.ndarray], known: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return a state dict whose keys have no prefixes of wrappers.

    >>> without_prefixes({"module.model.fc.bias": np.zeros(2)})
    {'fc.bias': array([0., 0.])}

    Args:
      state_dict: arrays by key.
      known: keys that stay as they are.

    Raises:
      UserError: two keys differ in their prefixes only.
    """
    stripped: dict[str, np.ndarray] = {}
    for key, array in state_dict.items():
        short = without_prefix(key, known)
        if short in stripped:
            raise UserError(f"the weights have {short!r} twice, once as {key!r}: remove one")
        stripped[short] = array
    return stripped


def without_prefix(key: str, known: Collection[str] = ()) -> str:
    """Return a key of a state dict without the prefixes of wrappers; see `without_prefixes`."""
    while key not in known and key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _to_torch_axes(ndim: int) -> tuple[int, ...]:
    return {2: (1, 0), 4: (3, 2, 0, 1)}.get(ndim, tuple(range(ndim)))


def _describe(problem: str, items: Sequence[str]) -> list[str]:
    more = f" and {len(items) - _NUM_LISTED} more" if len(items) > _NUM_LISTED else ""
    names = ", ".join(item if item.isprintable() else repr(item) for item in items[:_NUM_LISTED])
    return [f"{problem}: {names}{more}"] if items else []
