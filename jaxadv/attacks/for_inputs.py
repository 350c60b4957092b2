"""Attacks on inputs that are no images in [0, 1]: other bounds, masks, and any number of axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int

from jaxadv.attacks.autoattack import autoattack
from jaxadv.attacks.black_box import BlackBox
from jaxadv.attacks.checks import as_images
from jaxadv.core.images import is_concrete, outside_of_range, value_range
from jaxadv.core.logits import at_least_float32
from jaxadv.core.types import Images, LogitsFn

_P = ParamSpec("_P")
_R = TypeVar("_R")


def for_inputs(
    attack: Callable[_P, _R],
    *,
    bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    mask: ArrayLike | None = None,
) -> Callable[_P, _R]:
    """Return an attack on inputs of any shape (batch, ...), such as vectors, tables or audio.

    The new attack has the arguments of the old one, with inputs in place of images. Radii, step
    sizes and distances are in units of the range from the lower to the upper bound. An array `eps`
    or `step_size` with a value for each feature has as many axes as the inputs.

    The last axis of the inputs are the channels, if there are two axes or more beside the batch. In
    L0 a pixel is a place in the other axes, with all its channels; in a vector it is one value.

    With a mask the attack sees the values that may change, and nothing else: norms, random starts,
    queries and the number of pixels count these alone. `square` and the options `diversity` and
    `kernel_size` of `mi_fgsm` need images: inputs of three axes, and a mask that is a rectangle of
    pixels, if there is one. A mask for each example is `eps * mask` as `eps` in L-inf.

    A call with `resume` continues up to rounding, if the bounds are not (0, 1).

    Args:
      attack: a function of `jaxadv.attacks`, or one with the same first four arguments.
      bounds: the least and the largest value that an input may have, numbers or arrays that
        broadcast to an example.
      mask: True where a value may change, broadcast to an example: for images (height, width, 1),
        or (height, width, channels); None: everywhere.

    Returns:
      The attack. Its result has the shape of the inputs, lies in the bounds, and is equal to them
      where nothing changed.

    Raises:
      ValueError: the bounds or the mask are invalid; in a call, the inputs are not floats within
        the bounds, or a `BlackBox` or `autoattack` gets a mask.

    >>> from jaxadv.attacks import pgd
    >>> import jax
    >>> logits_fn = lambda key, x: x @ jnp.array([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    >>> attack = for_inputs(pgd, bounds=(-1.0, 3.0), mask=np.array([True, True, False]))
    >>> x, y = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([0])
    >>> attack(jax.random.key(0), logits_fn, x, y, eps=0.125, step_size=0.125, num_steps=3)
    Array([[ 0.5, -0.5,  2. ]], dtype=float32)
    """
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    free = None if mask is None or not is_concrete(mask) else np.asarray(mask)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"bounds are {bounds}: each lower bound must be below its upper bound")
    if mask is not None and (free is None or free.dtype != bool):
        raise ValueError("mask must be an array of True and False, outside of jit")

    if mask is not None and attack is autoattack:
        raise ValueError(
            "autoattack takes no mask: run apgd, fab and square with a mask, one after another"
        )

    @wraps(attack)
    def attack_inputs(key: Any, logits_fn: Any, images: Any, labels: Any, **arguments: Any) -> Any:
        domain = make_domain(images, low, high, free)
        for name in ("eps", "step_size"):
            if name in arguments:
                arguments[name] = domain.radius_of_images(arguments[name])
        if arguments.get("starts") is not None:
            arguments["starts"] = domain.to_images(jnp.asarray(arguments["starts"]))
        if arguments.get("resume") is not None:
            resumed = domain.to_images(arguments["resume"].images)
            arguments["resume"] = arguments["resume"]._replace(images=resumed)
        run: Callable[..., Any] = attack
        found = run(key, domain.model_of_images(logits_fn), domain.images, labels, **arguments)
        if hasattr(found, "_replace"):
            return found._replace(images=domain.to_inputs(found.images))
        return domain.to_inputs(found)

    return cast(Callable[_P, _R], attack_inputs)


@dataclass(frozen=True)
class Domain:
    """Inputs, and the images in [0, 1] in whose place attacks see them.

    Attributes:
      inputs: (batch, ...).
      low: least values, of a shape that broadcasts to an example.
      high: largest values.
      places: number of the value of an example, read as a vector, that is at each place of an
        image.
      is_masked: whether some values have no place.
    """

    inputs: Array
    low: np.ndarray
    high: np.ndarray
    places: Int[np.ndarray, "height width channels"]
    is_masked: bool

    @cached_property
    def images(self) -> Images:
        """Return the inputs as images."""
        return self.to_images(self.inputs)

    def to_images(self, inputs: Array) -> Images:
        """Return inputs as images in [0, 1].

        Raises:
          ValueError: they do not have the shape of the inputs, or lie outside of the bounds.
        """
        if inputs.shape != self.inputs.shape:
            raise ValueError(
                f"inputs have shape {inputs.shape}: they must have shape {self.inputs.shape}"
            )
        low, high = (jnp.asarray(bound, inputs.dtype) for bound in (self.low, self.high))
        scaled = self._take((inputs - low) / (high - low))
        if outside_of_range(scaled):
            least, largest = value_range(self._take(inputs))
            raise ValueError(
                f"inputs lie in [{least:.9g}, {largest:.9g}]: they must lie in bounds="
                f"({_show(self.low)}, {_show(self.high)})"
            )
        return as_images("inputs", scaled)

    def to_inputs(self, images: Any) -> Any:
        """Return images as inputs: equal to the original ones where nothing changed."""
        clean = self.images if isinstance(images, jnp.ndarray) else np.asarray(self.images)
        module: Any = jnp if isinstance(images, jnp.ndarray) else np
        is_same, original = images == clean, self._take(module.asarray(self.inputs))
        return self._fill(module.where(is_same, original, self._scale(images)))

    def model_of_images(self, logits_fn: Any) -> LogitsFn | BlackBox:
        """Return a model of images.

        Raises:
          ValueError: the model is a `BlackBox`, which is queried for some of the rows only, and
            there is a mask.
        """
        if not isinstance(logits_fn, BlackBox):
            return lambda key, images: logits_fn(key, self._fill(self._scale(images)))
        if self.is_masked:
            raise ValueError(
                "logits_fn is a BlackBox, which takes no mask: in L-inf pass eps * mask as eps"
            )
        predict = logits_fn.predict
        return replace(logits_fn, predict=lambda images: predict(self._fill(self._scale(images))))

    def radius_of_images(self, radius: Any) -> Any:
        """Return a radius, or a step size, in the shape that attacks on images take."""
        if not np.ndim(radius) or np.shape(radius) == self.inputs.shape[:1]:
            return radius
        radius = jnp.asarray(radius)
        if radius.ndim != self.inputs.ndim:
            return radius  # the attack names the mistake
        return self._take(jnp.broadcast_to(radius, (len(radius), *self.inputs.shape[1:])))

    def _take(self, inputs: Any) -> Any:
        """Arrange the values that may change as images."""
        return _as_vectors(inputs)[:, self.places]

    def _scale(self, images: Any) -> Any:
        """Return images in the units of the inputs, within the bounds up to rounding."""
        shape = self.inputs.shape[1:]
        low, high = (
            np.broadcast_to(bound, shape).reshape(-1)[self.places].astype(images.dtype)
            for bound in (self.low, self.high)
        )
        return low + (high - low) * images

    def _fill(self, images: Any) -> Any:
        """Arrange images as inputs, with the original values where no image has a place."""
        shape = (len(images), *self.inputs.shape[1:])
        if not self.is_masked:
            return images.reshape(shape)
        original = _as_vectors(self.inputs).astype(images.dtype)
        filled = original.at[:, self.places.reshape(-1)].set(_as_vectors(images))
        return filled.reshape(shape)


def make_domain(
    inputs: ArrayLike, low: np.ndarray, high: np.ndarray, mask: np.ndarray | None
) -> Domain:
    """Return the domain of some inputs.

    Raises:
      ValueError: they are no floats of shape (batch, ...), or the bounds or the mask do not fit.
    """
    inputs = jnp.asarray(inputs)
    if inputs.ndim < 2 or 0 in inputs.shape[1:] or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"inputs are {inputs.dtype} of shape {inputs.shape}: they must be floats of shape "
            "(batch, ...) with at least one value for each example"
        )
    shape = inputs.shape[1:]
    for name, array in {"bounds": low, "bounds ": high, "mask": mask}.items():
        if array is not None:
            _check_broadcasts(name.strip(), np.asarray(array), shape)
    places = image_places(shape, mask)
    return Domain(at_least_float32(inputs), low, high, places, places.size < math.prod(shape))


def _as_vectors(batch: Any) -> Any:
    return batch.reshape(len(batch), math.prod(batch.shape[1:]))


def _check_broadcasts(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to an example, {shape}"
        )


def image_places(
    shape: tuple[int, ...], mask: np.ndarray | None
) -> Int[np.ndarray, "height width channels"]:
    """Return the numbers of the values of an example that may change, arranged as an image.

    Without a mask, the axes before the last two are merged; a vector becomes a column. With a mask,
    a rectangle of pixels becomes a smaller image. Other pixels become a column, with their channels
    if all of these may change.

    Raises:
      ValueError: nothing may change.

    >>> image_places((2, 2), np.array([[True, True], [False, False]])).tolist()
    [[[0, 1]]]
    """
    places = np.arange(math.prod(shape)).reshape(shape if len(shape) > 1 else (*shape, 1))
    everywhere = np.ones(shape, bool)
    may_change: Any = (everywhere if mask is None else everywhere & mask).reshape(places.shape)
    if not may_change.any():
        raise ValueError("mask is False everywhere: nothing could change")
    width, channels = places.shape[-2:] if places.ndim > 2 else (1, places.shape[-1])
    places, may_change = (a.reshape(-1, width, channels) for a in (places, may_change))
    pixels = may_change.any(axis=2)
    if not (may_change == pixels[..., None]).all():
        return places[may_change].reshape(-1, 1, 1)
    rows, columns = pixels.any(axis=1), pixels.any(axis=0)
    if (pixels == rows[:, None] & columns).all() and _is_interval(rows) and _is_interval(columns):
        return places[rows][:, columns]
    return places[pixels].reshape(-1, 1, channels)


def _is_interval(flags: np.ndarray) -> bool:
    numbers = np.flatnonzero(flags)
    return bool(numbers[-1] - numbers[0] + 1 == len(numbers))


def _show(bound: np.ndarray) -> str:
    return f"{bound:g}" if bound.ndim == 0 else f"array of shape {bound.shape}"
