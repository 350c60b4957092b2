"""The checks of types and shapes that the tests put on all of jaxadv: those of beartype.

A function inside of another is made, and so decorated, at each call of that. Its checks follow from
its signature, so they are made once for each signature: a page of the study alone has some 3,000
such calls, and checks take 6 ms to make.
"""

import inspect
from collections.abc import Callable

from beartype import beartype

_made: dict[tuple[str, str, inspect.Signature], Callable] = {}


def checked(function: Callable) -> Callable:
    """Returns what jaxtyping calls with the arguments, or the result, of a function it decorates.

    Args:
      function: made by jaxtyping of the signature of that one, with nothing else of it.
    """
    key = (function.__module__, function.__qualname__, inspect.signature(function))
    try:
        hash(key)
    except TypeError:  # of a default value
        return beartype(function)
    if key not in _made:
        _made[key] = beartype(function)
    return _made[key]
