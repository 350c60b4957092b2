"""Turn a model of any framework into a `Classifier`.

No framework is imported: a model can only be of a framework that the user has imported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jaxtyping import ArrayLike

from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.conversion import Conversion, make_conversion
from jaxadv.adapters.frameworks import (
    Adapted,
    adapt_equinox,
    adapt_haiku,
    adapt_keras,
    adapt_linen,
    adapt_nnx,
    describe,
    reason,
    required_parameters,
    takes,
)
from jaxadv.adapters.pytorch import adapt_pytorch
from jaxadv.attacks.black_box import BlackBox
from jaxadv.attacks.tracing import explain
from jaxadv.core.types import LogitsFn, UserError


class _Framework(NamedTuple):
    """How to find and adapt the models of a framework.

    Attributes:
      package: where its classes are defined, without the submodules.
      classes: of its models.
      adapt: `(model, variables, stochastic) -> Adapted`.
      channels_first: whether its models usually take images of shape (n, channels, height, width).
    """

    package: str
    classes: tuple[str, ...]
    adapt: Callable[[Any, Any, bool], Adapted]
    channels_first: bool = False


# A model of Keras on PyTorch is a PyTorch module too, so Keras comes first.
_FRAMEWORKS = (
    _Framework("flax.linen", ("Module",), adapt_linen),
    _Framework("flax.nnx", ("Module",), adapt_nnx),
    _Framework("equinox", ("Module",), adapt_equinox, channels_first=True),
    _Framework("haiku", ("Transformed", "TransformedWithState"), adapt_haiku),
    _Framework("keras", ("Layer",), adapt_keras),
    _Framework("torch", ("Module",), adapt_pytorch, channels_first=True),
)


def wrap(
    model: Any,
    variables: Any = None,
    *,
    mean: ArrayLike | Sequence[float | int] | None = None,
    std: ArrayLike | Sequence[float | int] | None = None,
    channels_first: bool | None = None,
    bounds: Sequence[float | int] = (0.0, 1.0),
    stochastic: bool = False,
    name: str | None = None,
) -> Classifier:
    """Wrap a model, so that attacks and evaluations can call it.

    The wrapped model takes float images in [0, 1] of shape (n, height, width, channels). It scales
    them to `bounds`, then normalises them to `(images - mean) / std`, then moves the channels to
    axis 1 if `channels_first`, and calls the model in evaluation mode.

    | model | variables |
    |---|---|
    | Flax Linen module | what `model.init` returned: `{"params": ..., "batch_stats": ...}` |
    | Flax NNX module in evaluation mode | |
    | Equinox module in inference mode, for one image | its `State`, if it has one |
    | Haiku transformed function | params, or `(params, state)` |
    | Keras 3 model on the JAX backend | |
    | PyTorch module in evaluation mode | |
    | JAX function `images -> logits` or `(key, images) -> logits` | |
    | `BlackBox` | |

    NNX, Keras and PyTorch models are read at each call of an attack, so that changes of their
    weights have effect.

    Args:
      model: the model; it returns logits, not probabilities, except for a `BlackBox`.
      variables: see the table.
      mean: of each channel, or of all, in the unit of `bounds`; None: 0.
      std: standard deviation, likewise; None: 1.
      channels_first: whether the model takes shape (n, channels, height, width); None: True for
        Equinox and PyTorch, False for all others.
      bounds: range of the pixels that the model, or its normalisation, expects: (0, 255) or
        (-1, 1).
      stochastic: whether two forward passes over the same image differ.
      name: of the model in reports; None: the name of its class.

    Raises:
      UserError: the model or an argument is not supported; the message says what to write.

    >>> from flax import linen as nn
    >>> net = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    >>> x = jax.numpy.full((2, 4, 4, 3), 0.5)
    >>> classifier = wrap(net, net.init(jax.random.key(0), x), mean=0.5, std=0.25)
    >>> classifier(jax.random.key(1), x).shape, classifier.num_parameters
    ((2, 10), 490)
    """
    conversion = make_conversion(mean, std, bounds, channels_first)
    if isinstance(model, Classifier):
        if (variables, name, stochastic) != (None, None, False) or conversion != Conversion():
            raise UserError(
                "model is a Classifier, which is wrapped already: pass all options to the first "
                "jaxadv.wrap"
            )
        return model
    framework = _find_framework(model)
    if framework is None and variables is not None:
        raise UserError(
            f"variables belong to a module of Linen, Equinox or Haiku, not to {describe(model)}: "
            "write jaxadv.wrap(lambda images: model(variables, images))"
        )
    name = name or _name_of(model)
    if isinstance(model, BlackBox):
        return Classifier(_convert_before(model, conversion), name, stochastic=stochastic)
    if framework is None:
        adapted = Adapted(_adapt_function(model, stochastic))
    else:
        adapted = framework.adapt(model, variables, stochastic)
        if channels_first is None:
            conversion = conversion._replace(channels_first=framework.channels_first)
    logits_fn = _make_logits_fn(adapted.logits_fn, conversion, name)
    return Classifier(logits_fn, name, adapted.num_parameters, stochastic)


def _find_framework(model: Any) -> _Framework | None:
    # `equinox.filter_jit` returns a module around a plain function.
    if hasattr(model, "__wrapped__"):
        return None
    bases = [(base.__module__, base.__name__) for base in type(model).__mro__]
    for framework in _FRAMEWORKS:
        if any(
            f"{module}.".startswith(f"{framework.package}.") and kind in framework.classes
            for module, kind in bases
        ):
            return framework
    return None


def _name_of(model: Any) -> str:
    name = getattr(model, "__name__", type(model).__name__)
    return "model" if name in ("<lambda>", "Transformed", "TransformedWithState") else name


def _convert_before(model: BlackBox, conversion: Conversion) -> BlackBox:
    if conversion == Conversion():
        return model
    return replace(model, predict=lambda images: model.predict(conversion(images)))


def _make_logits_fn(model: LogitsFn, conversion: Conversion, name: str) -> LogitsFn:
    """Return the function `(key, images) -> logits`, whose errors say how to call the model."""

    def logits_fn(key: jax.Array, images: jax.Array) -> Any:
        converted = conversion(images)
        try:
            output = model(key, converted)
        except Exception as error:
            other = conversion._replace(channels_first=not conversion.channels_first)
            if _accepts(model, other, key, images):
                raise UserError(
                    f"{name} fails on images of shape {converted.shape}, but accepts "
                    f"shape {other(images).shape}: write jaxadv.wrap(model, "
                    f"channels_first={other.channels_first})"
                ) from error
            if isinstance(error, UserError) or explain(error, model):
                raise
            raise UserError(
                f"{name} fails on images of shape {converted.shape}: {reason(error)}"
            ) from error
        _refuse_objects(output, name)
        return output

    return logits_fn


def _refuse_objects(output: Any, name: str) -> None:
    """Raise a UserError if the output is an object, such as those of the library transformers."""
    if hasattr(output, "shape") or isinstance(output, (tuple, list)):
        return
    entry = ""
    if hasattr(output, "logits"):
        entry = ".logits"
    elif isinstance(output, Mapping) and "logits" in output:
        entry = "['logits']"
    raise UserError(
        f"{name} returns {describe(output)}: return only the logits, as in jaxadv.wrap(lambda "
        f"images: model(images){entry})"
    )


def _accepts(model: LogitsFn, conversion: Conversion, key: jax.Array, images: jax.Array) -> bool:
    """Return whether the model returns logits for images of another layout."""
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (key, images)]
    try:
        output = jax.eval_shape(lambda key, images: model(key, conversion(images)), *shapes)
    except Exception:
        return False
    return getattr(output, "ndim", 0) == 2


def _adapt_function(function: Any, stochastic: bool) -> LogitsFn:
    """Return a JAX function of images, or of a key and images, as one of both.

    A stochastic function of images gets a key if it has an optional parameter `key`.
    """
    if isinstance(function, type):
        raise UserError(
            f"model is the class {function.__name__}: pass an instance of it, with its weights"
        )
    if hasattr(function, "predict_proba"):
        raise UserError(
            f"model is {describe(function)}, which JAX cannot trace: write jaxadv.wrap("
            "jaxadv.BlackBox(lambda images: model.predict_proba(images.reshape(len(images), -1))))"
        )
    if not callable(function) or type(function).__module__.partition(".")[0] == "tensorflow":
        raise UserError(
            f"model is {describe(function)}, which JAX cannot trace: write jaxadv.wrap("
            "jaxadv.BlackBox(predict)) with a function predict of NumPy images that returns "
            "class probabilities"
        )
    required = required_parameters(function)
    if required is not None and len(required) == 1:
        if stochastic and takes(function, "key"):
            return lambda key, images: function(images, key=key)
        return lambda key, images: function(images)
    names = required or ()
    is_keyed = len(names) == 2 and names[1] not in ("key", "rng")
    if is_keyed and names[0] not in ("params", "state", "variables", "weights"):
        return function
    given = f"({', '.join(required)})" if required else "other arguments"
    swapped = len(names) == 2 and not is_keyed
    instead = (
        "lambda key, images: function(images, key)"
        if swapped
        else "lambda images: function(...)) with the other arguments filled in"
    )
    raise UserError(
        f"the function {_name_of(function)} takes {given}: it must take (images) or (key, images); "
        f"write jaxadv.wrap({instead}" + ")" * swapped
    )
