"""Adversarial attacks on any JAX function: `(key, images) -> logits` is all they see."""

from collections.abc import Callable

from jaxadv.attacks.gradient import fgsm, pgd
from jaxadv.attacks.random_search import random_search

ATTACKS: dict[str, Callable] = {"fgsm": fgsm, "pgd": pgd, "random_search": random_search}

GRADIENT_FREE = ("random_search",)

__all__ = ["ATTACKS", "GRADIENT_FREE", "fgsm", "pgd", "random_search"]
