"""Checks of a user's images, labels and model, before an evaluation takes any time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.frameworks import describe, reason
from jaxadv.attacks.black_box import BlackBox, check_answer
from jaxadv.attacks.checks import as_labels, check_classes
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.core.images import check_images, scale_to_unit, to_float
from jaxadv.core.logits import are_probabilities, outputs_differ
from jaxadv.core.types import HostBatch, UserError

_NUM_IMAGES = 8  # of which the outputs are checked
_TENSORS = ("tensorflow", "torch")


def check_examples(
    images: Any, labels: Any, bounds: tuple[int | float, int | float] = (0.0, 1.0)
) -> HostBatch:
    """Return images and labels as NumPy arrays, with float images scaled to [0, 1].

    Args:
      images: (n, height, width, channels), floats within `bounds` or uint8.
      labels: (n,) integer classes.
      bounds: smallest and largest value of float images.

    Returns:
      Images as float32 or uint8, and labels as int32.

    Raises:
      UserError: one of them is invalid; the message says what to write.
    """
    images = _to_numpy("images", images)
    if images.ndim == 3:
        raise UserError(
            f"the images have shape {images.shape}, without an axis of channels: pass "
            "images[..., None]"
        )
    if not images.size:
        raise UserError(f"the images have shape {images.shape}: pass at least one")
    if images.dtype != np.uint8:
        images = scale_to_unit(images, bounds)
    check_images(images)
    with user_errors():
        classes = as_labels("labels", _to_numpy("labels", labels), len(images))
    return HostBatch(images, np.asarray(classes))


def check_classifier(classifier: Classifier, examples: HostBatch) -> tuple[int, list[str]]:
    """Run a model a few times on a few images, and check its logits.

    Args:
      classifier: the model.
      examples: of `check_examples`.

    Returns:
      The number of classes, and warnings: the outputs are probabilities, or the model is declared
      stochastic and is not.

    Raises:
      UserError: the model cannot be run, its outputs are no logits, they have too few classes for
        the labels, or they change between two calls and the model is not declared stochastic.
    """
    images = examples.images[:_NUM_IMAGES]
    name, is_black_box = classifier.name, isinstance(classifier.logits_fn, BlackBox)
    first, second = (outputs_of(classifier, seed, images) for seed in range(2))
    num_classes = first.shape[-1]
    with user_errors():
        check_classes("labels", jnp.asarray(examples.labels), num_classes)
    varies = bool(outputs_differ(jnp.stack([first, second])).any())
    if varies and not classifier.stochastic:
        raise UserError(
            f"{name} returns other logits when it is called again: switch dropout off (evaluation "
            "mode), or pass stochastic=True if its noise is a defence"
        )
    if varies and not runs_outside_of_jax(classifier, images):
        again = outputs_of(classifier, 1, images)
        if bool(outputs_differ(jnp.stack([second, again])).any()):
            raise UserError(
                f"the noise of {name} does not follow from its key, so JAX would repeat one noise "
                "sample: write a function (key, images) that draws it with jax.random"
            )
    notes = []
    if classifier.stochastic and not varies:
        notes.append(
            f"{name} is declared stochastic, but two forward passes over the same images are "
            "equal. Check that its defence is switched on."
        )
    if not is_black_box and bool(are_probabilities(first).all()):
        notes.append(
            f"{name} returns probabilities, whose gradients vanish where it is confident. Return "
            "the logits, without the softmax."
        )
    return num_classes, notes


def outputs_of(classifier: Classifier, seed: int, images: np.ndarray) -> jax.Array:
    """Return the logits of a model, or the probabilities of a `BlackBox`, for a few images.

    Raises:
      UserError: the model cannot be run, or its outputs are no logits.
    """
    model = classifier.logits_fn
    floats = to_float(jnp.asarray(images))
    try:
        if isinstance(model, BlackBox):
            answer = check_answer(model.predict(np.asarray(floats)), len(images), 1)
            return jnp.asarray(answer, jnp.float32)
        key = jax.random.key(seed)
        # Traced each time, to detect noise that does not follow from the key.
        traced = trace_model(model, key, floats, gradients=False, use_cache=False)
        # Calls of models outside of JAX do not compile.
        return traced(key, floats) if traced.calls_host else _logits(traced, key, floats)
    except Exception as error:
        if _looks_channels_first(images.shape):
            raise UserError(
                f"{classifier.name} fails on images of shape {images.shape} ({reason(error)}). "
                "They seem to have their channels at axis 1: pass images.transpose(0, 2, 3, 1)"
            ) from error
        if isinstance(error, UserError):
            raise
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise UserError(str(error)) from error
        raise UserError(
            f"{classifier.name} fails on images of shape {images.shape}: {reason(error)}"
        ) from error


def runs_outside_of_jax(classifier: Classifier, images: np.ndarray) -> bool:
    """Return whether a model is a `BlackBox`, or calls one of another framework."""
    if isinstance(classifier.logits_fn, BlackBox):
        return True
    floats = to_float(jnp.asarray(images))
    model = trace_model(classifier.logits_fn, jax.random.key(0), floats, gradients=False)
    return model.calls_host


@jax.jit
def _logits(model: TracedModel, key: jax.Array, images: jax.Array) -> jax.Array:
    return model(key, images)


def _to_numpy(name: str, values: Any) -> np.ndarray:
    """Return an array in host memory, but refuse tensors, whose layout is likely to differ."""
    if type(values).__module__.partition(".")[0] in _TENSORS:
        shape = tuple(values.shape)
        layout = ".permute(0, 2, 3, 1)" if _looks_channels_first(shape) else ""
        # A tensor of TensorFlow cannot permute; its array is checked next.
        layout = layout if hasattr(values, "permute") else ""
        raise UserError(
            f"the {name} are {describe(values)} of shape {shape}: pass {name}{layout}.numpy()"
        )
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"the {name} are {describe(values)}: pass one array of numbers") from error
    if array.dtype.kind in "OSU":
        raise UserError(
            f"the {name} are {describe(values)} of {array.dtype}: pass one array of numbers"
        )
    return array


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] in (1, 3) and min(shape[2:]) > 4


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the ValueErrors of attacks into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
