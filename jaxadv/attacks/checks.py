"""Validation of the arguments of attacks, for calls of an attack and for configs alike.

Numbers and names have one table of rules. Arrays are checked and cast by `check_inputs`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Integer

from jaxadv.attacks.eot import AVERAGES
from jaxadv.attacks.threat import NORMS
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.core.devices import match_varying_axes
from jaxadv.core.images import is_concrete, outside_of_range, value_range
from jaxadv.core.logits import at_least_float32
from jaxadv.core.losses import LOSSES
from jaxadv.core.types import Images, Labels, PRNGKey

LARGEST_COUNT = 2**31 - 1  # attacks count in int32
_LARGEST_RADIUS = 1e9  # its square is finite in float32

DIRECTIONS = ("normal", "rademacher")
VERSIONS = ("standard", "plus", "rand", "custom")


class Rule(NamedTuple):
    """A condition on the value of an argument.

    Attributes:
      is_valid: whether a value meets it.
      words: its description, after "it must be".
    """

    is_valid: Callable[[Any], bool]
    words: str


def integer_rule(least: int) -> Rule:
    """Return the rule of an integer that is not below `least` and that int32 can hold."""
    return Rule(
        lambda n: isinstance(n, int) and least <= n <= LARGEST_COUNT,
        f"an integer from {least} to {LARGEST_COUNT}",
    )


def choice_rule(options: Collection[Any]) -> Rule:
    """Return the rule of a value that is one of the options."""
    return Rule(lambda value: value in options, f"one of {', '.join(map(str, options))}")


STEPS, COUNT = integer_rule(0), integer_rule(1)
RADIUS = Rule(lambda r: 0 <= r <= _LARGEST_RADIUS, f"0 or more, at most {_LARGEST_RADIUS:.0e}")
POSITIVE = Rule(lambda value: 0 < value < math.inf, "above 0")
SHARE = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
DECAY = Rule(lambda value: 0 <= value < 1, "from 0 to below 1")

NUMBERS: dict[str, Rule] = {
    "batch_size": COUNT,
    "chunk_size": integer_rule(2),
    "constant": POSITIVE,
    "decay": SHARE,
    "diversity": SHARE,
    "eps": RADIUS,
    "initial_samples": COUNT,
    "kernel_size": Rule(lambda n: COUNT.is_valid(n) and n % 2 == 1, "an odd integer, 1 or more"),
    "label_radius": RADIUS,
    "label_samples": COUNT,
    "min_step_size": RADIUS,
    "momentum": DECAY,
    "noise_chunk_size": COUNT,
    "num_noise_samples": COUNT,
    "num_odi_steps": STEPS,
    "num_queries": STEPS,
    "num_restarts": COUNT,
    "num_searches": COUNT,
    "num_steps": STEPS,
    "num_targets": STEPS,
    "overshoot": RADIUS,
    "plateau_length": STEPS,
    "samples_per_gradient": Rule(
        lambda n: integer_rule(2).is_valid(n) and n % 2 == 0,
        "an even integer, 2 or more, because queries come in pairs",
    ),
    "share": SHARE,
    "sigma": POSITIVE,
    "step_size": RADIUS,
}

CHOICES: dict[str, Rule] = {
    "directions": choice_rule(DIRECTIONS),
    "early_stop": choice_rule((True, False)),
    "individual": choice_rule((True, False)),
    "nesterov": choice_rule((True, False)),
    "noise_average": choice_rule(AVERAGES),
    "random_start": choice_rule((True, False)),
    "version": choice_rule(VERSIONS),
}

Arguments = Mapping[str, Any]
"""Arguments of an attack by name."""


def check_arguments(
    arguments: Arguments,
    num_classes: int | None = None,
    *,
    losses: Collection[str] = tuple(LOSSES),
    norms: Collection[str] = NORMS,
    optional: Collection[str] = (),
    arrays: Collection[str] = ("eps",),
) -> None:
    """Raise a ValueError that begins with the name of the first invalid argument.

    Names without a rule and traced values are not checked.

    Args:
      arguments: arguments of an attack.
      num_classes: number of classes of the model, if known.
      losses: losses that the attack supports.
      norms: norms that the attack supports.
      optional: names of arguments that may be None.
      arrays: names of numbers that may be arrays, see `as_radius`.
    """
    choices = {**CHOICES, "loss": choice_rule(losses), "norm": choice_rule(norms)}
    for name, value in arguments.items():
        if not is_concrete(value) or (value is None and name in optional):
            continue
        if name in choices:
            _check(name, value, choices[name], isinstance(value, (str, bool, np.bool_)))
        elif name in arrays and np.ndim(value) > 0:
            _check_all(name, np.asarray(value), NUMBERS[name])
        elif name in NUMBERS:
            _check(name, _to_python(value), NUMBERS[name], _is_number(value))
    num_targets = arguments.get("num_targets")
    if num_classes is not None and num_targets is not None and num_targets >= num_classes:
        raise ValueError(
            f"num_targets is {num_targets}: it must be at most {num_classes - 1}, the number of "
            "other classes"
        )


def check_at_least_one(**counts: Any) -> None:
    """Raise a ValueError that names the first count that is below 1."""
    for name, count in counts.items():
        if is_concrete(count):
            _check(name, _to_python(count), COUNT, _is_number(count))


def check_product(**counts: Any) -> None:
    """Raise a ValueError if the product of the counts exceeds the range of int32."""
    if not all(map(is_concrete, counts.values())):
        return
    product = math.prod(int(count) for count in counts.values())
    if product > LARGEST_COUNT:
        raise ValueError(f"{' x '.join(counts)} is {product}: it must be {LARGEST_COUNT} or less")


def _check(name: str, value: Any, rule: Rule, has_valid_type: bool) -> None:
    if not (has_valid_type and rule.is_valid(value)):
        raise ValueError(f"{name} is {value!r}: it must be {rule.words}")


def _check_all(name: str, values: np.ndarray, rule: Rule) -> None:
    """Raise a ValueError if the least or the largest value of an array breaks a rule."""
    if not _has_numbers(values):
        raise ValueError(f"{name} has values of type {values.dtype}: they must be numbers")
    # The rules of arrays are intervals. NaN is the least and the largest value where there is one.
    for value in (values.min().item(), values.max().item()) if values.size else ():
        if not rule.is_valid(value):
            raise ValueError(f"{name} contains {value!r}: each value must be {rule.words}")


def _is_number(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and _has_numbers(array)


def _has_numbers(array: np.ndarray) -> bool:
    return array.dtype.kind in "iuf" or "float" in array.dtype.name


def _to_python(value: Any) -> Any:
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else value


class Inputs(NamedTuple):
    """The arrays of an attack, checked and cast.

    Attributes:
      key: key of all randomness.
      images: clean images in [0, 1], float32, or float64 in JAX's 64-bit mode.
      labels: true classes, int32.
      targets: target classes, int32, or None.
      example_ids: integers that the randomness of each example depends on.
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
    """Check the arrays of an attack and cast them to its precision.

    Half precision is cast to single precision. Values outside [0, 1] by rounding are clipped.
    Shapes are always checked, values only if they are concrete, that is outside of `jit`.

    Raises:
      ValueError: an array is invalid; the message begins with its name.
    """
    key = check_key(key)
    images = as_images("images", images)
    labels = as_labels("labels", labels, len(images))
    if targets is not None:
        targets = as_labels("targets", targets, len(images))
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
    """Trace the model of an attack, and check and cast its arrays.

    Args:
      logits_fn: `(key, images) -> logits`, a JAX function.
      key: key of all randomness.
      images: clean images.
      labels: true classes.
      targets: target classes, or None.
      example_ids: distinct integers, by default the positions in the batch.
      gradients: whether the attack differentiates the model.

    Raises:
      ValueError: an array or the function is invalid.
    """
    inputs = match_varying_axes(check_inputs(key, images, labels, targets, example_ids))
    model = trace_model(logits_fn, inputs.key, inputs.images, gradients=gradients)
    matched_inputs, _ = match_varying_axes((inputs, model.weights))
    if jax.typeof(matched_inputs.images) != jax.typeof(inputs.images):
        inputs = matched_inputs
        model = trace_model(logits_fn, inputs.key, inputs.images, gradients=gradients)
    check_classes("labels", inputs.labels, model.num_classes)
    if inputs.targets is not None:
        check_classes("targets", inputs.targets, model.num_classes)
    return model, inputs


def as_images(name: str, images: ArrayLike) -> Images:
    """Return images as floats in [0, 1], in single precision or higher.

    Raises:
      ValueError: they are not floats in [0, 1] of shape (batch, height, width, channels).
    """
    images = _as_array(name, images)
    if images.ndim != 4:
        raise ValueError(
            f"{name} have shape {images.shape}: they must have shape (batch, height, width, "
            "channels)"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name} are {images.dtype}: they must be floats in [0, 1]; divide bytes by 255"
        )
    if 0 in images.shape[1:]:
        raise ValueError(f"{name} have shape {images.shape}: they must have at least one pixel")
    if outside := outside_of_range(images):
        raise ValueError(
            f"{name} lie in [{outside[0]:.9g}, {outside[1]:.9g}]: they must lie in [0, 1]"
        )
    images = at_least_float32(images)
    if not is_concrete(images) or not images.size:
        return images
    low, high = value_range(images)
    return images if low >= 0 and high <= 1 else jnp.clip(images, 0, 1)


def as_radius(
    name: str, radius: ArrayLike | None, images: Array, *, per_value: bool = False
) -> Array:
    """Return a radius or a step size in the precision of the images; None is infinite.

    Args:
      name: of the argument.
      radius: one number, an array of shape (batch,) with one for each image, or, with `per_value`,
        an array with as many axes as the images that broadcasts to them.
      images: of the attack, or its inputs of any shape (batch, ...).
      per_value: whether each value of an image may have its own.

    Raises:
      ValueError: it has another shape.
    """
    radius = jnp.asarray(math.inf if radius is None else radius, images.dtype)
    if radius.ndim == 0 or radius.shape == (len(images),):
        return radius
    fits = all(size in (1, full) for size, full in zip(radius.shape, images.shape, strict=False))
    if per_value and radius.ndim == images.ndim and fits:
        return radius
    expected = f"be a number, or have shape ({len(images)},), one for each image"
    if per_value:
        expected += f", or have {images.ndim} axes and broadcast to {images.shape}"
    raise ValueError(f"{name} has shape {radius.shape}: it must {expected}")


def as_starts(starts: ArrayLike | None, images: Images) -> Images | None:
    """Return the images at which an attack starts, in the precision of the clean images.

    Raises:
      ValueError: they have another shape, or are no images.
    """
    if starts is None:
        return None
    starts = as_images("starts", starts).astype(images.dtype)
    if starts.shape != images.shape:
        raise ValueError(
            f"starts have shape {starts.shape}: they must have the shape of images, {images.shape}"
        )
    return starts


def as_labels(name: str, classes: ArrayLike, batch_size: int) -> Labels:
    """Return one class per image as int32.

    Raises:
      ValueError: they are not integers of shape (batch_size,) from 0.
    """
    classes = _as_array(name, classes)
    if classes.ndim == 2 and len(classes) == batch_size:
        if classes.shape[1] == 1:
            raise ValueError(f"{name} have shape {classes.shape}: pass {name}[:, 0]")
        raise ValueError(
            f"{name} have shape {classes.shape}, like one-hot vectors: pass {name}.argmax(-1)"
        )
    if classes.shape != (batch_size,):
        raise ValueError(
            f"{name} have shape {classes.shape}: they must have shape ({batch_size},), one class "
            "per image"
        )
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(
            f"{name} are {classes.dtype}: they must be integers; pass {name}.astype(int)"
        )
    check_classes(name, classes, math.inf)
    return classes.astype(jnp.int32)


def check_classes(name: str, classes: Integer[Array, "batch"], num_classes: int | float) -> None:
    """Raise a ValueError if a concrete class is not in [0, num_classes - 1]."""
    if not is_concrete(classes) or not classes.size:
        return
    low, high = value_range(classes)
    if not 0 <= low <= high < num_classes:
        valid = "be 0 or more" if num_classes == math.inf else f"lie in [0, {num_classes - 1}]"
        raise ValueError(f"{name} lie in [{low}, {high}]: they must {valid}")


def check_key(key: Any) -> PRNGKey:
    """Return a typed key as of `jax.random.key`; raw keys of `jax.random.PRNGKey` are wrapped.

    Raises:
      ValueError: it is not a single key.
    """
    if getattr(key, "dtype", None) == np.uint32 and key.ndim == 1:
        key = jax.random.wrap_key_data(jnp.asarray(key))
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)) or key.shape:
        raise ValueError(f"key is {key!r}: it must be a single JAX key such as jax.random.key(0)")
    return key


def _as_array(name: str, values: ArrayLike) -> Array:
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError) as error:
        kind = type(values).__name__
        raise ValueError(f"{name} are a {kind}: they must be an array of numbers") from error


def _check_ids(ids: ArrayLike, batch_size: int) -> Array:
    ids = _as_array("example_ids", ids)
    if ids.shape != (batch_size,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"example_ids are {ids.dtype} of shape {ids.shape}: they must be integers of shape "
            f"({batch_size},), one per image"
        )
    if is_concrete(ids) and len(np.unique(ids)) < batch_size:
        raise ValueError(
            "example_ids contain duplicates: they must be distinct, because examples with equal "
            "ids share their randomness"
        )
    return ids


def _check_differ(labels: Labels, targets: Labels) -> None:
    if is_concrete(labels) and is_concrete(targets):
        num_equal = int((np.asarray(labels) == np.asarray(targets)).sum())
        if num_equal:
            raise ValueError(
                f"targets equal the labels of {num_equal} images: they must be other classes"
            )
