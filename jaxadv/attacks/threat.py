"""Threat models: the L-inf and L2 balls of perturbations that an adversary may choose from."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxadv.core.rng import example_keys, normal, uniform
from jaxadv.core.types import Images, PerExample, PRNGKey

Scalar = Float[Array, ""]
Radius = Scalar | Float[Array, "batch 1 1 1"]  # one for all images, or one per image

GREY_IMAGE_EPS = 0.5  # an L-inf ball of this radius around any image contains the grey image


class Threat(NamedTuple):
    """The geometry of one norm, for batches of perturbations.

    Attributes:
      length: `delta -> norms` of the perturbations.
      project: `(delta, eps) -> delta`; the nearest perturbations in the ball, in L2 distance.
      random_start: `(key, shape, eps) -> delta`; a uniform sample of the ball, for one image.
      steepest: `gradient -> delta`; the direction of steepest ascent, of norm 1, or 0 if the
        gradient is 0.
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
    # In d dimensions the share r^d of the volume is within the radius r.
    radius = jax.random.uniform(radius_key, dtype=jnp.float32) ** (1 / math.prod(shape))
    length = jnp.sqrt((direction**2).sum())
    unit = radius * direction / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    return eps * unit.astype(eps.dtype)


def _l2_steepest(gradient: Images) -> Images:
    # Scaled first: squares of the tiny gradients of a confident model would underflow to zero.
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
    """Sample a perturbation per image uniformly from the ball, given a key and example ids."""
    sample = jax.vmap(threat.random_start, in_axes=(0, None, None))
    return sample(example_keys(key, example_ids), images.shape[1:], eps)


def random_on_sphere(
    threat: Threat,
    key: PRNGKey,
    example_ids: Int[Array, "batch"],
    images: Images,
    radius: Scalar | PerExample,
) -> Images:
    """Sample a point per image on the sphere of this radius, and clip it to [0, 1]."""
    delta = random_perturbation(threat, key, example_ids, images, jnp.ones((), images.dtype))
    radius = jnp.broadcast_to(radius, len(images))[:, None, None, None]
    length = jnp.maximum(threat.length(delta), jnp.finfo(images.dtype).tiny)  # it may be 0
    return jnp.clip(images + radius * delta / length, 0.0, 1.0)


def perturb(threat: Threat, images: Images, delta: Images, eps: Radius) -> Images:
    """Return images + delta, projected onto the eps-ball around the images and clipped to [0, 1].

    The clip keeps the result in the ball: the images are in [0, 1], so it only moves closer.
    """
    return jnp.clip(images + threat.project(delta, eps), 0.0, 1.0)
