"""The result of an attack: one type for all attacks of an evaluation."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from jaxadv.core.types import Images, PerExample

_P = ParamSpec("_P")


class AttackResult(NamedTuple):
    """Adversarial images and what they cost; every array has one row per example.

    Attributes:
      images: adversarial images, (batch, height, width, channels).
      success: whether a success check found the image misclassified, or classified as its target,
        inside the ball. False for attacks without success checks, such as PGD.
      queries: forward passes spent, with or without a gradient.
      gradients: gradients among them; 0 for black-box attacks.
      nonfinite: gradients, or differences of outputs, that were NaN or infinite and counted as
        zero.
      margins: at the success check of `images`, the largest other logit minus that of the label;
        with targets, the logit of the target minus the largest other. Above 0 is a success. -inf
        without a success check. If a logit is NaN or infinite, the margin is inf, a success, or
        with targets -inf.
      steps: candidates proposed, or steps taken.
      extras: the state that a resumed call continues from, or `Distances`; its type is the
        attack's.
    """

    images: Images
    success: Bool[Array, "batch"]
    queries: Int[Array, "batch"]
    gradients: Int[Array, "batch"]
    nonfinite: Int[Array, "batch"]
    margins: PerExample
    steps: Int[Array, "batch"]
    extras: PyTree


class Distances(NamedTuple):
    """The `extras` of a minimal-norm attack that cannot be resumed.

    Attributes:
      distance: to the nearest misclassified image found, in the norm of the attack; infinite
        without one.
    """

    distance: PerExample


def initial_result(images: Images, extras: PyTree = ()) -> AttackResult:
    """Return the result before the first step: the clean images, at no cost."""
    # Derived from the images, so that all fields vary over the same axes of a mesh.
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    counts = zeros.astype(jnp.int32)
    return AttackResult(
        images=images,
        success=counts > 0,
        queries=counts,
        gradients=counts,
        nonfinite=counts,
        margins=zeros - jnp.inf,
        steps=counts,
        extras=extras,
    )


def returning_images(attack: Callable[_P, AttackResult]) -> Callable[_P, Images]:
    """Make an attack return the images alone; `__wrapped__` returns the `AttackResult`."""

    @wraps(attack)
    def images_of_attack(*args: _P.args, **kwargs: _P.kwargs) -> Images:
        return attack(*args, **kwargs).images

    signature = inspect.signature(attack).replace(return_annotation=Images)
    images_of_attack.__signature__ = signature  # type: ignore[attr-defined]
    return images_of_attack
