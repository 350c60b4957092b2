"""The nearest point of a hyperplane inside of the box, which FAB asks for at each step."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxadv.types import Images, PerExample

Rows = Float[Array, "batch 1 1 1"]


def nearest_on_plane(images: Images, normal: Images, rise: PerExample, norm: str) -> Images:
    """Returns the smallest changes that raise a linear function by `rise`, inside of [0, 1].

    Each pixel moves along its weight w_i until it meets the box: by a common amount t in L-inf, by
    t |w_i| in L2. What is gained grows with t along a concave chain of lines, on which Newton's
    method from the left meets the solution exactly, as soon as no further pixel meets the box.
    Where the box holds no solution all pixels go to its walls.

    Args:
      images: points in [0, 1], shape (batch, height, width, channels).
      normal: gradients of the linear functions, of the same shape.
      rise: what is to be gained, shape (batch,); below 0 it is to be lost.
      norm: "linf" or "l2".
    """
    # Scaled first: squares of weights that are tiny or huge would leave the range of floats.
    largest = jnp.abs(normal).max(axis=(1, 2, 3), keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    normal, rise = normal / largest, rise / largest[:, 0, 0, 0]
    normal = jnp.where(rise[:, None, None, None] < 0, -normal, normal)
    weight, need = jnp.abs(normal), jnp.abs(rise)
    room = jnp.where(normal > 0, 1 - images, images)
    speed = jnp.ones_like(weight) if norm == "linf" else weight
    speed = jnp.where(weight > 0, speed, 0)

    def newton(
        state: tuple[PerExample, Bool[Array, "batch"]],
    ) -> tuple[PerExample, Bool[Array, "batch"]]:
        t, growing = state
        ahead = speed * _rows(t)
        gain = _sum(weight * jnp.minimum(ahead, room))
        slope = _sum(weight * jnp.where(ahead < room, speed, 0))
        step = jnp.where(slope > 0, (need - gain) / jnp.where(slope > 0, slope, 1), 0)
        # A row that has arrived stays, however long others take: its bits are its own.
        moved = jnp.where(growing, jnp.maximum(t + step, t), t)
        return moved, moved > t * (1 + 1e-6)

    start = jnp.zeros_like(need), jnp.ones_like(need, bool)
    t, _ = lax.while_loop(lambda state: state[1].any(), newton, start)
    # The slope is 0 where all pixels are at the walls and something is still needed.
    out_of_reach = need > _sum(weight * room)
    change = jnp.where(_rows(out_of_reach), room, jnp.minimum(speed * _rows(t), room))
    return jnp.sign(normal) * change


def _sum(images: Images) -> PerExample:
    return images.sum(axis=(1, 2, 3))


def _rows(values: Array) -> Array:
    return values[:, None, None, None]
