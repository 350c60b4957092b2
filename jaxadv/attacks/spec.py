"""What an evaluation knows of an attack.

Each attack's file defines its `AttackSpec`. The table `ATTACKS` in `jaxadv/attacks/__init__.py`
lists them. To add an attack, write its file with a spec, such as `PGD` in `pgd.py`, and add a row
to `ATTACKS`. Arguments that other attacks do not have need a rule in `checks.py`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxadv.attacks.checks import check_arguments
from jaxadv.attacks.threat import NORMS

# Arguments of an attack that the caller sets for each call, not the config.
PER_CALL = (
    "targets", "starts", "example_ids", "resume", "individual", "batch_size", "progress", "ledger",
)  # fmt: skip


@dataclass(frozen=True)
class AttackSpec:
    """One attack.

    Attributes:
      attack_fn: the public function, `(key, logits_fn, images, labels, **arguments)`.
      run: the same function with an `AttackResult` as its result, which evaluations call.
      traced: names of the traced arguments: another value does not compile again.
      uses_gradients: whether it differentiates the model; otherwise it is a black-box attack.
      max_queries: `arguments -> int`, the most gradients, or forward passes of a black-box attack,
        per example. Missing arguments have their defaults.
      norms: values of its argument `norm`.
      resumable: whether it takes `num_queries` and `resume`, checks its successes, and stops at the
        first: such attacks run in segments, between which fooled examples leave the batch.
      takes_example_ids: whether its randomness follows from `example_ids`.
      returns_clean: whether it returns the clean image where it finds no adversarial one.
      measures_distance: whether `extras.distance` of its result is the distance to the nearest
        misclassified image that it found.
      is_ensemble: whether it schedules other attacks on all examples, as AutoAttack does.
      check: `(arguments, num_classes)`; raises a ValueError that names the invalid argument.
    """

    attack_fn: Callable[..., Any]
    run: Callable[..., Any]
    traced: tuple[str, ...]
    uses_gradients: bool
    max_queries: Callable[[Mapping[str, Any]], int]
    norms: tuple[str, ...] = NORMS
    resumable: bool = False
    takes_example_ids: bool = True
    returns_clean: bool = False
    measures_distance: bool = False
    is_ensemble: bool = False
    check: Callable[[Mapping[str, Any], int | None], None] = check_arguments

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the arguments that a config may set, with their defaults.

        Required arguments have the value `inspect.Parameter.empty`.
        """
        return {
            parameter.name: parameter.default
            for parameter in inspect.signature(self.attack_fn).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in PER_CALL
        }
