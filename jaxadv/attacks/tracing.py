"""A model as attacks compile it: a program, which is static, and its weights, which are arguments.

A function of Python may change between two calls: it reads other weights, or a module that it
closes over was updated. So every call of an attack traces it again, unless it is known not to have
changed, into operations without arrays and the arrays that they read. A compiled attack is found by
the operations: new weights compile nothing, and no weights are kept. Arrays that a derivative of
the user's own, or a jitted part inside of a loop, closes over are an exception: they are part of
the operations, of which the last 128 are kept.
"""

import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

from jaxadv.attacks.passes import BlackBox
from jaxadv.attacks.snapshot import take_snapshot
from jaxadv.logits import finite_logits
from jaxadv.parallel import vary_alike
from jaxadv.types import Images, Logits, LogitsFn, PRNGKey

T = TypeVar("T")

_NUM_KEPT = 128  # programs, those that were used last
_SMALL = 64  # numbers
_OTHERS = ("onnxruntime", "sklearn", "tensorflow", "torch")  # other frameworks
_JITTED = ("jit", "pjit")  # what `jax.jit` is called among operations, by the version of JAX
# Primitives with a derivative of their own, which the traced pullback shows.
_CUSTOM_DERIVATIVE = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class Program:
    """The operations of a model without its arrays.

    Equal operations are one object, so that it is compared and hashed by identity.
    """

    def __init__(self, jaxpr: Jaxpr) -> None:
        """Holds operations whose arrays are their constants."""
        self._jaxpr = jaxpr

    def __call__(self, weights: Sequence[Array], key: PRNGKey, images: Images) -> Logits:
        """Returns what the function that was traced would return."""
        (logits,) = jaxpr_as_fun(ClosedJaxpr(self._jaxpr, list(weights)))(key, images)
        return logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TracedModel:
    """A `(key, images) -> logits` that compiled functions take as an argument.

    Its logits are in single precision or better, and NaN where those of the model are not finite.

    Attributes:
      weights: the arrays that the model reads.
      num_classes: how many logits it has; static.
      program: its operations on images of one shape; static.
    """

    weights: tuple[Array, ...]
    num_classes: int = field(metadata={"static": True})
    program: Program = field(metadata={"static": True})

    def __call__(self, key: PRNGKey, images: Images) -> Logits:
        """Returns the logits of images of the shape that the model was traced for."""
        return finite_logits(self.program(self.weights, key, images))


def trace_model(
    logits_fn: Any,
    key: PRNGKey,
    images: Images | jax.ShapeDtypeStruct,
    *,
    gradients: bool = True,
) -> TracedModel:
    """Returns a function of JAX as a program and its weights.

    Gradients do not flow into the weights. Inside of `jit`, `vmap`, `grad` and the like the weights
    may be traced themselves.

    Args:
      logits_fn: `(key, images) -> logits`.
      key: of the kind that it will be called with.
      images: of the shape and type that it will be called with, or a description of these.
      gradients: whether it will be differentiated with respect to the images: its derivative is
        then part of what tells programs apart.

    Raises:
      ValueError: it is no such function; the message says what to write.
    """
    is_traced = any(isinstance(x, jax.core.Tracer) for x in (key, images))
    snapshot = None if is_traced else take_snapshot(logits_fn)
    if snapshot is None:
        return _trace_anew(logits_fn, key, images, gradients)
    arrays = snapshot.arrays
    shown = *map(_type_of, (key, images)), gradients, _context()
    place = snapshot.structure, tuple(map(id, arrays)), shown
    known = _kept(_unchanged, place)
    if known and all(ref() is array for ref, array in zip(known.arrays, arrays, strict=True)):
        weights = tuple(arrays[i] for i in known.sources)
        return TracedModel(weights, known.num_classes, known.program)
    _forget(place)  # of arrays that are gone, whose identities others have now
    model = _trace_anew(logits_fn, key, images, gradients)
    sources = {id(array): i for i, array in enumerate(arrays)}
    if all(id(array) in sources for array in model.weights):
        read = tuple(sources[id(array)] for array in model.weights)
        refs = tuple(map(weakref.ref, arrays))
        _keep(_unchanged, place, _Unchanged(refs, read, model.num_classes, model.program))
    return model


class _Unchanged(NamedTuple):
    """What was traced of a function, as long as it reaches the same arrays.

    Arrays of the same types would not do: the function may have read their values.
    """

    arrays: tuple[weakref.ref, ...]
    sources: tuple[int, ...]  # of the weights, among the arrays
    num_classes: int
    program: Program


_lock = threading.Lock()
_unchanged: OrderedDict[Hashable, _Unchanged] = OrderedDict()
_programs: OrderedDict[Hashable, Program] = OrderedDict()


def _kept(kept: OrderedDict[Hashable, T], place: Hashable) -> T | None:
    with _lock:
        if place in kept:
            kept.move_to_end(place)
        return kept.get(place)


def _keep(kept: OrderedDict[Hashable, T], place: Hashable, value: T) -> T:
    """Keeps a value, or returns the one that another thread has kept meanwhile."""
    with _lock:
        value = kept.setdefault(place, value)
        while len(kept) > _NUM_KEPT:
            kept.popitem(last=False)
        return value


def _forget(place: Hashable) -> None:
    with _lock:
        _unchanged.pop(place, None)


def _trace_anew(logits_fn: Any, key: PRNGKey, images: Any, gradients: bool) -> TracedModel:
    operations = _without_inner_constants(_trace(logits_fn, key, images))
    description: Hashable = _describe(operations.jaxpr)
    if gradients:
        description = description, _describe_parameter(_trace_pullback(operations, key, images))
    program = _kept(_programs, description)
    program = program or _keep(_programs, description, Program(operations.jaxpr))
    weights = tuple(map(_constant, operations.consts))
    return TracedModel(weights, operations.out_avals[0].shape[1], program)


def _constant(array: Any) -> Array:
    """Returns an array into which no gradient flows."""
    if isinstance(array, jax.core.Tracer):
        return jax.lax.stop_gradient(array)
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def _type_of(array: Any) -> Hashable:
    if isinstance(array, jax.ShapeDtypeStruct):
        return array.shape, array.dtype
    return jax.typeof(array)


def _context() -> Hashable:
    """Returns the settings of JAX and Flax that change what a function is traced into."""
    config: Any = jax.config
    return (
        config.jax_default_matmul_precision,
        config.jax_default_prng_impl,
        config.jax_disable_jit,
        config.jax_enable_x64,
        config.jax_numpy_dtype_promotion,
        config.jax_threefry_partitionable,
        jax.sharding.get_abstract_mesh(),
        tuple(getattr(linen.module, "_global_interceptor_stack", ())),
    )


def _trace(logits_fn: Any, key: PRNGKey, images: Any) -> ClosedJaxpr:
    if isinstance(logits_fn, BlackBox):
        raise ValueError("a BlackBox has no gradients: take nes, square or random_search")
    if not callable(logits_fn):
        raise ValueError(f"logits_fn is {logits_fn!r}: give a function (key, images) -> logits")
    _check_signature(logits_fn, key, images)
    # A function object of its own, so that JAX does not take what it traced before.
    try:
        operations, output = jax.make_jaxpr(lambda k, x: logits_fn(k, x), return_shape=True)(
            key, images
        )
    except Exception as error:
        if reason := _explain(error):
            raise ValueError(reason) from error
        raise
    _check_output(output, images.shape[0])
    return operations


def _check_signature(logits_fn: LogitsFn, *arguments: Any) -> None:
    try:
        signature = inspect.signature(logits_fn)
    except (TypeError, ValueError):  # of a function that is not Python's
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"logits_fn must take (key, images), and takes {signature}: write lambda key, images: "
            "model(images)"
        ) from error


def _explain(error: Exception) -> str | None:
    """Returns what to write in the place of a function that cannot be traced, where it is known."""
    not_jax = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
    if isinstance(error, not_jax):
        return (
            "logits_fn needs the values of its images, which JAX does not have when it compiles: "
            "write it with jax.numpy and jax.lax, or wrap it in a BlackBox"
        )
    if type(error).__name__ == "TraceContextError":
        return (
            "logits_fn changes the state of its model, as in training: call model.eval() before "
            "the attack"
        )
    calls = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    if "Tracer" in str(error) or any(name.split(".")[0] in _OTHERS for name in calls):
        return "logits_fn is no function of JAX: wrap a model of another framework in a BlackBox"
    return None


def _check_output(output: Any, batch: int) -> None:
    """Raises a ValueError if this is not the shape and type of logits."""
    if isinstance(output, (tuple, list)):
        raise ValueError(
            f"logits_fn returns {len(output)} values: return the logits alone, as in "
            "lambda key, images: model(images)[0]"
        )
    if not hasattr(output, "shape"):
        raise ValueError(f"logits_fn returns a {type(output).__name__}: return the logits alone")
    if output.ndim != 2 or output.shape[0] != batch:
        raise ValueError(f"logits have shape {output.shape}, not ({batch}, classes)")
    if output.shape[1] < 2:
        raise ValueError(
            f"logits have {output.shape[1]} classes, not 2 or more: for the score s of one class "
            "return jnp.stack([0 * s, s], -1)"
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"logits are {output.dtype}, not floats")


def _trace_pullback(operations: ClosedJaxpr, key: PRNGKey, images: Any) -> ClosedJaxpr:
    """Returns the operations from the gradient of the logits to that of the images.

    Its constants are the arrays that derivatives of the user's own close over. They are part of the
    program, not weights.
    """
    (logits,) = operations.out_avals

    def pull_back(weights: list[Array], key: PRNGKey, images: Images, gradient: Logits) -> Images:
        def of_images(images: Images) -> Logits:
            return jaxpr_as_fun(ClosedJaxpr(operations.jaxpr, weights))(key, images)[0]

        logits, pull = jax.vjp(of_images, images)
        return pull(vary_alike((gradient, logits))[0])[0]

    gradient = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    return jax.make_jaxpr(pull_back)(operations.consts, key, images, gradient)


def _without_inner_constants(operations: ClosedJaxpr) -> ClosedJaxpr:
    """Returns the same operations with the arrays of jitted parts among their own constants."""
    if not any(map(_has_constants, operations.jaxpr.eqns)):
        return operations
    inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in operations.in_avals]
    return jax.make_jaxpr(lambda *arguments: _run_inline(operations, arguments))(*inputs)


def _has_constants(equation: Any) -> bool:
    inner = equation.params.get("jaxpr")
    return equation.primitive.name in _JITTED and (
        bool(inner.consts) or any(map(_has_constants, inner.jaxpr.eqns))
    )


def _run_inline(operations: ClosedJaxpr, arguments: Iterable[Any]) -> list[Any]:
    """Runs operations; those jitted parts that have constants run as if they were not jitted."""
    jaxpr = operations.jaxpr
    values = dict(zip(jaxpr.constvars, operations.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        if _has_constants(equation):
            outputs = _run_inline(equation.params["jaxpr"], map(read, equation.invars))
        else:
            variables = (v for v in equation.invars if not isinstance(v, Literal))
            invars = list(dict.fromkeys(variables))
            alone = jaxpr.replace(
                constvars=[], invars=invars, outvars=equation.outvars, eqns=[equation]
            )
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, []))(*map(read, invars))
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _describe(jaxpr: Jaxpr) -> Hashable:
    """Returns what two lists of operations have in common if and only if they are the same."""
    numbers: dict[Any, int] = {}  # of the variables, in the order in which they are met

    def number(variable: Any) -> Hashable:
        if isinstance(variable, Literal):
            return (_describe_parameter(np.asarray(variable.val)), str(variable.aval))
        return numbers.setdefault(variable, len(numbers))

    inputs = tuple((number(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            equation.primitive,
            tuple(number(v) for v in equation.invars),
            tuple((number(v), v.aval) for v in equation.outvars),
            _describe_parameters(equation),
            repr(equation.ctx),
        )
        for equation in jaxpr.eqns
    )
    return inputs, equations, tuple(number(v) for v in jaxpr.outvars)


def _describe_parameters(equation: Any) -> Hashable:
    custom = equation.primitive.name in _CUSTOM_DERIVATIVE
    return tuple(
        (name, _describe_parameter(value))
        for name, value in sorted(equation.params.items())
        if not custom or isinstance(value, (ClosedJaxpr, Jaxpr))
    )


def _describe_parameter(value: Any) -> Hashable:
    if isinstance(value, ClosedJaxpr):
        return _describe(value.jaxpr), tuple(map(_describe_constant, value.consts))
    if isinstance(value, Jaxpr):
        return _describe(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_describe_parameter, value))
    if isinstance(value, dict):
        return tuple((name, _describe_parameter(entry)) for name, entry in value.items())
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


def _describe_constant(array: Any) -> Hashable:
    """Returns a small constant by its value, and weights by their identity."""
    small = not isinstance(array, jax.core.Tracer) and np.size(array) <= _SMALL
    if small and not jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return _describe_parameter(np.asarray(array))
    return _Same(array)


class _Same:
    """An object that equals itself alone; held, so that no other takes its place in memory."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value
