"""CutMix (Yun et al., 2019) of the two halves of a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxadv.core.types import Images, Labels, PRNGKey


def cutmix(
    keys: Key[Array, "batch"],
    images: Images,
    labels: Labels,
    targets: Float[Array, "batch classes"],
    probability: float,
) -> tuple[Images, Labels, Float[Array, "batch classes"]]:
    """Exchange a random box between each image of the first half and its partner in the second.

    The box covers a share of the area that is uniform in [0, 1]. Its centre is uniform in the
    image, and its part outside is cut off. The pairs are the same on any number of devices, whose
    shares of a batch are interleaved.

    Args:
      keys: one for each example; a pair uses that in the first half.
      images: shape (batch, height, width, channels), with an even batch.
      labels: classes, shape (batch,).
      targets: distributions of the labels, shape (batch, classes).
      probability: of mixing a pair.

    Returns:
      The images; the classes of the larger part of each, for attacks; and the targets, mixed by the
      shares of the area.
    """
    half = len(images) // 2
    partner = (jnp.arange(len(images)) + half) % len(images)
    boxes = jax.vmap(_box, in_axes=(0, None, None))(keys[:half], images.shape[1:3], probability)
    inside = jnp.concatenate([boxes, boxes])
    share = inside.mean(axis=(1, 2))[:, None]  # of the partner
    return (
        jnp.where(inside[..., None], images[partner], images),
        jnp.where(share[:, 0] > 0.5, labels[partner], labels),
        (1 - share) * targets + share * targets[partner],
    )


def _box(key: PRNGKey, size: tuple[int, ...], probability: float) -> Bool[Array, "height width"]:
    """Return which pixels are inside a random box; none with 1 minus the probability."""
    is_mixed_key, share_key, centre_key = jax.random.split(key, 3)
    side = jnp.sqrt(jax.random.uniform(share_key)) * jax.random.bernoulli(is_mixed_key, probability)
    centre = jax.random.uniform(centre_key, (2,))

    def is_inside(length: int, centre: Float[Array, ""]) -> Bool[Array, "length"]:
        return jnp.abs((jnp.arange(length) + 0.5) / length - centre) < side / 2

    return is_inside(size[0], centre[0])[:, None] & is_inside(size[1], centre[1])[None, :]
