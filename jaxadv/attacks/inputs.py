"""What every attack asks of its arguments, checked before anything is compiled."""

import math
from collections.abc import Callable, Collection
from typing import Any

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
    images: Array,
    labels: Array,
    targets: Array | None,
    example_ids: Array,
    *,
    num_classes: int | None,
    norm: str,
    loss: str,
    losses: Collection[str] = tuple(LOSSES),
) -> None:
    """Raises a ValueError that names the first argument that is not as attacks need it.

    Shapes are always checked; values only where they are known, that is outside of jit.
    """
    if norm not in THREATS:
        raise ValueError(f"norm {norm!r} is not one of {', '.join(THREATS)}")
    if loss not in losses:
        raise ValueError(f"loss {loss!r} is not one of {', '.join(losses)}")
    check_images("images", images)
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None:
            _check_classes(name, jnp.asarray(classes), len(images), num_classes)
    if example_ids.shape != (len(images),) or not jnp.issubdtype(example_ids.dtype, jnp.integer):
        raise ValueError(
            f"example_ids are {example_ids.dtype} of shape {example_ids.shape}, not integers of "
            f"shape ({len(images)},) as the images"
        )
    if known(example_ids) and len(np.unique(example_ids)) < len(images):
        raise ValueError("example_ids are not distinct: examples would share their randomness")


def count_classes(logits_fn: LogitsFn | BlackBox, key: PRNGKey, images: Array) -> int:
    """Returns how many logits a function of JAX has; raises a ValueError if it is none."""
    if isinstance(logits_fn, BlackBox):
        raise ValueError("a BlackBox has no gradients: take nes, square or random_search")
    check_images("images", images)
    try:
        logits = jax.eval_shape(logits_fn, key, images)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError("logits_fn is no function of JAX: wrap it in a BlackBox") from error
    if logits.ndim != 2 or logits.shape[0] != len(images):
        raise ValueError(f"logits have shape {logits.shape}, not ({len(images)}, classes)")
    return logits.shape[1]


def check_images(name: str, images: Array) -> None:
    """Raises a ValueError if these are not images: floats in [0, 1] of the right shape."""
    if images.ndim != 4:
        raise ValueError(f"{name} have shape {images.shape}, not (batch, height, width, channels)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} are {images.dtype}, not floats in [0, 1]: divide bytes by 255")
    _check_range(name, images, highest=1)


def check_at_least(least: int, **numbers: Any) -> None:
    """Raises a ValueError that names the first number below `least`, where it is known."""
    _check_each(numbers, lambda number: least <= number < math.inf, f"of {least} or more")


def check_count(least: int, **numbers: Any) -> None:
    """Raises a ValueError that names the first that is no integer from `least` on, where known."""
    _check_each(
        numbers,
        lambda number: isinstance(number, int) and number >= least,
        f"without fraction, of {least} or more",
    )


def check_positive(**numbers: Any) -> None:
    """Raises a ValueError that names the first number not above 0, where it is known."""
    _check_each(numbers, lambda number: 0 < number < math.inf, "above 0")


def check_share(**numbers: Any) -> None:
    """Raises a ValueError that names the first number outside of [0, 1], where it is known."""
    _check_each(numbers, lambda number: 0 <= number <= 1, "from 0 to 1")


def check_decay(**numbers: Any) -> None:
    """Raises a ValueError that names the first number outside of [0, 1), where it is known."""
    _check_each(numbers, lambda number: 0 <= number < 1, "from 0 to below 1")


def _check_each(numbers: dict[str, Any], holds: Callable[[float], bool], words: str) -> None:
    for name, number in numbers.items():
        if not known(number):
            continue
        value = np.asarray(number)
        is_number = value.ndim == 0 and value.dtype.kind in "iuf"
        if not (is_number and holds(value.item())):
            raise ValueError(f"{name} is {number}, not a number {words}")


def _check_classes(name: str, classes: Array, batch: int, num_classes: int | None) -> None:
    if classes.shape != (batch,):
        raise ValueError(f"{name} have shape {classes.shape}, not ({batch},) as the images")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"{name} are {classes.dtype}, not integers")
    _check_range(name, classes, highest=math.inf if num_classes is None else num_classes - 1)


def _check_range(name: str, array: Array, highest: int | float) -> None:
    if not known(array) or not array.size:
        return
    # Inside of jit a known array would be traced too, and a traced one cannot be compared.
    with jax.ensure_compile_time_eval():
        low, high = array.min().item(), array.max().item()
    if not (low >= 0 and high <= highest):
        raise ValueError(f"{name} lie in [{low:.4g}, {high:.4g}], not in [0, {highest}]")


def known(value: Any) -> bool:
    """Returns whether a value is there, and not just traced."""
    return not isinstance(value, jax.core.Tracer)
