"""Create models by name: `make_model` maps the name to the module of its architecture.

To add an architecture, write its module in a file here, map its name in
`_make_architecture`, and let `_parse_name` accept it.
"""

import re
from typing import Any, get_args

from flax import linen as nn

from jaxadv.core.types import UserError
from jaxadv.models.convnets import CONVNETS, ConvNet
from jaxadv.models.defences import Defence, Dropout, SpectralNorm, check_defence
from jaxadv.models.ops import Activation
from jaxadv.models.vit import HEAD_WIDTH, VisionTransformer
from jaxadv.models.wrn import WideResNet


def make_model(
    name: str,
    num_classes: int,
    *,
    activation: str | None = None,
    dropout: float | None = None,
    defence: Defence | None = None,
    axis_name: str | None = None,
) -> nn.Module:
    """Return a model by name: a module that maps images in [0, 1] to logits.

    >>> make_model("wrn_13_10", num_classes=10).depth
    13

    Args:
      name: `net`, `bignet`, `biggernet`, `wrn_<depth>_<width>` or `vit_<depth>_<width>`.
      num_classes: number of logits.
      activation: `relu` or `gelu` for all layers; None: the default of the architecture.
      dropout: rate in [0, 1); None: the default of the architecture.
      defence: one of `jaxadv.models.defences`.
      axis_name: name of the pmapped axis over which a training batch is split; None outside pmap.
        Batch norm averages its statistics over it. Randomness of an example follows from its
        position in the whole batch.

    Raises:
      UserError: the name is unknown, or a size, the activation, the dropout rate or the defence is
        not valid.
    """
    if activation not in (None, *get_args(Activation)):
        raise UserError(f"Unknown activation {activation!r}: use relu or gelu.")
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"Impossible dropout {dropout}: use a rate in [0, 1).")
    options: dict[str, Any] = {"defence": defence, "axis_name": axis_name}
    if dropout is not None:
        options["dropout"] = dropout
    model = _make_architecture(name, num_classes, activation, options)
    if defence is not None:
        check_defence(defence)
    if isinstance(defence, Dropout) and not model.dropout:
        raise UserError(f"The defence dropout has no effect in {name}: set a dropout rate above 0.")
    if isinstance(defence, SpectralNorm) and not isinstance(model, ConvNet):
        raise UserError(
            f"spectral_norm does not bound {name}, whose norm layers or attention it does not "
            f"normalise: use {', '.join(CONVNETS)}."
        )
    return model


def _make_architecture(
    name: str, num_classes: int, activation: str | None, options: dict[str, Any]
) -> ConvNet | WideResNet | VisionTransformer:
    if name in CONVNETS:
        if activation is not None:
            options["activations"] = (activation, activation)
        return ConvNet(num_classes, **(CONVNETS[name] | options))
    if activation is not None:
        options["activation"] = activation
    family, depth, width = _parse_name(name)
    if family == "wrn":
        return WideResNet(num_classes, depth, width, **options)
    return VisionTransformer(num_classes, depth, width, **options)


def _parse_name(name: str) -> tuple[str, int, int]:
    match = re.fullmatch(r"(wrn|vit)_([1-9]\d*)_([1-9]\d*)", name)
    if match is None:
        raise UserError(
            f"Unknown model {name!r}: use net, bignet, biggernet, "
            "wrn_<depth>_<width> or vit_<depth>_<width>."
        )
    family, depth, width = match[1], int(match[2]), int(match[3])
    if family == "wrn" and (depth < 7 or depth % 6 != 1):
        raise UserError(f"Impossible depth in model {name!r}: use 6 n + 1, such as wrn_13_10.")
    if family == "vit" and width % HEAD_WIDTH:
        raise UserError(
            f"Impossible width in model {name!r}: use a multiple of {HEAD_WIDTH}, "
            "such as vit_3_128."
        )
    return family, depth, width
