"""Queries to a model: the interface through which black-box attacks see only outputs.

The model is a JAX function, or a `BlackBox` that is called from Python.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxadv.core.logits import finite_logits
from jaxadv.core.types import Labels, LogitsFn


class BlackBox(NamedTuple):
    """A model that JAX cannot trace, such as a web service or a model of another framework.

    Black-box attacks take it in place of `logits_fn`, outside of `jit`.

    Attributes:
      predict: float32 images (n, height, width, channels) in [0, 1], a NumPy array -> their class
        probabilities (n, classes). For label-only access return one-hot vectors. A row with a NaN
        or infinite value counts as misclassified.
    """

    predict: Callable[[np.ndarray], np.ndarray]


QueryFn = Callable[
    [Key[Array, "k"], Float[Array, "k batch height width channels"], Bool[Array, "batch"]],
    Float[Array, "k batch classes"],
]
"""`(keys, images, active) -> logits`: k forward passes of a batch, each with its own noise sample.

Logits of inactive rows are ignored. JAX needs fixed shapes and computes them anyway; a `BlackBox`
is not queried for them."""


def make_query_fn(model: LogitsFn | BlackBox, labels: Labels, targets: Labels | None) -> QueryFn:
    """Return a function that queries the model; its logits are float32, NaN where not finite.

    For a `BlackBox` it raises a ValueError if the answer has too few classes for the labels or
    targets, or is not an array of probabilities.
    """
    if isinstance(model, BlackBox):
        classes = labels if targets is None else jnp.concatenate([labels, targets])
        return _make_host_query_fn(model, int(classes.max(initial=0)))

    def query(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch classes"]:
        # Without vmap for a pair: kernels with a sample axis would make convolutions slow.
        if len(images) <= 2:
            logits = jnp.stack([model(*one) for one in zip(keys, images, strict=True)])
        else:
            logits = jax.vmap(model)(keys, images)
        return finite_logits(logits.astype(jnp.float32))

    return query


@contextmanager
def query_context(model: LogitsFn | BlackBox) -> Iterator[None]:
    """Set up JAX for the jitted functions that query a model.

    For a JAX function, matrix products have the highest precision, because lower ones hide the
    differences between nearby images. For a `BlackBox`, jitted functions run op by op in Python.
    """
    host = jax.disable_jit() if isinstance(model, BlackBox) else nullcontext()
    with jax.default_matmul_precision("highest"), host:
        yield


def _make_host_query_fn(model: BlackBox, largest_class: int) -> QueryFn:
    def query(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch classes"]:
        queried = np.asarray(images)[:, np.asarray(active)]
        with jax.disable_jit(False):  # `predict` may use JAX itself
            answer = model.predict(queried.reshape(-1, *queried.shape[2:]))
        probabilities = _check_answer(answer, queried.shape[0] * queried.shape[1], largest_class)
        logits = np.zeros((*images.shape[:2], probabilities.shape[1]), np.float32)
        with np.errstate(invalid="ignore"):
            answered = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
        logits[:, np.asarray(active)] = answered.reshape(*queried.shape[:2], -1)
        return finite_logits(jnp.asarray(logits))

    return query


def _check_answer(answer: np.ndarray, n: int, largest_class: int) -> np.ndarray:
    """Return the answer of `predict` as float64, or raise a ValueError if it is invalid."""
    try:
        probabilities = np.asarray(answer, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"predict returned a {type(answer).__name__} that is not an array of numbers: return "
            f"an array of shape ({n}, classes)"
        ) from error
    if probabilities.ndim != 2 or len(probabilities) != n:
        raise ValueError(
            f"predict returned shape {probabilities.shape}: return shape ({n}, classes)"
        )
    if probabilities.shape[1] <= largest_class:
        raise ValueError(
            f"predict returned {probabilities.shape[1]} classes, but the labels or targets contain "
            f"class {largest_class}: return one column per class"
        )
    if probabilities.shape[1] < 2:
        raise ValueError("predict returned 1 class: return 2 or more, one column per class")
    valid = probabilities[np.isfinite(probabilities).all(axis=1)]
    if not ((valid >= 0).all() and np.allclose(valid.sum(axis=1), 1, atol=1e-3)):
        raise ValueError(
            f"predict returned values in [{valid.min():.4g}, {valid.max():.4g}] with row sums up "
            f"to {valid.sum(axis=1).max():.4g}, which are not probabilities: apply a softmax"
        )
    return probabilities
