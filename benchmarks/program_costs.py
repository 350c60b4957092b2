"""What a program costs: FLOPs from its jaxpr, and memory traffic from the HLO of its compiler.

XLA's own cost analysis counts the body of a loop once, knows no FLOPs of a library call on a GPU,
and counts what a TPU keeps on the chip as traffic to its main memory. Here loops count by their
trips, FLOPs are those of matrix products and convolutions, and what a TPU keeps on the chip is no
traffic. A GPU's cache is not considered: all operands count as traffic.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

Trips = tuple[float, ...]


def count_flops(jaxpr: Jaxpr, trips: Trips, needed: Sequence[bool] | None = None) -> float:
    """Return the FLOPs of matrix products and convolutions; a multiplication and a sum are two.

    Products with zeros that a padding or a dilation inserts do not count.

    Args:
      jaxpr: of the program.
      trips: iterations of the loops whose number is traced: of the outer ones, then of those within
        such a loop, and so on; further ones run once.
      needed: whether each output is used; None: all are.
    """
    return sum(_equation_flops(equation, trips, used) for equation, used in _needed(jaxpr, needed))


def _needed(jaxpr: Jaxpr, outputs: Sequence[bool] | None) -> Iterator[tuple[JaxprEqn, list[bool]]]:
    """Yield the equations that outputs depend on, with their used outputs; XLA drops the others."""
    used = outputs or [True] * len(jaxpr.outvars)
    variables = {id(one) for one, is_used in zip(jaxpr.outvars, used, strict=True) if is_used}
    for equation in reversed(jaxpr.eqns):
        used = [id(variable) in variables for variable in equation.outvars]
        if equation.effects or any(used):
            variables |= {id(variable) for variable in equation.invars}
            yield equation, used


def _equation_flops(equation: JaxprEqn, trips: Trips, used: list[bool]) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name == "cond":
        return max(count_flops(branch.jaxpr, trips, used) for branch in params["branches"])
    if name == "while":
        return _first(trips) * count_flops(params["body_jaxpr"].jaxpr, trips[1:])
    if name == "scan":
        return params["length"] * count_flops(params["jaxpr"].jaxpr, trips)
    return sum(
        count_flops(jaxpr, trips, used if len(used) == len(jaxpr.outvars) else None)
        for jaxpr in _inner_jaxprs(params)
    )


def _convolution_flops(equation: JaxprEqn) -> float:
    images, kernel, outputs = (one.aval.shape for one in (*equation.invars, *equation.outvars))
    params = equation.params
    layout = params["dimension_numbers"]
    products = kernel[layout.rhs_spec[1]] * math.prod(outputs[i] for i in layout.out_spec[:2])
    axes = zip(
        (images[i] for i in layout.lhs_spec[2:]),
        (kernel[i] for i in layout.rhs_spec[2:]),
        (outputs[i] for i in layout.out_spec[2:]),
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    for length, size, out, stride, (low, _), dilation, step in axes:
        positions = stride * np.arange(out)[:, None] + step * np.arange(size) - low
        inside = (positions >= 0) & (positions <= (length - 1) * dilation)
        products *= int((inside & (positions % dilation == 0)).sum())
    return 2 * products


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _first(trips: Trips) -> float:
    return trips[0] if trips else 1


@dataclass
class Operation:
    """An instruction of a compiled program.

    Attributes:
      name: in the HLO.
      opcode: such as "fusion".
      source: the operation of JAX that it comes from.
      bytes: read from and written to main memory, over all its executions.
      cycles: that the TPU's compiler estimates, over all its executions; 0 on a GPU.
    """

    name: str
    opcode: str
    source: str
    bytes: float
    cycles: float


@dataclass
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: list[str]
    text: str


def memory_traffic(hlo: str, trips: Trips) -> list[Operation]:
    """Return the instructions that touch main memory or take time, of all computations that run.

    Args:
      hlo: text of the optimised program.
      trips: iterations of the loops whose number the compiler does not know, as in `count_flops`.
    """
    computations, entry = _parse(hlo)

    def visit(name: str, times: float, trips: Trips) -> list[Operation]:
        instructions, operations = computations[name], []
        by_name = {one.name: one for one in instructions}
        for one in instructions:
            if one.opcode == "while":
                known = _known_trips(one, computations)
                count, inner = (_first(trips), trips[1:]) if known is None else (known, trips)
                operations += visit(_called(one, "body")[0], times * count, inner)
            elif one.opcode == "call":
                operations += visit(_called(one, "to_apply")[0], times, trips)
            elif one.opcode == "conditional":
                branches = [visit(branch, times, trips) for branch in _branches(one)]
                operations += max(branches, key=lambda branch: sum(step.bytes for step in branch))
            elif one.opcode not in _WITHOUT_TRAFFIC:
                cycles = re.search(r'"estimated_cycles":"(\d+)"', one.text)
                source = re.search(r'op_name="([^"]*)"', one.text)
                operations.append(
                    Operation(
                        one.name,
                        one.opcode,
                        source[1] if source else "",
                        times * _bytes_of(one, by_name, computations),
                        times * float(cycles[1] if cycles else 0),
                    )
                )
        return operations

    return visit(entry, 1, trips)


def _known_trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> float | None:
    """Return the iterations of a loop that counts from 0 to a constant, otherwise None."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return float(known[1])
    condition = computations[_called(loop, "condition")[0]]
    constants = {
        one.name: float(value[1])
        for one in condition
        if (value := re.search(r" constant\((\d+)\)", one.text))
    }
    root = condition[-1]
    if root.opcode == "compare" and "direction=LT" in root.text:
        return constants.get(root.operands[1])
    return None


def _branches(conditional: _Instruction) -> list[str]:
    return _called(conditional, "branch_computations", "true_computation", "false_computation")


_WITHOUT_TRAFFIC = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "copy-done", "slice-done", "async-done", "all-reduce-done", "opt-barrier",
}  # fmt: skip
_READS_ROWS = {"gather", "dynamic-slice", "slice"}


_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ((?:\([^=]*?\)|\S+)) ([\w\-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{$")


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Return the instructions of each computation, and the name of the entry computation."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if not line.startswith(" ") and (header := _COMPUTATION.match(line)):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(_without_comments(line))):
            name, type_, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            current.append(_Instruction(name, type_, opcode, operands, line))
    return computations, entry


def _without_comments(line: str) -> str:
    return re.sub(r"/\*.*?\*/", "", line)


def _called(instruction: _Instruction, *attributes: str) -> list[str]:
    return [
        name
        for attribute in attributes
        for group in re.findall(
            rf"{attribute}=\{{?([^,{{}}]*(?:, %[^,{{}}]*)*)\}}?", instruction.text
        )
        for name in re.findall(r"%?([\w.\-]+)", group)
    ]


def _bytes_of(
    one: _Instruction,
    by_name: dict[str, _Instruction],
    computations: dict[str, list[_Instruction]],
) -> float:
    """Return the bytes that an execution of an instruction reads and writes in main memory."""
    written = _main_memory_bytes(one.type)
    if one.opcode == "copy-start":  # (result, operand, semaphore)
        written = _main_memory_bytes(_elements(one.type)[0])
    elif one.opcode in ("slice-start", "async-start"):  # ((operands), result, semaphore)
        written = _main_memory_bytes(_elements(one.type)[len(one.operands)])
    read = [_main_memory_bytes(by_name[name].type) if name in by_name else 0.0
            for name in one.operands]  # fmt: skip
    if one.opcode in _READS_ROWS and read:
        read[0] = min(read[0], _size(one.type))
    if one.opcode == "slice-start":
        read[0] = min(read[0], _size(_elements(one.type)[1]))
    if one.opcode == "dynamic-update-slice":
        return 2 * read[1]
    if one.opcode == "fusion":
        inner = computations[_called(one, "calls")[0]]
        for number, instruction in enumerate(_parameters(inner)):
            users = [user for user in inner if instruction.name in user.operands]
            if users and number < len(read):
                if all(_reads_rows(user, instruction.name) for user in users):
                    read[number] = min(read[number], sum(_size(user.type) for user in users))
                elif all(_updates_rows(user, instruction.name) for user in users):
                    # In place: the fusion reads and writes the updated rows alone.
                    sizes = {one.name: _size(one.type) for one in inner}
                    rows = sum(sizes[user.operands[1]] for user in users)
                    written -= max(read[number] - rows, 0)
                    read[number] = min(read[number], rows)
    return max(written, 0) + sum(read)


def _parameters(inner: list[_Instruction]) -> list[_Instruction]:
    """Return the parameters of a computation in their order."""
    found = [one for one in inner if one.opcode == "parameter"]
    return sorted(found, key=lambda one: int(re.search(r"parameter\((\d+)\)", one.text)[1]))  # type: ignore[index]


def _reads_rows(user: _Instruction, name: str) -> bool:
    return (
        user.opcode in _READS_ROWS and user.operands[0] == name and user.operands.count(name) == 1
    )


def _updates_rows(user: _Instruction, name: str) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == name


_BYTES = {"pred": 1, "token": 0, "opaque": 0}  # other types have their bits in their name
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")


def _main_memory_bytes(type_: str) -> float:
    """Return the bytes of the arrays of a type that lie in main memory, with their padding."""
    return sum(
        0.0 if "S(" in (array[4] or "") else _array_bytes(array) for array in _ARRAY.finditer(type_)
    )


def _size(type_: str) -> float:
    return sum(_array_bytes(array) for array in _ARRAY.finditer(type_))


def _array_bytes(array: re.Match) -> float:
    """Return the bytes of an array; a TPU pads its minor axes to whole tiles."""
    dtype, dims, order, layout = array.groups()
    shape = [int(n) for n in dims.split(",") if n]
    if order and (tile := re.match(r"T\(([\d,]+)\)", layout or "")):
        sizes = [int(n) for n in tile[1].split(",")]
        minor_first = [int(n) for n in order.split(",")]
        for axis, size in zip(minor_first, reversed(sizes), strict=False):
            shape[axis] = -(-shape[axis] // size) * size
    bits = re.search(r"\d+", dtype)
    width = _BYTES[dtype] if bits is None else int(bits[0]) / 8
    return math.prod(shape) * width


def _elements(type_: str) -> list[str]:
    return [array[0] for array in _ARRAY.finditer(type_)] or [""]


def residual_bytes(fn: Any, *args: Any) -> float:
    """Return the bytes that the reverse mode of `fn` keeps from its forward pass.

    Args:
      fn: a function of arrays.
      *args: shapes of its arguments, which are differentiated.
    """
    kept = jax.eval_shape(lambda *args: jax.vjp(fn, *args)[1], *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
