"""Variables of Linen modules from state dicts of the PyTorch modules of the same architecture.

Submodules have the same names in both. Their path, joined by dots, is the prefix of a key.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

_PARAMETERS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}


def to_variables(state_dict: Mapping[str, np.ndarray], target: PyTree) -> PyTree:
    """Return the arrays of a state dict as the variables of a Linen module.

    Args:
      state_dict: arrays by their names in PyTorch.
      target: variables of the module, or their shapes; their collections are `params` and
        `batch_stats`.

    Returns:
      A tree like `target`, of arrays in the dtype of the target.
    """

    def find(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        collection, *modules, name = (key.key for key in path)
        names = _PARAMETERS if collection == "params" else _STATISTICS
        array = state_dict[".".join((*modules, names[name]))]
        if name == "kernel":  # OIHW to HWIO; for a dense layer OI to IO
            array = np.moveaxis(array, (0, 1), (-1, -2))
        assert array.shape == leaf.shape, (modules, name, array.shape, leaf.shape)
        return np.ascontiguousarray(array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(find, target)
