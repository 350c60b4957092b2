"""What an attack may spend on an image, and how much of it before those that are broken leave."""

from collections.abc import Mapping
from typing import Any

from jaxadv.attacks.apgd import whole_budget as apgd_budget
from jaxadv.attacks.fab import whole_budget as fab_budget

_SEGMENT, _SEGMENT_WITH_GRADIENTS = 500, 25


def num_queries(attack: str, arguments: Mapping[str, Any]) -> Any:
    """Returns what an attack may spend on an image: gradients, or passes where it counts them.

    Args:
      attack: name of its function.
      arguments: of the function; without restarts, targets and draws there is one of each.
    """
    if arguments.get("num_queries") is not None:
        return arguments["num_queries"]
    num_targets, num_restarts = arguments.get("num_targets", 0), arguments.get("num_restarts", 1)
    draws = arguments.get("num_noise_samples", 1)
    if attack == "apgd":
        return apgd_budget(arguments.get("num_steps", 100), num_targets, num_restarts, draws)
    if attack == "fab":
        return fab_budget(arguments.get("num_steps", 100), num_targets, num_restarts)
    return arguments.get("num_steps", 1) * num_restarts * draws


def segment(attack: str, arguments: Mapping[str, Any]) -> int:
    """Returns the queries after which a search lets those leave that are done."""
    if not arguments.get("early_stop", True):
        return max(num_queries(attack, arguments), 1)
    return _SEGMENT_WITH_GRADIENTS if attack in ("apgd", "fab") else _SEGMENT
