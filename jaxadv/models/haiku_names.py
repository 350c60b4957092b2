"""Weights of DeepMind's wide residual networks in Haiku, by the names that they have in PyTorch.

An `.npy` file of google-deepmind/deepmind-research, `adversarial_robustness`, has the pair of the
parameters and the state: dictionaries by module, such as
`wide_res_net/~/resnet_lay_0_block_1/~/conv_0`, of dictionaries of arrays.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxadv.core.types import UserError

_Weights = Mapping[str, Mapping[str, np.ndarray]]

_PARAMETERS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
_STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}


def to_state_dict(params: _Weights, state: _Weights) -> dict[str, np.ndarray]:
    """Return the weights of a Haiku network in the naming and layout of PyTorch's `DMWideResNet`.

    >>> to_state_dict({"wide_res_net/~/logits": {"b": np.zeros(10)}}, {}).keys()
    dict_keys(['logits.bias'])

    Args:
      params: parameters by module.
      state: running averages of batch norm by module; their debiased `average` is used.

    Raises:
      UserError: a module or an array is not one of this network.
    """
    arrays = {}
    for module, parameters in params.items():
        for name, array in parameters.items():
            key = f"{_module_name(module)}.{_known(_PARAMETERS, name, module)}"
            arrays[key] = _to_torch(np.asarray(array), is_kernel=name == "w")
    for module, average in state.items():
        norm, _, statistic = module.rpartition("/~/")
        key = f"{_module_name(norm)}.{_known(_STATISTICS, statistic, module)}"
        if "average" not in average:
            raise UserError(f"{module[:200]!r} has no 'average', which batch norm in Haiku has")
        arrays[key] = _to_torch(np.asarray(average["average"]), is_kernel=False)
    return arrays


def _module_name(module: str) -> str:
    _, *names = module.split("/~/")
    if not names:
        raise UserError(f"{module[:200]!r} is not a module of a WideResNet of DeepMind in Haiku")
    return ".".join(
        re.sub(r"^resnet_lay_(\d+)_block_(\d+)$", r"layer.\1.block.\2", name) for name in names
    )


def _known(names: Mapping[str, str], name: str, module: str) -> str:
    if name not in names:
        raise UserError(
            f"{module[:200]!r} has {name[:200]!r}, which no WideResNet of DeepMind in Haiku has"
        )
    return names[name]


def _to_torch(array: np.ndarray, is_kernel: bool) -> np.ndarray:
    """Return a kernel as OIHW or OI, or a vector without the axes of the images."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if is_kernel else array.reshape(-1)
