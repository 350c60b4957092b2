"""The arrays that attacks are given: checked and cast before anything is compiled."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int

from jaxadv.attacks.arguments import known
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.logits import at_least_single
from jaxadv.parallel import vary_alike
from jaxadv.types import Images, Labels, PRNGKey

_ROUNDING = 1e-6  # how far single precision strays when an image is normalised and back


class Inputs(NamedTuple):
    """What all attacks are given, as they need it.

    Attributes:
      key: of all that is random.
      images: float32, or float64 in JAX's 64-bit mode, in [0, 1].
      labels: int32.
      targets: int32, or None.
      example_ids: numbers of the examples, which their randomness follows from.
    """

    key: PRNGKey
    images: Images
    labels: Labels
    targets: Labels | None
    example_ids: Int[Array, "batch"]


def check_inputs(
    key: PRNGKey,
    images: ArrayLike,
    labels: ArrayLike,
    targets: ArrayLike | None = None,
    example_ids: ArrayLike | None = None,
) -> Inputs:
    """Returns the arrays of an attack, cast to what it computes in.

    Half precision is cast to single. Values that leave [0, 1] by rounding are clipped. Shapes are
    always checked; values only where they are known, that is outside of `jit`.

    Raises:
      ValueError: an array is not as attacks need it; the message names it.
    """
    key = check_key(key)
    images = check_images("images", images)
    labels = _as_classes("labels", labels, len(images))
    if targets is not None:
        targets = _as_classes("targets", targets, len(images))
        _check_differ(labels, targets)
    ids = jnp.arange(len(images), dtype=jnp.int32) if example_ids is None else example_ids
    return Inputs(key, images, labels, targets, _check_ids(ids, len(images)))


def prepare(
    logits_fn: Any,
    key: PRNGKey,
    images: ArrayLike,
    labels: ArrayLike,
    targets: ArrayLike | None = None,
    example_ids: ArrayLike | None = None,
    *,
    gradients: bool = True,
) -> tuple[TracedModel, Inputs]:
    """Returns the model and the arrays of an attack, once they are checked.

    Args:
      logits_fn: `(key, images) -> logits`, a function of JAX.
      key: of all that is random.
      images: clean images.
      labels: true classes.
      targets: classes to be predicted instead, or None.
      example_ids: numbers of the examples; None: their positions.
      gradients: whether the attack differentiates the model.

    Raises:
      ValueError: an array or the function is not as attacks need it.
    """
    inputs = vary_alike(check_inputs(key, images, labels, targets, example_ids))
    model = trace_model(logits_fn, inputs.key, inputs.images, gradients=gradients)
    along_weights, _ = vary_alike((inputs, model.weights))
    if jax.typeof(along_weights.images) != jax.typeof(inputs.images):
        inputs = along_weights
        model = trace_model(logits_fn, inputs.key, inputs.images, gradients=gradients)
    check_classes("labels", inputs.labels, model.num_classes)
    if inputs.targets is not None:
        check_classes("targets", inputs.targets, model.num_classes)
    return model, inputs


def check_images(name: str, images: ArrayLike) -> Images:
    """Returns images as floats in [0, 1], in single precision or better.

    Raises:
      ValueError: they are not floats in [0, 1] of shape (batch, height, width, channels).
    """
    images = _as_array(name, images)
    if images.ndim != 4:
        raise ValueError(f"{name} have shape {images.shape}, not (batch, height, width, channels)")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} are {images.dtype}, not floats in [0, 1]: divide bytes by 255")
    if 0 in images.shape[1:]:
        raise ValueError(f"{name} have shape {images.shape}: there are no pixels")
    if outside := outside_of_range(images):
        raise ValueError(f"{name} lie in [{outside[0]:.9g}, {outside[1]:.9g}], not in [0, 1]")
    images = at_least_single(images)
    if not known(images) or not images.size:
        return images
    low, high = _range(images)
    return images if low >= 0 and high <= 1 else jnp.clip(images, 0, 1)


def outside_of_range(images: Array | np.ndarray) -> tuple[float, float] | None:
    """Returns the least and the largest value of floats that leave [0, 1] by more than rounding.

    What is only traced is not known, and None.
    """
    if not known(images) or not images.size:
        return None
    low, high = map(float, _range(images))
    tolerance = max(_ROUNDING, float(jnp.finfo(images.dtype).eps))
    inside = low >= -tolerance and high <= 1 + tolerance  # not so where these are NaN
    return None if inside else (low, high)


def check_classes(name: str, classes: Labels, num_classes: int | float) -> None:
    """Raises a ValueError if one of these, as far as they are known, is not of so many classes."""
    if not known(classes) or not classes.size:
        return
    low, high = _range(classes)
    if not 0 <= low <= high < num_classes:
        raise ValueError(f"{name} lie in [{low}, {high}], not in [0, {num_classes - 1}]")


def _as_classes(name: str, classes: ArrayLike, batch: int) -> Labels:
    """Returns one class for each image as int32."""
    classes = _as_array(name, classes)
    if classes.ndim == 2 and len(classes) == batch:
        raise ValueError(
            f"{name} have shape {classes.shape}, as one-hot rows have: give {name}.argmax(-1)"
        )
    if classes.shape != (batch,):
        raise ValueError(f"{name} have shape {classes.shape}, not ({batch},) as the images")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"{name} are {classes.dtype}, not integers")
    check_classes(name, classes, math.inf)
    return classes.astype(jnp.int32)


def check_key(key: Any) -> PRNGKey:
    """Returns a key of `jax.random.key`, also for one of `jax.random.PRNGKey`."""
    if getattr(key, "dtype", None) == np.uint32 and key.ndim == 1:
        key = jax.random.wrap_key_data(jnp.asarray(key))
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)) or key.shape:
        raise ValueError(f"key is {key!r}, not one key of JAX: give jax.random.key(0)")
    return key


def _as_array(name: str, values: ArrayLike) -> Array:
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError) as error:
        kind = type(values).__name__
        raise ValueError(f"{name} are a {kind} that is not an array of numbers") from error


def _check_ids(ids: ArrayLike, batch: int) -> Array:
    ids = _as_array("example_ids", ids)
    if ids.shape != (batch,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"example_ids are {ids.dtype} of shape {ids.shape}, not integers of shape ({batch},) "
            "as the images"
        )
    if known(ids) and len(np.unique(ids)) < batch:
        raise ValueError("example_ids are not distinct: examples would share their randomness")
    return ids


def _check_differ(labels: Labels, targets: Labels) -> None:
    if known(labels) and known(targets):
        same = int((np.asarray(labels) == np.asarray(targets)).sum())
        if same:
            raise ValueError(f"targets equal the labels of {same} images: give other classes")


def _range(array: Array | np.ndarray) -> tuple[Any, Any]:
    # Inside of jit a known array would be traced too, and a traced one cannot be compared.
    with jax.ensure_compile_time_eval():
        return array.min().item(), array.max().item()
