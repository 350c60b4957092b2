"""Tracing of models: split a function into a static program and traced weights.

A Python function may change between two calls, for example if it closes over a module whose weights
were updated. Every call of an attack therefore traces it again, unless it is known not to have
changed. The trace is split into operations without arrays and the arrays that they read. Compiled
attacks are cached by the operations, so new weights do not compile again and no weights are kept.
Arrays that a custom derivative, or a jitted function inside a loop, closes over are an exception:
they are part of the operations, of which the last 128 are kept.
"""

import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

from jaxadv.attacks.black_box import BlackBox
from jaxadv.attacks.fast_convolutions import uses_fast_convolutions, with_fast_convolutions
from jaxadv.attacks.host_calls import contains_host_calls
from jaxadv.attacks.snapshot import take_snapshot
from jaxadv.core.devices import match_varying_axes, platform
from jaxadv.core.logits import finite_logits
from jaxadv.core.types import Images, Logits, LogitsFn, PRNGKey

T = TypeVar("T")

_CACHE_SIZE = 128  # entries, the least recently used are dropped
_SMALL = 64  # largest size of an array that is compared by value
_OTHER_FRAMEWORKS = ("onnxruntime", "sklearn", "tensorflow")
_JITTED = ("jit", "pjit")  # the primitive of `jax.jit`, depending on the version of JAX
# Primitives with a custom derivative, whose operations the traced pullback contains.
_CUSTOM_DERIVATIVE = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class Program:
    """The operations of a model without its arrays.

    Equal operations share one object, so programs are compared and hashed by identity.
    """

    def __init__(self, jaxpr: Jaxpr) -> None:
        """Store operations whose arrays are constants of the jaxpr."""
        self._jaxpr = jaxpr
        self.calls_host = contains_host_calls(jaxpr)

    def __call__(self, weights: Sequence[Array], key: PRNGKey, images: Images) -> Logits:
        """Return the logits of the traced function."""
        (logits,) = jaxpr_as_fun(ClosedJaxpr(self._jaxpr, list(weights)))(key, images)
        return logits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TracedModel:
    """A function `(key, images) -> logits` that compiled functions take as an argument.

    Logits have single precision or higher. Rows with a NaN or infinite logit are NaN.

    Attributes:
      weights: arrays that the model reads.
      num_classes: number of logits; static.
      program: operations on images of one shape; static.
    """

    weights: tuple[Array, ...]
    num_classes: int = field(metadata={"static": True})
    program: Program = field(metadata={"static": True})

    @property
    def calls_host(self) -> bool:
        """Return whether the model calls Python functions, see `host_calls`."""
        return self.program.calls_host

    def __call__(self, key: PRNGKey, images: Images) -> Logits:
        """Return the logits of images of the shape that the model was traced for."""
        return finite_logits(self.program(self.weights, key, images))


def trace_model(
    logits_fn: Any,
    key: PRNGKey,
    images: Images | jax.ShapeDtypeStruct,
    *,
    gradients: bool = True,
    use_cache: bool = True,
) -> TracedModel:
    """Trace a JAX function into a program and its weights.

    Gradients do not flow into the weights. Inside `jit`, `vmap`, `grad` and similar transformations
    the weights may be tracers.

    Args:
      logits_fn: `(key, images) -> logits`.
      key: a key of the type that the function will be called with.
      images: images of the shape and type that the function will be called with, or their
        `jax.ShapeDtypeStruct`.
      gradients: whether the function will be differentiated with respect to the images. Programs
        then also differ if their derivatives do.
      use_cache: whether to reuse the trace of a function that is known not to have changed.

    Raises:
      ValueError: it is not such a function; the message says what to write instead.
    """
    is_traced = any(isinstance(x, jax.core.Tracer) for x in (key, images))
    snapshot = take_snapshot(logits_fn) if use_cache and not is_traced else None
    if snapshot is None:
        return _trace_model(logits_fn, key, images, gradients)
    arrays = snapshot.arrays
    call_types = *map(_type_of, (key, images)), gradients, _context()
    cache_key = snapshot.structure, tuple(map(id, arrays)), call_types
    trace = _lookup(_traces, cache_key)
    if trace and all(ref() is array for ref, array in zip(trace.arrays, arrays, strict=True)):
        weights = tuple(arrays[i] for i in trace.weight_indices)
        return TracedModel(weights, trace.num_classes, trace.program)
    _remove_trace(cache_key)  # of deleted arrays, whose ids other arrays have now
    model = _trace_model(logits_fn, key, images, gradients)
    indices = {id(array): i for i, array in enumerate(arrays)}
    if all(id(array) in indices for array in model.weights):
        weight_indices = tuple(indices[id(array)] for array in model.weights)
        refs = tuple(map(weakref.ref, arrays))
        _insert(_traces, cache_key, _Trace(refs, weight_indices, model.num_classes, model.program))
    return model


class _Trace(NamedTuple):
    """The cached trace of a function, valid while the function reaches the same array objects.

    Arrays of equal types do not suffice, because the function may have read their values.
    """

    arrays: tuple[weakref.ref, ...]
    weight_indices: tuple[int, ...]  # positions of the weights among the arrays
    num_classes: int
    program: Program


_lock = threading.Lock()
_traces: OrderedDict[Hashable, _Trace] = OrderedDict()
_programs: OrderedDict[Hashable, Program] = OrderedDict()


def _lookup(cache: OrderedDict[Hashable, T], cache_key: Hashable) -> T | None:
    with _lock:
        if cache_key in cache:
            cache.move_to_end(cache_key)
        return cache.get(cache_key)


def _insert(cache: OrderedDict[Hashable, T], cache_key: Hashable, value: T) -> T:
    """Insert a value, unless another thread has inserted one; return the value of the cache."""
    with _lock:
        value = cache.setdefault(cache_key, value)
        while len(cache) > _CACHE_SIZE:
            cache.popitem(last=False)
        return value


def _remove_trace(cache_key: Hashable) -> None:
    with _lock:
        _traces.pop(cache_key, None)


def _trace_model(logits_fn: Any, key: PRNGKey, images: Any, gradients: bool) -> TracedModel:
    operations = _without_inner_constants(_trace(logits_fn, key, images))
    operations = with_fast_convolutions(operations)
    description: Hashable = _describe(operations.jaxpr)
    if gradients:
        description = description, _describe_parameter(_trace_pullback(operations, key, images))
    program = _lookup(_programs, description)
    program = program or _insert(_programs, description, Program(operations.jaxpr))
    weights = tuple(map(_constant, operations.consts))
    return TracedModel(weights, operations.out_avals[0].shape[1], program)


def _constant(array: Any) -> Array:
    """Return the array with its gradient stopped."""
    if isinstance(array, jax.core.Tracer):
        return jax.lax.stop_gradient(array)
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def _type_of(array: Any) -> Hashable:
    if isinstance(array, jax.ShapeDtypeStruct):
        return array.shape, array.dtype
    return jax.typeof(array)


def _context() -> Hashable:
    """Return the settings of JAX, Flax and this package that tracing depends on."""
    config: Any = jax.config
    return (
        config.jax_default_matmul_precision,
        config.jax_default_prng_impl,
        config.jax_disable_jit,
        config.jax_enable_x64,
        config.jax_numpy_dtype_promotion,
        config.jax_threefry_partitionable,
        jax.sharding.get_abstract_mesh(),
        platform(),
        uses_fast_convolutions(),
        tuple(getattr(linen.module, "_global_interceptor_stack", ())),
    )


def check_logits_fn(logits_fn: Any, key: PRNGKey, images: Any) -> None:
    """Raise a ValueError if this is no function that may be called with a key and images."""
    if isinstance(logits_fn, BlackBox):
        raise ValueError(
            "logits_fn is a BlackBox, which has no gradients: use an attack that needs its outputs "
            "alone, such as nes or square"
        )
    if not callable(logits_fn):
        raise ValueError(f"logits_fn is {logits_fn!r}: pass a function (key, images) -> logits")
    _check_signature(logits_fn, key, images)


def _trace(logits_fn: Any, key: PRNGKey, images: Any) -> ClosedJaxpr:
    check_logits_fn(logits_fn, key, images)
    # A new function object, so that JAX does not reuse an earlier trace.
    try:
        operations, output = jax.make_jaxpr(lambda k, x: logits_fn(k, x), return_shape=True)(
            key, images
        )
    except Exception as error:
        if reason := explain(error, logits_fn):
            raise ValueError(reason) from error
        raise
    _check_output(output, images.shape[0])
    return operations


def _check_signature(logits_fn: LogitsFn, *arguments: Any) -> None:
    try:
        signature = inspect.signature(logits_fn)
    except (TypeError, ValueError):  # not a Python function
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(
            f"logits_fn takes {signature}, but must take (key, images): write "
            "lambda key, images: model(images)"
        ) from error


def explain(error: Exception, logits_fn: Any) -> str | None:
    """Return a message for a function that cannot be traced, or None for other errors."""
    calls = {name.partition(".")[0] for name in _modules_of(error)}
    if any(map(_is_of_torch, _reached(logits_fn))) or "torch" in calls:
        return "logits_fn is a model of PyTorch, which JAX cannot trace: pass jaxadv.wrap(model)"
    not_jax = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
    if isinstance(error, not_jax):
        return (
            "logits_fn reads the values of its images, which JAX does not have while it traces: "
            "write it with jax.numpy and jax.lax, or wrap it in a BlackBox"
        )
    if type(error).__name__ == "TraceContextError":
        return (
            "logits_fn changes the state of its model, as in training mode: call model.eval() "
            "before the attack"
        )
    if "Tracer" in str(error) or not calls.isdisjoint(_OTHER_FRAMEWORKS):
        return "logits_fn is not a JAX function: wrap a model of another framework in a BlackBox"
    return None


def _modules_of(error: Exception) -> Iterator[str]:
    """Yield the names of the modules whose functions were running."""
    for frame, _ in walk_tb(error.__traceback__):
        yield frame.f_globals.get("__name__", "")


def _reached(function: Any) -> Iterator[Any]:
    """Yield a function and the values that it names directly."""
    yield function
    function = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isfunction(function):
        with suppress(ValueError):  # a variable without a value
            reached = inspect.getclosurevars(function)
            yield from (*reached.nonlocals.values(), *reached.globals.values())


def _is_of_torch(value: Any) -> bool:
    kinds = (value,) if inspect.ismodule(value) else type(value).__mro__
    names = (getattr(kind, "__module__", kind.__name__) for kind in kinds)
    return any(name.partition(".")[0] == "torch" for name in names)


def _check_output(output: Any, batch: int) -> None:
    """Raise a ValueError if the output does not have the shape and type of logits."""
    if isinstance(output, (tuple, list)):
        raise ValueError(
            f"logits_fn returns {len(output)} values: return only the logits, as in "
            "lambda key, images: model(images)[0]"
        )
    if not hasattr(output, "shape"):
        raise ValueError(f"logits_fn returns a {type(output).__name__}: return only the logits")
    if output.ndim != 2 or output.shape[0] != batch:
        raise ValueError(
            f"logits have shape {output.shape}: they must have shape ({batch}, classes)"
        )
    if output.shape[1] < 2:
        raise ValueError(
            f"logits have {output.shape[1]} classes: they must have 2 or more; for the score s of "
            "a binary classifier return jnp.stack([0 * s, s], -1)"
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"logits are {output.dtype}: they must be floats")


def _trace_pullback(operations: ClosedJaxpr, key: PRNGKey, images: Any) -> ClosedJaxpr:
    """Trace the vector-Jacobian product from the logits to the images.

    Its constants are the arrays that custom derivatives close over. They are part of the program,
    not weights.
    """
    (logits,) = operations.out_avals

    def pull_back(weights: list[Array], key: PRNGKey, images: Images, gradient: Logits) -> Images:
        def of_images(images: Images) -> Logits:
            return jaxpr_as_fun(ClosedJaxpr(operations.jaxpr, weights))(key, images)[0]

        logits, pull = jax.vjp(of_images, images)
        return pull(match_varying_axes((gradient, logits))[0])[0]

    gradient = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    return jax.make_jaxpr(pull_back)(operations.consts, key, images, gradient)


def _without_inner_constants(operations: ClosedJaxpr) -> ClosedJaxpr:
    """Move the constants of inner jitted functions to the constants of the operations."""
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
    """Evaluate operations, and inline the jitted functions that have constants."""
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
    """Return a hashable description that is equal if and only if the operations are."""
    numbers: dict[Any, int] = {}  # of the variables, in the order of their first use

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
        return _ById(value)
    return type(value), value


def _describe_constant(array: Any) -> Hashable:
    """Describe a small constant by its value, and other arrays by their identity."""
    small = not isinstance(array, jax.core.Tracer) and np.size(array) <= _SMALL
    if small and not jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return _describe_parameter(np.asarray(array))
    return _ById(array)


class _ById:
    """A value that is compared by identity; the reference keeps its id from being reused."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self._value is other._value
