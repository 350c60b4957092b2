"""Adversarial attacks on any JAX function: `(key, images) -> logits` is all they see."""

from collections.abc import Callable

from jaxadv.attacks.gradient import fgsm, pgd

ATTACKS: dict[str, Callable] = {"fgsm": fgsm, "pgd": pgd}

__all__ = ["ATTACKS", "fgsm", "pgd"]
