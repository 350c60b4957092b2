"""Models of the frameworks of JAX as functions `(key, images) -> logits`, in evaluation mode.

Except for Flax, on which this package depends, no framework is imported before the user did.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.core.types import LogitsFn, UserError

# Arguments that switch evaluation mode on.
_EVALUATION_MODE = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
_NNX_FLAGS = ("deterministic", "use_running_average")  # of layers that differ in training
# Errors of Flax, by the name of their class, and what to do.
_REMEDIES = {
    "InvalidRngError": (
        "it needs random numbers: switch dropout off, or write jaxadv.wrap(lambda key, images: "
        "model.apply(variables, images, rngs={'dropout': key}), stochastic=True)"
    ),
    "ModifyScopeVariableError": (
        "it updates its batch statistics, as in training mode: write jaxadv.wrap(lambda images: "
        "model.apply(variables, images, ...)) with the argument that switches evaluation mode on"
    ),
    "ScopeCollectionNotFound": (
        "variables lack a collection: pass all that model.init returned, as in {'params': ..., "
        "'batch_stats': ...}"
    ),
}


class Adapted(NamedTuple):
    """A model as a function of keys and of images that are converted for it.

    Attributes:
      logits_fn: `(key, images) -> logits`.
      num_parameters: number of trainable values; None: unknown.
    """

    logits_fn: LogitsFn
    num_parameters: int | None = None


def adapt_linen(model: Any, variables: Any, stochastic: bool) -> Adapted:
    """Adapt a module of Flax Linen, whose variables are those that `model.init` returned."""
    if variables is None:
        raise UserError(
            f"{type(model).__name__} has no weights: write jaxadv.wrap(model, variables), where "
            "variables is what model.init returned"
        )
    if not isinstance(variables, Mapping):
        params = "variables.params" if hasattr(variables, "params") else "params"
        raise UserError(
            f"variables are {describe(variables)}: write jaxadv.wrap(model, {{'params': {params}}})"
        )
    if variables and "params" not in variables:
        raise UserError(
            f"variables have the keys {_names(variables)} and not params: write "
            "jaxadv.wrap(model, {'params': params})"
        )
    options = _evaluation_options(type(model).__call__)
    return Adapted(
        lambda key, images: model.apply(variables, images, **options),
        count(variables.get("params")),
    )


def adapt_nnx(model: Any, variables: Any, stochastic: bool) -> Adapted:
    """Adapt a module of Flax NNX, which is read at each call."""
    from flax import nnx

    _refuse_variables(model, variables)
    options = _evaluation_options(type(model).__call__)

    def logits_fn(key: jax.Array, images: jax.Array) -> Any:
        check_mode()
        return model(images, **options)

    def check_mode() -> None:
        for path, module in nnx.iter_modules(model):
            flags = (getattr(module, name, None) for name in _NNX_FLAGS)
            if any(flag is False for flag in flags):
                raise UserError(
                    f"{type(model).__name__} is in training mode, in {type(module).__name__} at "
                    f"{'.'.join(map(str, path)) or 'its root'}: call model.eval() first"
                )

    check_mode()
    return Adapted(logits_fn, count(nnx.state(model, nnx.Param)))


def adapt_equinox(model: Any, variables: Any, stochastic: bool) -> Adapted:
    """Adapt a module of Equinox for one image; its variables are its `State`, if it has one.

    A stochastic module gets a key, also where its key is optional.
    """
    if variables is not None and not _is_from(variables, "equinox", "State"):
        raise UserError(
            f"variables are {describe(variables)}: pass the State of the module, as in model, "
            "state = equinox.nn.make_with_state(Model)(...)"
        )
    training = [node for node in jax.tree.leaves(model, is_leaf=_in_training) if _in_training(node)]
    if training:
        raise UserError(
            f"{type(model).__name__} is in training mode, in {type(training[0]).__name__}: write "
            "model = equinox.nn.inference_mode(model)"
        )
    required = required_parameters(model, keyword_only=True) or ()
    if variables is None and "state" in required:
        raise UserError(
            f"{type(model).__name__} takes {_signature(required)}: write jaxadv.wrap(model, state)"
        )

    takes_key = "key" in required or (stochastic and takes(model, "key"))

    def one(key: jax.Array, image: jax.Array) -> Any:
        options = {"key": key} if takes_key else {}
        return model(image, **options) if variables is None else model(image, variables, **options)

    def logits_fn(key: jax.Array, images: jax.Array) -> Any:
        # The key of an image does not depend on the size of the batch.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
        if variables is None:
            return jax.vmap(one)(keys, images)
        # An unchanged state is not batched.
        return jax.vmap(one, out_axes=(0, None), axis_name="batch")(keys, images)[0]

    parameters = [leaf for leaf in jax.tree.leaves(model) if _is_float_array(leaf)]
    return Adapted(logits_fn, count(parameters))


def _in_training(node: Any) -> bool:
    return getattr(node, "inference", None) is False


def _is_float_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def adapt_haiku(model: Any, variables: Any, stochastic: bool) -> Adapted:
    """Adapt a transformed function of Haiku, whose variables are params or `(params, state)`."""
    has_state = type(model).__name__ == "TransformedWithState"
    written = "(params, state)" if has_state else "params"
    if variables is None:
        raise UserError(
            f"a Haiku function has no weights: write jaxadv.wrap(model, {written}) with what "
            "model.init returned"
        )
    is_pair = isinstance(variables, (tuple, list)) and len(variables) == 2
    if is_pair != has_state:
        raise UserError(
            f"variables are {describe(variables)}, but the Haiku function is a "
            f"{type(model).__name__}: write jaxadv.wrap(model, {written})"
        )
    given = tuple(variables) if has_state else (variables,)
    takes_key = "rng" in inspect.signature(model.apply).parameters  # not after without_apply_rng
    options = _evaluation_options(model.apply)

    def logits_fn(key: jax.Array, images: jax.Array) -> Any:
        output = model.apply(*given, *[key] * takes_key, images, **options)
        return output[0] if has_state else output

    return Adapted(logits_fn, count(given[0]))


def adapt_keras(model: Any, variables: Any, stochastic: bool) -> Adapted:
    """Adapt a model of Keras 3 on its JAX backend, which is read at each call."""
    _refuse_variables(model, variables)
    if not any("backend.jax" in base.__module__ for base in type(model).__mro__):
        raise UserError(
            f"{type(model).__name__} does not run on JAX: write os.environ['KERAS_BACKEND'] = "
            "'jax' before the first import of keras"
        )
    if not model.built:
        raise UserError(
            f"{type(model).__name__} has no weights yet: call it once, as in model(images[:1])"
        )
    options = _evaluation_options(model.call)

    def logits_fn(key: jax.Array, images: jax.Array) -> Any:
        trainable = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        return model.stateless_call(trainable, others, images, **options)[0]

    return Adapted(logits_fn, model.count_params())


def required_parameters(function: Any, *, keyword_only: bool = False) -> tuple[str, ...] | None:
    """Return the names of the parameters that have no default, or of `*args` if all have one.

    Args:
      function: anything that can be called.
      keyword_only: whether to include parameters that can only be passed by name.

    Returns:
      The names, or None if they are unknown or `keyword_only` would add one.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind not in variadic]
    if not keyword_only and any(p.kind is p.KEYWORD_ONLY for p in required):
        return None
    # `functools.partial(module.apply, variables)` takes its images in `*args`.
    required = required or [p for p in parameters if p.kind is p.VAR_POSITIONAL]
    return tuple(p.name for p in required)


def takes(function: Any, name: str) -> bool:
    """Return whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def describe(value: Any) -> str:
    """Return the type of a value, for a message."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    name = kind.__name__ if package in ("builtins", "__main__") else f"{package}.{kind.__name__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def reason(error: Exception) -> str:
    """Return one line on an error of a model: what to do about it if known, else its message."""
    for kind in type(error).__mro__:
        if kind.__name__ in _REMEDIES:
            return _REMEDIES[kind.__name__]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def count(parameters: Any) -> int:
    """Return the number of values in a tree of arrays."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(parameters))


def _evaluation_options(function: Any) -> dict[str, bool]:
    names = inspect.signature(function).parameters
    return {name: value for name, value in _EVALUATION_MODE.items() if name in names}


def _refuse_variables(model: Any, variables: Any) -> None:
    if variables is not None:
        raise UserError(f"{type(model).__name__} holds its weights: write jaxadv.wrap(model)")


def _is_from(value: Any, package: str, name: str) -> bool:
    kind = type(value)
    return kind.__module__.partition(".")[0] == package and kind.__name__ == name


def _names(mapping: Mapping) -> str:
    return _signature(map(str, mapping))


def _signature(names: Iterable[str]) -> str:
    return f"({', '.join(names)})"
