"""Threat models: balls of perturbations in L-inf, L2, L1 and L0 that an adversary chooses from."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxadv.attacks.bisection import bisect
from jaxadv.core.rng import example_keys, normal, rademacher, uniform
from jaxadv.core.types import Images, PerExample, PRNGKey

Scalar = Float[Array, ""]
# One for all images, one for each image, or in L-inf one for each value.
Radius = Scalar | PerExample | Float[Array, "#batch #height #width #channels"]

GREY_IMAGE_EPS = 0.5  # an L-inf ball of this radius around any image contains the grey image
# Of steepest ascent in L1: the share of the values that a step changes, and the room in the box
# that a value needs. Rounding leaves some room to values at a face, where a step is lost.
_SHARE_OF_VALUES = 0.01
_LEAST_ROOM = 1e-6


class Threat(NamedTuple):
    """The geometry of one norm, for batches of perturbations.

    Attributes:
      length: `delta -> norms` of the perturbations.
      project: `(images, delta, eps) -> delta`; the nearest perturbations in the ball, in L2
        distance. In L1 and L0 they are the nearest in the intersection of the ball with the box
        [0, 1] around the images.
      random_start: `(key, shape, eps) -> delta`; a uniform sample of the ball, for one image; eps
        broadcasts to the shape.
      steepest: `(images, gradient) -> delta`; the direction of steepest ascent, of norm 1, or 0 if
        the gradient is 0. In L1 it changes the 1 % of values with the largest gradients, among
        those that have room in the box. In L0 it is the gradient, divided by its L1 norm.
    """

    length: Callable[[Images], Float[Array, "batch 1 1 1"]]
    project: Callable[[Images, Images, Radius], Images]
    random_start: Callable[
        [Key[Array, ""], tuple[int, ...], Float[Array, "..."]], Float[Array, "..."]
    ]
    steepest: Callable[[Images, Images], Images]


def _linf_norm(delta: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.abs(delta).max(axis=(1, 2, 3), keepdims=True)


def _linf_project(images: Images, delta: Images, eps: Radius) -> Images:
    return jnp.clip(delta, -eps, eps)


def _linf_random_start(
    key: Key[Array, ""], shape: tuple[int, ...], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    return eps * uniform(key, shape).astype(eps.dtype)


def _linf_steepest(images: Images, gradient: Images) -> Images:
    return jnp.sign(gradient)


def _l2_norm(delta: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))


def _l2_project(images: Images, delta: Images, eps: Radius) -> Images:
    floor = jnp.finfo(delta.dtype).tiny  # keeps zero at zero instead of NaN
    return delta * jnp.minimum(1.0, eps / jnp.maximum(_l2_norm(delta), floor))


def _l2_random_start(
    key: Key[Array, ""], shape: tuple[int, ...], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    direction_key, radius_key = jax.random.split(key)
    direction = normal(direction_key, shape)
    length = jnp.sqrt((direction**2).sum())
    unit = direction / jnp.maximum(length, jnp.finfo(length.dtype).tiny)
    return eps * (_random_radius(radius_key, shape) * unit).astype(eps.dtype)


def _random_radius(key: Key[Array, ""], shape: tuple[int, ...]) -> Scalar:
    """Sample the length of a point that is uniform in a ball of radius 1."""
    # In d dimensions the share r^d of the volume is within the radius r.
    return jax.random.uniform(key, dtype=jnp.float32) ** (1 / math.prod(shape))


def _l2_steepest(images: Images, gradient: Images) -> Images:
    # Scaled first: squares of the tiny gradients of a confident model would underflow to zero.
    largest = _linf_norm(gradient)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(_l2_norm(scaled), 1)  # at least 1, unless the gradient is 0


def _l1_norm(delta: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.abs(delta).sum(axis=(1, 2, 3), keepdims=True)


def _l1_project(images: Images, delta: Images, eps: Radius) -> Images:
    """Project onto the intersection of the ball and the box (Croce & Hein, 2021, section 2.2).

    Each magnitude decreases by a common amount, to no less than 0, and then to the room that the
    pixel has in the box. The amount is the least with which the sum is at most eps.
    """
    magnitude = jnp.abs(delta)
    room = _room(images, delta)

    def shrink(amount: Float[Array, "batch 1 1 1"]) -> Images:
        return jnp.clip(magnitude - amount, 0, room)

    def is_too_long(amount: Float[Array, "batch 1 1 1"]) -> Bool[Array, "batch 1 1 1"]:
        return shrink(amount).sum(axis=(1, 2, 3), keepdims=True) > eps

    least = jnp.zeros_like(_linf_norm(delta))
    _, amount = bisect(is_too_long, least, _linf_norm(delta))
    return jnp.sign(delta) * shrink(jnp.where(is_too_long(least), amount, least))


def _room(images: Images, delta: Images) -> Images:
    """Return how far each pixel may move in the direction of the perturbation."""
    return jnp.where(delta > 0, 1 - images, images)


def _l1_random_start(
    key: Key[Array, ""], shape: tuple[int, ...], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    sign_key, direction_key, radius_key = jax.random.split(key, 3)
    # Exponential variables, divided by their sum, are uniform on the simplex.
    direction = -jnp.log1p(-(1 + uniform(direction_key, shape)) / 2)
    total = jnp.maximum(direction.sum(), jnp.finfo(direction.dtype).tiny)
    unit = rademacher(sign_key, shape) * direction / total
    return eps * (_random_radius(radius_key, shape) * unit).astype(eps.dtype)


def _l1_steepest(images: Images, gradient: Images) -> Images:
    count = max(int(_SHARE_OF_VALUES * math.prod(images.shape[1:])), 1)
    can_move = _room(images, gradient) > _LEAST_ROOM
    counts = jnp.full_like(images[:, 0, 0, 0], count)
    return sparse_direction(jnp.where(can_move, gradient, 0), counts)


def sparse_direction(gradient: Images, count: PerExample) -> Images:
    """Return a direction of L1 norm 1 that changes the values with the largest gradients.

    All change by the same amount (sparse L1 descent, Tramer & Boneh, 2019, section 4). The step of
    steepest ascent would change a single value.

    Args:
      gradient: of the loss.
      count: number of values of each image that change, 1 or more; further ones change if their
        gradient is as large as the least of these.
    """
    magnitude = jnp.abs(gradient)

    def has_enough(least: Float[Array, "batch 1 1 1"]) -> Bool[Array, "batch 1 1 1"]:
        chosen = (magnitude >= least).astype(count.dtype)
        return chosen.sum(axis=(1, 2, 3), keepdims=True) >= count[:, None, None, None]

    largest = _linf_norm(gradient)
    least, _ = bisect(has_enough, jnp.zeros_like(largest), jnp.full_like(largest, jnp.inf))
    signs = jnp.where(magnitude >= least, jnp.sign(gradient), 0)
    return signs / jnp.maximum(_l1_norm(signs), 1)


def _l0_norm(delta: Images) -> Float[Array, "batch 1 1 1"]:
    changed = (delta != 0).any(axis=3, keepdims=True).astype(delta.dtype)
    return changed.sum(axis=(1, 2, 3), keepdims=True)


def _l0_project(images: Images, delta: Images, eps: Radius) -> Images:
    """Keep the pixels whose removal would change the perturbation most (Croce & Hein, 2019)."""
    clipped = jnp.clip(delta, -images, 1 - images)
    gain = (delta**2 - (delta - clipped) ** 2).sum(axis=3)
    order = (-gain).reshape(len(gain), math.prod(gain.shape[1:])).argsort(axis=1)
    rank = order.argsort(axis=1).reshape(gain.shape)[..., None]
    return jnp.where(rank < jnp.floor(eps), clipped, 0)


def _l0_random_start(
    key: Key[Array, ""], shape: tuple[int, ...], eps: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Sample values in [-1, 1] for random pixels."""
    pixel_key, value_key = jax.random.split(key)
    height, width, _ = shape
    rank = uniform(pixel_key, (height * width,)).argsort().argsort().reshape(height, width, 1)
    return jnp.where(rank < jnp.floor(eps), uniform(value_key, shape), 0).astype(eps.dtype)


def _l0_steepest(images: Images, gradient: Images) -> Images:
    # Scaled first: sums of tiny or huge gradients would leave the range of floats.
    largest = _linf_norm(gradient)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(_l1_norm(scaled), 1)


THREATS = {
    "linf": Threat(_linf_norm, _linf_project, _linf_random_start, _linf_steepest),
    "l2": Threat(_l2_norm, _l2_project, _l2_random_start, _l2_steepest),
    "l1": Threat(_l1_norm, _l1_project, _l1_random_start, _l1_steepest),
    # The number of pixels that change in any channel. The ball is not convex.
    "l0": Threat(_l0_norm, _l0_project, _l0_random_start, _l0_steepest),
}
NORMS = ("linf", "l2", "l1")  # of attacks that do not list theirs
# The dual norm of a gradient is the most that a linear function changes in a ball of radius 1.
DUALS = {"linf": "l1", "l2": "l2", "l1": "linf"}


def as_column(radius: Radius) -> Float[Array, "..."]:
    """Return a radius in a shape that broadcasts to images."""
    return radius[:, None, None, None] if radius.ndim == 1 else radius


def per_image(radius: Radius, count: int) -> Float[Array, "batch ..."]:
    """Return a radius for each of `count` images, which broadcasts to the image."""
    column = as_column(radius)
    return jnp.broadcast_to(column, (count, *(column.shape[1:] or (1, 1, 1))))


def largest_radius(radius: Radius) -> Scalar | PerExample:
    """Return the largest radius of the values of each image, or the one for all images."""
    return radius.max(axis=(1, 2, 3)) if radius.ndim == 4 else radius


def random_perturbation(
    threat: Threat, key: PRNGKey, example_ids: Int[Array, "batch"], images: Images, eps: Radius
) -> Images:
    """Sample a perturbation per image uniformly from the ball, given a key and example ids."""
    sample = jax.vmap(threat.random_start, in_axes=(0, None, 0))
    return sample(example_keys(key, example_ids), images.shape[1:], per_image(eps, len(images)))


def random_on_sphere(
    threat: Threat,
    key: PRNGKey,
    example_ids: Int[Array, "batch"],
    images: Images,
    radius: Radius,
) -> Images:
    """Sample a point per image on the sphere of this radius, and clip it to [0, 1]."""
    delta = random_perturbation(threat, key, example_ids, images, jnp.ones((), images.dtype))
    length = jnp.maximum(threat.length(delta), jnp.finfo(images.dtype).tiny)  # it may be 0
    return jnp.clip(images + as_column(radius) * delta / length, 0.0, 1.0)


def perturb(threat: Threat, images: Images, delta: Images, eps: Radius) -> Images:
    """Return images + delta, projected onto the eps-ball around the images and clipped to [0, 1].

    The clip keeps the result in the ball: the images are in [0, 1], so it only moves closer.
    """
    return jnp.clip(images + threat.project(images, delta, as_column(eps)), 0.0, 1.0)


def ascend(
    threat: Threat,
    images: Images,
    iterate: Images,
    gradient: Images,
    step_size: Radius,
    eps: Radius,
) -> Images:
    """Return the iterate after a step of steepest ascent, in the eps-ball around the images."""
    moved = iterate + as_column(step_size) * threat.steepest(iterate, gradient)
    return perturb(threat, images, moved - images, eps)
