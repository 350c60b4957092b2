"""Threat models: what an adversary of radius eps may do to an image, for each norm."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxadv.draws import normal, uniform
from jaxadv.prng import example_keys
from jaxadv.types import Images, PerExample, PRNGKey

Scalar = Float[Array, ""]
Radius = Scalar | Float[Array, "batch 1 1 1"]  # of all images, or of each


class Threat(NamedTuple):
    """The geometry of one norm ball, for a batch of images.

    `length(delta)` is the norm of each perturbation, `project(delta, eps)` is the nearest one
    inside the ball, `random_start(key, shape, eps)` draws one uniformly from it for a single
    image, and `steepest(gradient)` is the one of unit norm that gains most to first order.
    """

    length: Callable[[Images], Float[Array, "batch 1 1 1"]]
    project: Callable[[Images, Radius], Images]
    random_start: Callable[[Key[Array, ""], tuple[int, ...], Scalar], Float[Array, "..."]]
    steepest: Callable[[Images], Images]


def _linf_norm(delta: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.abs(delta).max(axis=(1, 2, 3), keepdims=True)


def _linf_project(delta: Images, eps: Radius) -> Images:
    return jnp.clip(delta, -eps, eps)


def _linf_random_start(
    key: Key[Array, ""], shape: tuple[int, ...], eps: Scalar
) -> Float[Array, "..."]:
    return eps * uniform(key, shape).astype(eps.dtype)


def _l2_norm(delta: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))


def _l2_project(delta: Images, eps: Radius) -> Images:
    floor = jnp.finfo(delta.dtype).tiny  # keeps zero at zero instead of NaN
    return delta * jnp.minimum(1.0, eps / jnp.maximum(_l2_norm(delta), floor))


def _l2_random_start(
    key: Key[Array, ""], shape: tuple[int, ...], eps: Scalar
) -> Float[Array, "..."]:
    direction_key, radius_key = jax.random.split(key)
    direction = normal(direction_key, shape)
    # The share of the ball within a radius r is r^d in d dimensions.
    radius = jax.random.uniform(radius_key, dtype=jnp.float32) ** (1 / math.prod(shape))
    length = jnp.sqrt((direction**2).sum())
    unit = radius * direction / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    return eps * unit.astype(eps.dtype)


def _l2_steepest(gradient: Images) -> Images:
    # Scaled first: the squares of a confident model's tiny gradient would underflow to zero.
    largest = _linf_norm(gradient)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(_l2_norm(scaled), 1)  # at least 1, unless the gradient is 0


THREATS = {
    "linf": Threat(_linf_norm, _linf_project, _linf_random_start, jnp.sign),
    "l2": Threat(_l2_norm, _l2_project, _l2_random_start, _l2_steepest),
}


def random_perturbation(
    threat: Threat, key: PRNGKey, example_ids: Int[Array, "batch"], images: Images, eps: Scalar
) -> Images:
    """Returns a uniform draw from the ball for each image, which follows from its own number."""
    draw = jax.vmap(threat.random_start, in_axes=(0, None, None))
    return draw(example_keys(key, example_ids), images.shape[1:], eps)


def random_on_sphere(
    threat: Threat,
    key: PRNGKey,
    example_ids: Int[Array, "batch"],
    images: Images,
    radius: Scalar | PerExample,
) -> Images:
    """Returns for each image a random point at that distance, or nearer where the box is."""
    delta = random_perturbation(threat, key, example_ids, images, jnp.ones((), images.dtype))
    radius = jnp.broadcast_to(radius, len(images))[:, None, None, None]
    length = jnp.maximum(threat.length(delta), jnp.finfo(images.dtype).tiny)  # it may be 0
    return jnp.clip(images + radius * delta / length, 0.0, 1.0)


def perturb(threat: Threat, images: Images, delta: Images, eps: Radius) -> Images:
    """Returns images + delta, inside the eps-ball around the images and inside [0, 1].

    Clipping to the box after the projection leaves the ball intact: every image is in the
    box, so the clip only moves a perturbed image nearer to it.
    """
    return jnp.clip(images + threat.project(delta, eps), 0.0, 1.0)
