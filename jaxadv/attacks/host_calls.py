"""Calls of Python functions from traced programs, for models that run outside of JAX.

JAX's callbacks hang with several CPU devices, and deadlock if the function itself uses JAX. Here a
traced program contains the primitive `host_call` in place of the function. `run_with_host_calls`
compiles what lies between these calls, and runs the loops around them in Python, on one device and
in the thread of the caller. So Ctrl-C works, exceptions arrive unchanged, and the function may use
JAX.

A program does not contain the Python object that it calls, but a handle: an array with its number,
which is an input like the weights of a model. All models of the same shapes share one compiled
program, and no cache keeps a model alive.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive, Var, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jaxtyping import Array

from jaxadv.core.images import is_concrete
from jaxadv.core.types import UserError

_numbers = itertools.count()
_handles: weakref.WeakKeyDictionary[Any, np.ndarray] = weakref.WeakKeyDictionary()
_hosts: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def handle_of(host: Any) -> np.ndarray:
    """Return the handle of a Python object, by which programs call its methods.

    The object must stay alive while such a program runs; the handle does not keep it.
    """
    if host not in _handles:
        number = next(_numbers)
        _handles[host], _hosts[number] = np.array([number], np.int32), host
    return _handles[host]


def host_call(handle: Any, *operands: Any, method: str, num_classes: int) -> list[Array]:
    """Call `method(num_classes, *operands)` of a Python object, with JAX arrays.

    It returns JAX arrays, or NumPy arrays that nobody changes afterwards. The methods and the
    shapes of their operands and outputs, for n images and k noise samples:

    - `forward(key, images) -> logits`, (n, classes).
    - `forward_for_gradient(key, images) -> logits, token`, with a token of shape (1,).
    - `pull_back(key, images, token, cotangents) -> gradients`: cotangents (r, n, classes) of the
      logits, gradients (r, n, height, width, channels).
    - `query(images, active) -> logits`: images (k, n, height, width, channels), active (n,), logits
      (k, n, classes).

    Keys are ignored, but distinguish noise samples under `jax.vmap`.
    """
    return host_call_p.bind(handle, *operands, method=method, num_classes=num_classes)


host_call_p = Primitive("host_call")
host_call_p.multiple_results = True


@host_call_p.def_abstract_eval
def _output_types(_: Any, *operands: Any, method: str, num_classes: int) -> list[Any]:
    if method == "query":
        images, _ = operands
        return [jax.core.ShapedArray((*images.shape[:2], num_classes), np.dtype(np.float32))]
    _, images, *rest = operands
    if method == "pull_back":
        _, cotangents = rest
        return [jax.core.ShapedArray((cotangents.shape[0], *images.shape), images.dtype)]
    logits = jax.core.ShapedArray((images.shape[0], num_classes), np.dtype(np.float32))
    token = jax.core.ShapedArray((1,), np.dtype(np.int32))
    return [logits] if method == "forward" else [logits, token]


@host_call_p.def_impl
def _call_now(*operands: Any, **params: Any) -> list[Array]:
    return list(map(jnp.asarray, _call_host(*operands, **params)))


def _call_host(handle: Any, *operands: Any, method: str, num_classes: int) -> list[Any]:
    host = _hosts.get(int(np.asarray(handle)[0]))
    if host is None:
        raise UserError(
            "the model outside of JAX no longer exists: keep a reference to it during the attack"
        )
    arrays = (x if isinstance(x, jax.Array) else jnp.asarray(x) for x in operands)
    outputs = getattr(host, method)(num_classes, *arrays)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _refuse_to_compile(*_: Any, **__: Any) -> Any:
    raise UserError(
        "a model outside of JAX cannot be called inside of jit: call the attack outside of it"
    )


mlir.register_lowering(host_call_p, _refuse_to_compile)


def _batch(arguments: Sequence[Any], axes: Sequence[Any], *, method: str, num_classes: int) -> Any:
    """Fold an axis of `jax.vmap` into the batch, so that there is one call for all."""
    call = partial(host_call, method=method, num_classes=num_classes)
    if method == "query":
        raise UserError("a BlackBox cannot be attacked inside of vmap: call the attack outside")
    (handle, *operands), (_, *axes) = arguments, axes
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)

    def with_axis(array: Array, axis: int | None, to: int) -> Array:
        if axis is None:
            return jnp.repeat(jnp.expand_dims(array, to), size, to)
        return jnp.moveaxis(array, axis, to)

    def merge(array: Array, at: int) -> Array:
        return array.reshape(*array.shape[:at], -1, *array.shape[at + 2 :])

    def split(array: Array, at: int) -> Array:
        shape = (*array.shape[:at], size, array.shape[at] // size, *array.shape[at + 1 :])
        return array.reshape(shape)

    key, images, *rest = operands
    if axes[0] is None and axes[1] is None:  # only the cotangents have the axis
        token, cotangents = rest
        cotangents = merge(with_axis(cotangents, axes[3], 0), 0)
        (gradients,) = call(handle, key, images, token, cotangents)
        return [split(gradients, 0)], [0]
    key = key if axes[0] is None else jnp.moveaxis(key, axes[0], 0)[0]
    images = merge(with_axis(images, axes[1], 0), 0)
    if method == "pull_back":
        token, cotangents = rest
        cotangents = merge(with_axis(cotangents, axes[3], 1), 1)
        (gradients,) = call(handle, key, images, token, cotangents)
        return [split(gradients, 1)], [1]
    logits, *token = call(handle, key, images)
    return [split(logits, 0), *token], [0, *[None for _ in token]]


batching.primitive_batchers[host_call_p] = _batch


def contains_host_calls(jaxpr: Jaxpr) -> bool:
    """Return whether a program calls Python functions."""
    return any(map(_calls_host, jaxpr.eqns))


def _calls_host(equation: Any) -> bool:
    return equation.primitive is host_call_p or any(
        contains_host_calls(inner) for inner in _inner_jaxprs(equation.params)
    )


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(entry, (Jaxpr, ClosedJaxpr)):
                yield entry.jaxpr if isinstance(entry, ClosedJaxpr) else entry


class NumClassesError(Exception):
    """The first answer of a model has another number of classes than it was traced with."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.num_classes = num_classes


def jit_kernel(kernel: Callable, *, static_argnames: str) -> Callable:
    """Compile a function of a traced model and other arrays, like `jax.jit`.

    If the model calls Python functions, the function runs by `run_with_host_calls`, unless it is
    itself traced. Static arguments are passed by name, all others by position.
    """
    jitted = jax.jit(kernel, static_argnames=static_argnames)

    @wraps(jitted)
    def call(model: Any, *args: Any, **static: Any) -> Any:
        if not model.calls_host or not all(map(is_concrete, jax.tree.leaves((model, args)))):
            return jitted(model, *args, **static)
        try:
            return run_with_host_calls(jitted, model, *args, **static)
        except NumClassesError as error:
            model = model.with_num_classes(error.num_classes)
        return run_with_host_calls(jitted, model, *args, **static)

    return call


def run_with_host_calls(jitted: Any, *args: Any, **static: Any) -> Any:
    """Run a function of `jax.jit` that calls Python functions, outside of `jit`.

    Args:
      jitted: a function returned by `jax.jit`; it is traced once for each type of its arguments.
      args: its arguments.
      static: its static arguments.
    """
    traced = jitted.trace(*args, **static)
    program = traced.jaxpr
    plan = _plans.get(program.jaxpr)
    if plan is None:
        plan = _plans[program.jaxpr] = _Plan(program.jaxpr)
    outputs = plan(*program.consts, *map(_on_one_device, jax.tree.leaves(args)))
    structure = jax.tree.structure(traced.out_info)
    return jax.tree.unflatten(structure, map(_on_one_device, outputs))


def _on_one_device(leaf: Any) -> Array:
    if not isinstance(leaf, jax.Array):
        return jnp.asarray(leaf)
    return leaf if len(leaf.devices()) == 1 else jax.device_put(leaf, jax.devices()[0])


class _Step(NamedTuple):
    """A part of a plan: a compiled function, a call of the host or a loop around such calls.

    Attributes:
      run: a function of the values of `inputs` that returns those of `outputs`.
      inputs: variables or literals.
      outputs: variables.
      last_used: variables that no later step reads.
    """

    run: Callable[..., Sequence[Any]]
    inputs: list[Any]
    outputs: list[Any]
    last_used: list[Var]


class _Plan:
    """How to run a program: stretches of its equations without host calls are compiled."""

    def __init__(self, jaxpr: Jaxpr) -> None:
        self._inputs = [*jaxpr.constvars, *jaxpr.invars]
        self._outputs = list(jaxpr.outvars)
        self._steps = _make_steps(jaxpr)
        atoms = itertools.chain(self._outputs, *(step.inputs for step in self._steps))
        self._literals = {id(atom): _value(atom) for atom in atoms if isinstance(atom, Literal)}

    def __call__(self, *arguments: Any) -> list[Any]:
        values = dict(zip(self._inputs, arguments, strict=True))

        def read(atom: Any) -> Any:
            return self._literals[id(atom)] if isinstance(atom, Literal) else values[atom]

        for step in self._steps:
            outputs = step.run(*map(read, step.inputs))
            values.update(zip(step.outputs, outputs, strict=True))
            for variable in step.last_used:
                values.pop(variable, None)
        return list(map(read, self._outputs))


def _value(literal: Any) -> Array:
    return jnp.asarray(literal.val, literal.aval.dtype)


_plans: weakref.WeakKeyDictionary[Jaxpr, _Plan] = weakref.WeakKeyDictionary()


def _make_steps(jaxpr: Jaxpr) -> list[_Step]:
    """Return the steps of a program, without equations whose results nobody reads."""
    needed, equations = set(_variables(jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            needed.update(_variables(equation.invars))
            equations.append(equation)
    steps, later = [], set(_variables(jaxpr.outvars))
    groups = itertools.groupby(equations, _calls_host)  # from the last to the first
    for calls_host, group in groups:
        for part in ([one] for one in group) if calls_host else [list(group)[::-1]]:
            defined = dict.fromkeys(v for equation in part for v in equation.outvars)
            used = dict.fromkeys(
                v for equation in part for v in _variables(equation.invars) if v not in defined
            )
            if calls_host:
                run, inputs, outputs = _run_with_host(part[0]), part[0].invars, part[0].outvars
            else:
                inputs, outputs = list(used), [v for v in defined if v in later]
                run = _compile(jaxpr, part, inputs, outputs)
            last_used = [v for v in (*used, *outputs) if v not in later]
            steps.append(_Step(run, inputs, outputs, last_used))
            later.update(used)
    return steps[::-1]


def _variables(atoms: Sequence[Any]) -> Iterator[Var]:
    return (atom for atom in atoms if not isinstance(atom, Literal))


def _compile(jaxpr: Jaxpr, equations: list[Any], inputs: list[Any], outputs: list[Any]) -> Callable:
    part = jaxpr.replace(constvars=[], invars=inputs, outvars=outputs, eqns=equations)
    return jax.jit(jaxpr_as_fun(ClosedJaxpr(part, [])))


def _run_with_host(equation: Any) -> Callable[..., Sequence[Any]]:
    """Return a function that runs an equation that calls the host, or contains such a call."""
    params = equation.params
    match equation.primitive.name:
        case "host_call":
            return partial(_call_host, **params)
        case "while":
            sizes = params["cond_nconsts"], params["body_nconsts"]
            return partial(
                _run_while, _plan(params["cond_jaxpr"]), _plan(params["body_jaxpr"]), sizes
            )
        case "cond":
            return partial(_run_cond, list(map(_plan, params["branches"])))
        case "scan":
            sizes = _scan_sizes(params)
            steps = range(params["length"])[:: -1 if params["reverse"] else 1]
            types = [variable.aval for variable in equation.outvars[sizes[1] :]]
            return partial(_run_scan, _plan(params["jaxpr"]), sizes, steps, types)
        case name if name in _CALLS:
            inner = next(
                params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params
            )
            return _plan(inner)
    raise UserError(
        f"a model outside of JAX cannot be called inside of {equation.primitive.name}: call it "
        "outside"
    )


# Primitives that only call another program.
_CALLS = (
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr",
)  # fmt: skip


def _plan(program: Jaxpr | ClosedJaxpr) -> Callable[..., list[Any]]:
    if isinstance(program, ClosedJaxpr):
        return partial(_Plan(program.jaxpr), *program.consts)
    return _Plan(program)


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Return the numbers of constants and of carried values of a scan."""
    if "ft_in" in params:  # JAX 0.11 and later
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def _run_while(cond: Callable, body: Callable, sizes: tuple[int, int], *operands: Any) -> list[Any]:
    first, second = sizes[0], sum(sizes)
    of_cond, of_body, carry = operands[:first], operands[first:second], list(operands[second:])
    while cond(*of_cond, *carry)[0]:
        carry = body(*of_body, *carry)
    return carry


def _run_cond(branches: list[Callable], index: Any, *operands: Any) -> list[Any]:
    return branches[min(max(int(index), 0), len(branches) - 1)](*operands)


def _run_scan(
    body: Callable, sizes: tuple[int, int], steps: range, types: list[Any], *operands: Any
) -> list[Any]:
    num_consts, num_carry = sizes
    consts, carry = operands[:num_consts], list(operands[num_consts : sum(sizes)])
    xs = list(operands[sum(sizes) :])
    rows: dict[int, list[Any]] = {}
    for i in steps:
        outputs = body(*consts, *carry, *(_take(xs, i) if xs else ()))
        carry, rows[i] = outputs[:num_carry], outputs[num_carry:]
    if not rows:
        return [*carry, *(jnp.zeros(one.shape, one.dtype) for one in types)]
    return [*carry, *map(jnp.stack, zip(*map(rows.get, sorted(rows)), strict=True))]


@jax.jit
def _take(arrays: list[Array], i: Array) -> list[Array]:
    return [jax.lax.dynamic_index_in_dim(array, i, keepdims=False) for array in arrays]
