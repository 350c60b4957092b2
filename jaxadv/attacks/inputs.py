"""What every attack asks of its arguments, checked before anything is compiled."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxadv.attacks.threat import THREATS
from jaxadv.losses import LOSSES
from jaxadv.types import LogitsFn, PRNGKey


def check_inputs(
    logits_fn: LogitsFn,
    key: PRNGKey,
    images: Array,
    labels: Array,
    targets: Array | None,
    *,
    eps: ArrayLike,
    norm: str,
    loss: str,
) -> None:
    """Raises a ValueError that names the first argument that is not as attacks need it.

    Shapes are always checked; values only where they are known, that is outside of jit.
    """
    if norm not in THREATS:
        raise ValueError(f"norm {norm!r} is not one of {', '.join(THREATS)}")
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}, not (batch, height, width, channels)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}, not floats in [0, 1]: divide bytes by 255")
    if _known(images) and images.size and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images lie in [{images.min():.4g}, {images.max():.4g}], not in [0, 1]")
    if _known(eps) and not jnp.asarray(eps) >= 0:
        raise ValueError(f"eps is {eps}, not a radius of 0 or more")
    logits = jax.eval_shape(logits_fn, key, images)
    if logits.ndim != 2 or logits.shape[0] != len(images):
        raise ValueError(f"logits have shape {logits.shape}, not ({len(images)}, classes)")
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None:
            _check_classes(name, jnp.asarray(classes), len(images), logits.shape[1])


def _check_classes(name: str, classes: Array, batch: int, num_classes: int) -> None:
    if classes.shape != (batch,):
        raise ValueError(f"{name} have shape {classes.shape}, not ({batch},) as the images")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"{name} are {classes.dtype}, not integers")
    if (
        _known(classes)
        and classes.size
        and not (classes.min() >= 0 and classes.max() < num_classes)
    ):
        raise ValueError(
            f"{name} lie in [{classes.min()}, {classes.max()}], not in [0, {num_classes - 1}]"
        )


def _known(value: ArrayLike) -> bool:
    return not isinstance(value, jax.core.Tracer)
