"""What every attack asks of its arguments, checked before anything is compiled."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jaxadv.attacks.passes import BlackBox
from jaxadv.attacks.threat import THREATS
from jaxadv.losses import LOSSES
from jaxadv.types import LogitsFn, PRNGKey


def as_inputs(
    images: ArrayLike, labels: ArrayLike, example_ids: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Returns images, labels and numbers of the examples, by default their positions."""
    images = jnp.asarray(images)
    ids = jnp.arange(len(images)) if example_ids is None else jnp.asarray(example_ids)
    return images, jnp.asarray(labels), ids


def check_inputs(
    logits_fn: LogitsFn | BlackBox,
    key: PRNGKey,
    images: Array,
    labels: Array,
    targets: Array | None,
    *,
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
    check_images("images", images)
    num_classes = None  # of a black box only its answers tell
    if not isinstance(logits_fn, BlackBox):
        logits = jax.eval_shape(logits_fn, key, images)
        if logits.ndim != 2 or logits.shape[0] != len(images):
            raise ValueError(f"logits have shape {logits.shape}, not ({len(images)}, classes)")
        num_classes = logits.shape[1]
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None:
            _check_classes(name, jnp.asarray(classes), len(images), num_classes)


def check_images(name: str, images: Array) -> None:
    """Raises a ValueError if these are not images: floats in [0, 1] of the right shape."""
    if images.ndim != 4:
        raise ValueError(f"{name} have shape {images.shape}, not (batch, height, width, channels)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} are {images.dtype}, not floats in [0, 1]: divide bytes by 255")
    _check_range(name, images, highest=1)


def check_at_least(least: int, **numbers: ArrayLike) -> None:
    """Raises a ValueError that names the first number below `least`, where it is known."""
    _check_each(numbers, lambda number: number >= least, f"of {least} or more")


def check_positive(**numbers: ArrayLike) -> None:
    """Raises a ValueError that names the first number not above 0, where it is known."""
    _check_each(numbers, lambda number: number > 0, "above 0")


def check_decay(**numbers: ArrayLike) -> None:
    """Raises a ValueError that names the first number outside of [0, 1), where it is known."""
    _check_each(numbers, lambda number: 0 <= number < 1, "from 0 to below 1")


def _check_each(numbers: dict[str, ArrayLike], holds: Callable[[float], bool], words: str) -> None:
    for name, number in numbers.items():
        if _known(number) and not (np.ndim(number) == 0 and holds(np.asarray(number).item())):
            raise ValueError(f"{name} is {number}, not a number {words}")


def _check_classes(name: str, classes: Array, batch: int, num_classes: int | None) -> None:
    if classes.shape != (batch,):
        raise ValueError(f"{name} have shape {classes.shape}, not ({batch},) as the images")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"{name} are {classes.dtype}, not integers")
    _check_range(name, classes, highest=math.inf if num_classes is None else num_classes - 1)


def _check_range(name: str, array: Array, highest: int | float) -> None:
    if not _known(array) or not array.size:
        return
    # Inside of jit a known array would be traced too, and a traced one cannot be compared.
    with jax.ensure_compile_time_eval():
        low, high = array.min().item(), array.max().item()
    if not (low >= 0 and high <= highest):
        raise ValueError(f"{name} lie in [{low:.4g}, {high:.4g}], not in [0, {highest}]")


def _known(value: ArrayLike) -> bool:
    return not isinstance(value, jax.core.Tracer)
