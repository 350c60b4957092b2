"""Adversarial attacks on any JAX function: `(key, images) -> logits` is all they see."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxadv.attacks.apgd import apgd, check_apgd
from jaxadv.attacks.arguments import check_arguments
from jaxadv.attacks.autoattack import AutoAttacked, autoattack
from jaxadv.attacks.fab import check_fab, fab
from jaxadv.attacks.gradient import check_pgd, fgsm, n_fgsm, pgd
from jaxadv.attacks.label_only import check_nes_label_only, nes_label_only
from jaxadv.attacks.nes import nes
from jaxadv.attacks.passes import BlackBox
from jaxadv.attacks.queries import Queried
from jaxadv.attacks.random_search import random_search
from jaxadv.attacks.square import square

ATTACKS: dict[str, Callable] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "apgd": apgd,
    "fab": fab,
    "nes": nes,
    "nes_label_only": nes_label_only,
    "square": square,
    "random_search": random_search,
    "autoattack": autoattack,
}

# Of each, `(arguments, num_classes) -> None`: a ValueError that names what it cannot be asked.
CHECKS: dict[str, Callable[[dict[str, Any], int | None], None]] = {
    **dict.fromkeys(ATTACKS, check_arguments),
    "nes": partial(check_arguments, optional=("chunk_size",)),
    "nes_label_only": check_nes_label_only,
    "pgd": check_pgd,
    "apgd": check_apgd,
    "fab": check_fab,
}

GRADIENT_FREE = ("nes", "nes_label_only", "square", "random_search")
# That keep a ledger, and go on where they stopped: they return a `Queried`.
RESUMABLE = (*GRADIENT_FREE, "apgd", "fab")

__all__ = [
    "ATTACKS", "CHECKS", "GRADIENT_FREE", "RESUMABLE", "AutoAttacked", "BlackBox", "Queried",
    "apgd", "autoattack", "fab", "fgsm", "n_fgsm", "nes", "nes_label_only", "pgd", "random_search",
    "square",
]  # fmt: skip
