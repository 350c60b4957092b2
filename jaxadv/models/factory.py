"""Create models by name: `make_model` maps the name to the module of its architecture.

To add an architecture, write its module in a file here, and add its name to `_MODELS`, or the name
of its family to `_FAMILIES`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from numbers import Real
from typing import Any, get_args

from flax import linen as nn

from jaxadv.core.types import UserError
from jaxadv.models.convnets import CONVNETS, ConvNet
from jaxadv.models.defences import Defence, Dropout, SpectralNorm, check_defence
from jaxadv.models.dm_preact_resnet import DMPreActResNet
from jaxadv.models.dm_wide_resnet import DMWideResNet
from jaxadv.models.fastnet import FastNet
from jaxadv.models.mnist_cnn import MnistCNN
from jaxadv.models.ops import Activation
from jaxadv.models.preact_resnet import PreActResNet
from jaxadv.models.resnet import ResNet
from jaxadv.models.vit import HEAD_WIDTH, VisionTransformer
from jaxadv.models.wide_resnet import WideResNet
from jaxadv.models.wrn import StudyWideResNet

_SMALLNET = {
    "channels": (24, 64), "kernel_sizes": (5, 3), "padding": "SAME", "num_residual": 4,
    "mean_pool": True, "width": 64,
}  # fmt: skip
_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{name: (ConvNet, attributes) for name, attributes in CONVNETS.items()},
    "fastnet": (FastNet, {}),
    "smallnet": (FastNet, _SMALLNET),
    "mnist_cnn": (MnistCNN, {}),
    "resnet_18": (ResNet, {"depth": 18}),
    "resnet_34": (ResNet, {"depth": 34}),
    "resnet_50": (ResNet, {"depth": 50}),
    "preactresnet_18": (PreActResNet, {"depth": 18}),
    "preactresnet_18_v2": (PreActResNet, {"depth": 18, "version": 2}),
    "dm_preactresnet_18": (DMPreActResNet, {"depth": 18}),
    "dm_preactresnet_34": (DMPreActResNet, {"depth": 34}),
}
_FAMILIES: dict[str, type[nn.Module]] = {  # of names <family>_<depth>_<width>
    "wrn": StudyWideResNet,
    "vit": VisionTransformer,
    "wideresnet": WideResNet,
    "dm_wideresnet": DMWideResNet,
}


def make_model(
    name: str,
    num_classes: int,
    *,
    activation: str | None = None,
    dropout: float | None = None,
    defence: Defence | None = None,
    axis_name: str | None = None,
    mean: Sequence[float | int] | None = None,
    std: Sequence[float | int] | None = None,
    padding: int | None = None,
) -> nn.Module:
    """Return a model by name: a module that maps images in [0, 1] to logits.

    >>> make_model("wrn_13_10", num_classes=10).depth
    13

    Args:
      name: `net`, `bignet`, `biggernet`, `wrn_<depth>_<width>` or `vit_<depth>_<width>` of the
        study; `fastnet`; `smallnet`; or one of the published architectures of docs/models.md, such
        as `wideresnet_28_10`. RobustBench's spelling `WideResNet-28-10` is the same.
      num_classes: number of logits.
      activation: `relu`, `gelu` or `silu` for all layers; None: the default of the architecture.
      dropout: rate in [0, 1); None: the default of the architecture.
      defence: one of `jaxadv.models.defences`, for the models of the study.
      axis_name: name of the pmapped axis over which a training batch is split; None outside pmap.
        Batch norm averages its statistics over it. Randomness of an example follows from its
        position in the whole batch.
      mean: of each channel, by which a published architecture normalises images; None: as
        published.
      std: standard deviation of each channel, likewise.
      padding: zeros around the images, for `dm_wideresnet` only; None: no zeros.

    Raises:
      UserError: the name is unknown, or a size or an option is not valid.
    """
    if activation not in (None, *get_args(Activation)):
        raise UserError(f"Unknown activation {activation!r}: use relu, gelu or silu.")
    if dropout is not None and not (isinstance(dropout, Real) and 0 <= dropout < 1):
        raise UserError(f"Impossible dropout {dropout!r}: use a rate in [0, 1).")
    if padding is not None and not (isinstance(padding, int) and padding >= 0):
        raise UserError(f"Impossible padding {padding!r}: use 0 or more zeros.")
    architecture, attributes = _find_architecture(name)
    given: dict[str, Any] = {
        "activation": activation,
        "dropout": dropout,
        "defence": defence,
        **_normalisation(mean, std),
        "padding": padding,
    }
    options = {key: value for key, value in given.items() if value is not None}
    _check_options(name, architecture, options)
    if architecture is ConvNet and activation is not None:
        options["activations"] = (activation, options.pop("activation"))
    model = architecture(num_classes=num_classes, axis_name=axis_name, **(attributes | options))
    if defence is not None:
        _check_defence(name, model, defence)
    return model


def published_options(name: str) -> list[str]:
    """Return the options that only published architectures have, of those of a model.

    >>> published_options("resnet_18"), published_options("net")
    (['mean', 'std'], [])

    Raises:
      UserError: the name is unknown.
    """
    attributes = _attributes(_find_architecture(name)[0])
    return [option for option in ("mean", "std", "padding") if option in attributes]


def _attributes(architecture: type[nn.Module]) -> set[str]:
    return {field.name for field in dataclasses.fields(architecture)}


def _normalisation(
    mean: Sequence[float | int] | None, std: Sequence[float | int] | None
) -> dict[str, tuple[float, ...]]:
    """Return the mean and the standard deviation as attributes of a module."""
    if mean is None and std is None:
        return {}
    if mean is None or std is None:
        raise UserError(f"mean is {mean} and std is {std}: give both, or neither.")
    means, stds = _finite("mean", mean), _finite("std", std)
    if min(stds) <= 0:
        raise UserError(f"Impossible std {tuple(std)}: use numbers above 0.")
    return {"mean": means, "std": stds}


def _finite(name: str, numbers: Any) -> tuple[float, ...]:
    try:
        values = () if isinstance(numbers, str) else tuple(map(float, numbers))
    except (TypeError, ValueError, OverflowError):
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise UserError(
            f"Impossible {name} {numbers!r}: use a finite number for each channel, such as "
            "(0.5, 0.5, 0.5)."
        )
    return values


def _check_options(name: str, architecture: type[nn.Module], options: dict[str, Any]) -> None:
    """Raise a UserError if an architecture lacks one of the options."""
    attributes = _attributes(architecture)
    if architecture is ConvNet:
        attributes.add("activation")
    for key in options:
        if key == "defence" and key not in attributes:
            raise UserError(
                f"{name} takes no defence: leave it out, or use "
                f"{', '.join(CONVNETS)}, a wrn or a vit model."
            )
        if key not in attributes:
            raise UserError(f"{name} has no option {key}: leave it out.")


def _check_defence(name: str, model: nn.Module, defence: Defence) -> None:
    check_defence(defence)
    if isinstance(defence, Dropout) and not model.dropout:
        raise UserError(f"The defence dropout has no effect in {name}: set a dropout rate above 0.")
    if isinstance(defence, SpectralNorm) and not isinstance(model, ConvNet):
        raise UserError(
            f"spectral_norm does not bound {name}, whose norm layers or attention it does not "
            f"normalise: use {', '.join(CONVNETS)}."
        )


def _find_architecture(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """Return the class of a model and the attributes that follow from its name."""
    if not isinstance(name, str):
        raise UserError(f"The name of a model is {name!r}: use a name such as net or resnet_18.")
    name = name.lower().replace("-", "_")
    if name in _MODELS:
        return _MODELS[name]
    match = re.fullmatch(rf"({'|'.join(_FAMILIES)})_([1-9]\d*)_([1-9]\d*)", name)
    if match is None:
        *names, last = (*_MODELS, *(f"{family}_<depth>_<width>" for family in _FAMILIES))
        raise UserError(f"Unknown model {name!r}: use {', '.join(names)} or {last}.")
    family, depth, width = match[1], int(match[2]), int(match[3])
    _check_sizes(name, family, depth, width)
    return _FAMILIES[family], {"depth": depth, "width": width}


def _check_sizes(name: str, family: str, depth: int, width: int) -> None:
    """Raise a UserError if a family has no model of this depth and width."""
    if family == "wrn" and depth >= 10 and depth % 6 == 4:
        raise UserError(
            f"Impossible depth in model {name!r}: use 6 n + 1, such as wrn_13_10, or for the "
            f"published architectures wideresnet_{depth}_{width} or dm_wideresnet_{depth}_{width}."
        )
    if family == "wrn" and (depth < 7 or depth % 6 != 1):
        raise UserError(f"Impossible depth in model {name!r}: use 6 n + 1, such as wrn_13_10.")
    if family.endswith("wideresnet") and (depth < 10 or depth % 6 != 4):
        raise UserError(f"Impossible depth in model {name!r}: use 6 n + 4, such as {family}_28_10.")
    if family == "vit" and width % HEAD_WIDTH:
        raise UserError(
            f"Impossible width in model {name!r}: use a multiple of {HEAD_WIDTH}, "
            "such as vit_3_128."
        )
