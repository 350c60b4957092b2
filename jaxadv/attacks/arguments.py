"""What the arguments of attacks may be: one table, for calls of an attack and for configs alike."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxadv.attacks.expectation import AVERAGES
from jaxadv.attacks.threat import THREATS
from jaxadv.losses import LOSSES

LARGEST_COUNT = 2**31 - 1  # attacks count in int32
_LARGEST_RADIUS = 1e9  # squares of it stay finite in float32

DIRECTIONS = ("normal", "rademacher")
VERSIONS = ("standard", "plus", "rand")


class Rule(NamedTuple):
    """What a value must be.

    Attributes:
      holds: whether a number is such a value.
      words: that say so, after "must be".
    """

    holds: Callable[[Any], bool]
    words: str


def _count(least: int) -> Rule:
    return Rule(
        lambda n: isinstance(n, int) and least <= n <= LARGEST_COUNT,
        f"an integer from {least} to {LARGEST_COUNT}",
    )


def _choice(options: Collection[Any]) -> Rule:
    return Rule(lambda value: value in options, f"one of {', '.join(map(str, options))}")


STEPS, COUNT = _count(0), _count(1)
RADIUS = Rule(lambda r: 0 <= r <= _LARGEST_RADIUS, f"0 or more, at most {_LARGEST_RADIUS:.0e}")
POSITIVE = Rule(lambda value: 0 < value < math.inf, "above 0")
SHARE = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
DECAY = Rule(lambda value: 0 <= value < 1, "from 0 to below 1")

NUMBERS: dict[str, Rule] = {
    "batch_size": COUNT,
    "chunk_size": _count(2),
    "eps": RADIUS,
    "label_radius": RADIUS,
    "label_samples": COUNT,
    "min_step_size": RADIUS,
    "momentum": DECAY,
    "noise_chunk_size": COUNT,
    "num_noise_samples": COUNT,
    "num_queries": STEPS,
    "num_restarts": COUNT,
    "num_steps": STEPS,
    "num_targets": STEPS,
    "plateau_length": STEPS,
    "samples_per_gradient": Rule(
        lambda n: _count(2).holds(n) and n % 2 == 0, "an even integer, 2 or more: queries in pairs"
    ),
    "share": SHARE,
    "sigma": POSITIVE,
    "step_size": RADIUS,
}

CHOICES: dict[str, Rule] = {
    "directions": _choice(DIRECTIONS),
    "early_stop": _choice((True, False)),
    "noise_average": _choice(AVERAGES),
    "norm": _choice(tuple(THREATS)),
    "random_start": _choice((True, False)),
    "version": _choice(VERSIONS),
}

Arguments = Mapping[str, Any]
"""Arguments of an attack by name."""


def check_arguments(
    arguments: Arguments,
    num_classes: int | None = None,
    *,
    losses: Collection[str] = tuple(LOSSES),
    optional: Collection[str] = (),
) -> None:
    """Raises a ValueError that begins with the name of the first argument that breaks its rule.

    Names that no rule knows are left to the attack, and so are numbers that are only traced.

    Args:
      arguments: of an attack.
      num_classes: of the model, where it is known.
      losses: that the attack knows.
      optional: names that may be None.
    """
    choices = {**CHOICES, "loss": _choice(losses)}
    for name, value in arguments.items():
        if not known(value) or (value is None and name in optional):
            continue
        if name in choices:
            _check(name, value, choices[name], isinstance(value, (str, bool, np.bool_)))
        elif name in NUMBERS:
            _check(name, _as_number(value), NUMBERS[name], _is_number(value))
    num_targets = arguments.get("num_targets")
    if num_classes is not None and num_targets is not None and num_targets >= num_classes:
        raise ValueError(f"num_targets is {num_targets}: there are {num_classes - 1} other classes")


def check_at_least_one(**counts: Any) -> None:
    """Raises a ValueError that names the first of these counts that is not 1 or more."""
    for name, count in counts.items():
        if known(count):
            _check(name, _as_number(count), COUNT, _is_number(count))


def check_total(**counts: Any) -> None:
    """Raises a ValueError if the product of these counts is more than an int32 holds."""
    if not all(map(known, counts.values())):
        return
    total = math.prod(int(count) for count in counts.values())
    if total > LARGEST_COUNT:
        raise ValueError(f"{' x '.join(counts)} is {total}: it must be {LARGEST_COUNT} or less")


def known(value: Any) -> bool:
    """Returns whether a value is there, and not just traced."""
    return not isinstance(value, jax.core.Tracer)


def _check(name: str, value: Any, rule: Rule, is_right_kind: bool) -> None:
    if not (is_right_kind and rule.holds(value)):
        raise ValueError(f"{name} is {value!r}: it must be {rule.words}")


def _is_number(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and (array.dtype.kind in "iuf" or "float" in array.dtype.name)


def _as_number(value: Any) -> Any:
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else value
