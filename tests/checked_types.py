"""Run-time checks of types and shapes, by beartype, for all functions of jaxadv in tests.

A nested function is created and decorated at each call of the enclosing function. Its checks depend
on its signature only, so they are created once per signature: one page of the study has about 3,000
such calls, and creating checks takes 6 ms.
"""

import inspect
from collections.abc import Callable
from typing import Any, Self

from beartype import beartype

_checkers: dict[tuple[str, str, inspect.Signature], Callable] = {}


def checked(function: Callable) -> Callable:
    """Return the checker that jaxtyping calls with the arguments and results of a function.

    Args:
      function: created by jaxtyping, with the signature of that function only.
    """
    # beartype accepts Self only in classes that it decorates.
    hints = function.__annotations__.items()
    function.__annotations__ = {name: Any if hint is Self else hint for name, hint in hints}
    key = (function.__module__, function.__qualname__, inspect.signature(function))
    try:
        hash(key)
    except TypeError:  # unhashable default value
        return beartype(function)
    if key not in _checkers:
        _checkers[key] = beartype(function)
    return _checkers[key]
