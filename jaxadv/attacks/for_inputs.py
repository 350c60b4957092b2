"""Attacks on inputs that are no images in [0, 1]: other bounds, masks, and any number of axes."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Int

from jaxadv.attacks.autoattack import autoattack
from jaxadv.attacks.black_box import BlackBox
from jaxadv.attacks.checks import as_images, as_radius
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.threat import THREATS, perturb
from jaxadv.attacks.tracing import check_logits_fn
from jaxadv.attacks.universal import universal_perturbation
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
    queries and the number of pixels count these alone. A mask for each example is `eps * mask` as
    `eps` in L-inf.

    Two attacks use the neighbours of a pixel: `square`, and `mi_fgsm` with `diversity` or
    `kernel_size`. They see images if the inputs have three axes, and if the mask is a rectangle.
    Other values lie in a column. There the squares of `square` are intervals in L-inf, and single
    values in L2 and L1, which makes it weak.

    A `BlackBox` and the model of `autoattack` get the inputs up to rounding, all other models
    exactly. A call with `resume` continues up to rounding, if the bounds are not (0, 1).

    Args:
      attack: a function of `ATTACKS`, or `n_fgsm`.
      bounds: the least and the largest value that an input may have, numbers or arrays that
        broadcast to an example.
      mask: True where a value may change, an array that broadcasts to an example: for images
        (height, width, 1) or (height, width, channels); None: everywhere.

    Returns:
      The attack. Its result has the shape of the inputs, lies in the bounds, and is equal to them
      where nothing changed.

    Raises:
      ValueError: the bounds or the mask are invalid; in a call, the inputs are not floats within
        the bounds, or a `BlackBox` or `autoattack` gets a mask.

    >>> from jaxadv.attacks import pgd
    >>> logits_fn = lambda key, x: x @ jnp.array([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    >>> attack = for_inputs(pgd, bounds=(-1.0, 3.0), mask=np.array([True, True, False]))
    >>> x, y = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([0])
    >>> attack(jax.random.key(0), logits_fn, x, y, eps=0.125, step_size=0.125, num_steps=3)
    Array([[ 0.5, -0.5,  2. ]], dtype=float32)
    """
    free = None if mask is None or not is_concrete(mask) else np.asarray(mask)
    if mask is not None and (free is None or free.dtype != bool):
        raise ValueError("mask must be an array of True and False, outside of jit")
    function: Any = attack
    while isinstance(function, partial):
        function = function.func
    if function is universal_perturbation:
        raise ValueError(
            "for_inputs takes attacks with a result for each input: this has one for all"
        )
    if mask is not None and function is autoattack:
        raise ValueError(
            "autoattack takes no mask: run apgd, fab and square with a mask, one after another"
        )
    defaults = inspect.signature(attack).parameters

    @wraps(attack)
    def attack_inputs(key: Any, logits_fn: Any, images: Any, labels: Any, **arguments: Any) -> Any:
        domain = make_domain(images, bounds, free)
        norm = arguments.get("norm", defaults["norm"].default if "norm" in defaults else "linf")
        changed = {
            name: domain.radius_of_images(name, arguments[name], norm)
            for name in ("eps", "step_size")
            if arguments.get(name) is not None
        }
        if arguments.get("starts") is not None:
            changed["starts"] = domain.to_images("starts", arguments["starts"])
        if isinstance(arguments.get("resume"), AttackResult):
            eps = changed.get("eps", jnp.inf)
            changed["resume"] = domain.resumed(arguments["resume"], eps, norm)
        run: Callable[..., Any] = attack
        model = domain.model_of_images(key, logits_fn)
        found = run(key, model, domain.images, labels, **{**arguments, **changed})
        if hasattr(found, "_replace"):
            return found._replace(images=domain.to_inputs(found.images))
        return domain.to_inputs(found)

    return cast(Callable[_P, _R], attack_inputs)


@dataclass(frozen=True)
class Domain:
    """Inputs, and how attacks see them as images in [0, 1].

    Attributes:
      inputs: (batch, ...).
      low: least values, of the shape of an example.
      high: largest values.
      places: for each value of an image, its index in an example that is flattened.
    """

    inputs: Array
    low: np.ndarray
    high: np.ndarray
    places: Int[np.ndarray, "height width channels"]

    @cached_property
    def images(self) -> Images:
        """Return the inputs as images.

        Raises:
          ValueError: they lie outside of the bounds.
        """
        return self.to_images("inputs", self.inputs)

    def to_images(self, name: str, inputs: ArrayLike) -> Images:
        """Return inputs as images in [0, 1].

        Raises:
          ValueError: they are not floats of the shape of the inputs, or lie outside of the bounds.
        """
        inputs = jnp.asarray(inputs)
        if inputs.shape != self.inputs.shape or not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(
                f"{name} are {inputs.dtype} of shape {inputs.shape}: they must be floats of shape "
                f"{self.inputs.shape}"
            )
        free = at_least_float32(_take(inputs, self.places))
        low, high = self._bounds_of_images(free.dtype)
        scaled = (free - low) / (high - low)
        if outside_of_range(scaled.astype(inputs.dtype)):  # with the tolerance of their precision
            least, largest = value_range(free)
            raise ValueError(
                f"{name} lie in [{least:.9g}, {largest:.9g}]: they must lie in bounds="
                f"({_show(self.low)}, {_show(self.high)})"
            )
        return as_images(name, jnp.clip(scaled, 0, 1))

    def resumed(self, result: AttackResult, eps: Any, norm: str) -> AttackResult:
        """Return the result of an earlier call with its images as the attack left them."""
        images = self.to_images("resume", result.images).astype(result.margins.dtype)
        clean = self.images.astype(images.dtype)
        radius = as_radius("eps", eps, clean, per_value=True)
        # Rounding may have moved them out of the ball.
        return result._replace(images=perturb(THREATS[norm], clean, images - clean, radius))

    def to_inputs(self, images: Any) -> Any:
        """Return images as inputs, equal to the original ones where nothing changed.

        Raises:
          ValueError: there is not one image for each input.
        """
        if images.shape != self.images.shape:
            raise ValueError(
                f"attack returns shape {images.shape} for {len(self.images)} images: for_inputs "
                "takes attacks whose result has an image for each input"
            )
        found, dtype = jnp.asarray(images), self._values.dtype
        scaled = jnp.clip(self._scale(found.astype(dtype)), *self._bounds_of_images(dtype))
        is_same = found == self.images.astype(found.dtype)
        original = _take(self._values, self.places)
        filled = lax.stop_gradient(self._fill(jnp.where(is_same, original, scaled)))
        return filled if isinstance(images, jax.Array) else np.asarray(filled)

    def model_of_images(self, key: Any, logits_fn: Any) -> LogitsFn | BlackBox:
        """Return a model of images, given a model of inputs and the key of the attack.

        Raises:
          ValueError: it is no model, or a `BlackBox`, which is queried for some of the rows only,
            and there is a mask.
        """
        if isinstance(logits_fn, BlackBox):
            if self._is_masked:
                raise ValueError(
                    "logits_fn is a BlackBox, which takes no mask: in L-inf pass eps * mask as eps"
                )
            predict = logits_fn.predict
            return replace(
                logits_fn, predict=lambda images: predict(self._fill(self._scale(images)))
            )
        check_logits_fn(logits_fn, key, self.inputs)

        def of_images(key: Any, images: Images) -> Array:
            values = self._scale(images)
            if images.shape == self.images.shape:
                # Exactly the inputs where nothing changed; the derivative is that of the scaling.
                original = _take(self._values, self.places).astype(images.dtype)
                is_same = images == self.images.astype(images.dtype)
                values += lax.stop_gradient(jnp.where(is_same, original - values, 0))
            return logits_fn(key, self._fill(values))

        return of_images

    def radius_of_images(self, name: str, radius: Any, norm: str) -> Any:
        """Return a radius, or a step size, in the shape that attacks on images take.

        Raises:
          ValueError: it has another shape than that of a radius of the inputs.
        """
        if not np.ndim(radius):
            return radius
        radius = as_radius(name, radius, self.inputs, per_value=norm == "linf")
        if radius.ndim == 1:
            return radius
        return _take(jnp.broadcast_to(radius, (len(radius), *self.inputs.shape[1:])), self.places)

    @property
    def _values(self) -> Array:
        """The inputs in the precision of the attack: half precision is cast to single."""
        return at_least_float32(self.inputs)

    @property
    def _is_masked(self) -> bool:
        return self.places.size < math.prod(self.inputs.shape[1:])

    def _bounds_of_images(self, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        return (
            self.low.reshape(-1)[self.places].astype(dtype),
            self.high.reshape(-1)[self.places].astype(dtype),
        )

    def _scale(self, images: Any) -> Any:
        """Return images in the units of the inputs, within the bounds up to rounding."""
        low, high = self._bounds_of_images(images.dtype)
        return low + (high - low) * images

    def _fill(self, values: Any) -> Any:
        """Arrange the values of images as inputs, with the original ones at all other places."""
        shape = (len(values), *self.inputs.shape[1:])
        if not self._is_masked:
            return values.reshape(shape)
        if len(values) != len(self.inputs):
            raise ValueError(
                f"attack calls its model with {len(values)} of {len(self.inputs)} images: under a "
                "mask it must use one batch"
            )
        original = _as_vectors(self._values).astype(values.dtype)
        return original.at[:, self.places.reshape(-1)].set(_as_vectors(values)).reshape(shape)


def make_domain(
    inputs: ArrayLike, bounds: tuple[ArrayLike, ArrayLike], mask: np.ndarray | None
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
    low, high = (_broadcast("bounds", np.asarray(b, np.float64), shape) for b in bounds)
    places = image_places(shape, None if mask is None else _broadcast("mask", mask, shape))
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).reshape(-1)[places].all():
        raise ValueError(
            f"bounds are ({_show(low)}, {_show(high)}): they must be finite, and each lower bound "
            "below its upper bound, except where a mask is False"
        )
    return Domain(inputs, low, high, places)


def _broadcast(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to an example, {shape}"
        ) from None


def image_places(
    shape: tuple[int, ...], mask: np.ndarray | None
) -> Int[np.ndarray, "height width channels"]:
    """Return the flat indices of the values of an example that may change, as an image.

    Without a mask, the axes before the last two are merged; a vector becomes a column. With a mask,
    a rectangle of pixels becomes a smaller image. Other pixels become a column, with their channels
    if all of these may change.

    Raises:
      ValueError: nothing may change.

    >>> image_places((2, 2), np.array([[True, True], [False, False]])).tolist()
    [[[0, 1]]]
    """
    places = np.arange(math.prod(shape)).reshape(shape if len(shape) > 1 else (*shape, 1))
    may_change = np.ones(places.shape, bool) if mask is None else mask.reshape(places.shape)
    if not may_change.any():
        raise ValueError("mask is False everywhere: nothing could change")
    width, channels = places.shape[-2:] if places.ndim > 2 else (1, places.shape[-1])
    places, may_change = (a.reshape(-1, width, channels) for a in (places, may_change))
    pixels: Any = may_change.any(axis=2)
    if not (may_change == pixels[..., None]).all():
        return places[may_change].reshape(-1, 1, 1)
    rows, columns = pixels.any(axis=1), pixels.any(axis=0)
    if (pixels == rows[:, None] & columns).all() and _is_interval(rows) and _is_interval(columns):
        return places[rows][:, columns]
    return places[pixels].reshape(-1, 1, channels)


def _is_interval(flags: np.ndarray) -> bool:
    numbers = np.flatnonzero(flags)
    return bool(numbers[-1] - numbers[0] + 1 == len(numbers))


def _take(inputs: Array, places: Int[np.ndarray, "height width channels"]) -> Array:
    """Arrange the values of inputs at some places as images."""
    return _as_vectors(inputs)[:, places]


def _as_vectors(batch: Array) -> Array:
    return batch.reshape(len(batch), math.prod(batch.shape[1:]))


def _show(bound: np.ndarray) -> str:
    least, largest = bound.min(), bound.max()
    return f"{least:g}" if least == largest else f"{least:g} to {largest:g}"
