"""How a search without gradients reaches a model: inside JAX, or by a call of Python."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxadv.logits import finite_logits
from jaxadv.types import Labels, LogitsFn


class BlackBox(NamedTuple):
    """A model that JAX cannot trace: a server, or another framework.

    Attributes:
      predict: float32 images (n, height, width, channels) in [0, 1], a numpy array -> their
        class probabilities (n, classes). For label-only access return one-hot rows. A row with a
        NaN or infinite value counts as misclassified.
    """

    predict: Callable[[np.ndarray], np.ndarray]


Passes = Callable[
    [Key[Array, "k"], Float[Array, "k batch height width channels"], Bool[Array, "batch"]],
    Float[Array, "k batch classes"],
]
"""`(keys, images, active) -> logits`: k passes, each under noise of its own, over a batch whose
inactive rows need no answer. Inside JAX shapes are fixed, so there they are computed and dropped;
a black box is not asked about them."""


def make_passes(model: LogitsFn | BlackBox, labels: Labels, targets: Labels | None) -> Passes:
    """Returns how to query the model many times at once, with float32 logits for an answer.

    An answer that has no place for one of the labels or targets is an error.
    """
    if isinstance(model, BlackBox):
        classes = labels if targets is None else jnp.concatenate([labels, targets])
        return _host_passes(model, int(classes.max(initial=0)))

    def passes(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch classes"]:
        # A pair is not mapped: a kernel with an axis of draws would make a slow convolution.
        if len(images) <= 2:
            logits = jnp.stack([model(*query) for query in zip(keys, images, strict=True)])
        else:
            logits = jax.vmap(model)(keys, images)
        return finite_logits(logits.astype(jnp.float32))

    return passes


@contextmanager
def reaching(model: LogitsFn | BlackBox) -> Iterator[None]:
    """Runs jitted functions as the model needs it.

    Inside JAX they take matrix products at full precision, without which differences between
    near images drown. For a black box they run step by step in Python.
    """
    host = jax.disable_jit() if isinstance(model, BlackBox) else nullcontext()
    with jax.default_matmul_precision("highest"), host:
        yield


def _host_passes(model: BlackBox, highest_class: int) -> Passes:
    def passes(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch classes"]:
        asked = np.asarray(images)[:, np.asarray(active)]
        with jax.disable_jit(False):  # the model may be JAX's own
            answer = model.predict(asked.reshape(-1, *asked.shape[2:]))
        probabilities = _check_answer(answer, asked.shape[0] * asked.shape[1], highest_class)
        logits = np.zeros((*images.shape[:2], probabilities.shape[1]), np.float32)
        with np.errstate(invalid="ignore"):
            answered = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
        logits[:, np.asarray(active)] = answered.reshape(*asked.shape[:2], -1)
        return finite_logits(jnp.asarray(logits))

    return passes


def _check_answer(answer: np.ndarray, n: int, highest_class: int) -> np.ndarray:
    """Returns the answer of a black box, once it is seen to be probabilities."""
    try:
        probabilities = np.asarray(answer, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"predict returned a {type(answer).__name__}, not an array") from error
    if probabilities.ndim != 2 or len(probabilities) != n:
        raise ValueError(f"predict returned shape {probabilities.shape}, not ({n}, classes)")
    if probabilities.shape[1] <= highest_class:
        raise ValueError(
            f"predict returned {probabilities.shape[1]} classes, too few for the class "
            f"{highest_class} among the labels or targets"
        )
    if probabilities.shape[1] < 2:
        raise ValueError("predict returned 1 class, not 2 or more: return a column for each class")
    valid = probabilities[np.isfinite(probabilities).all(axis=1)]
    if not ((valid >= 0).all() and np.allclose(valid.sum(axis=1), 1, atol=1e-3)):
        raise ValueError(
            f"predict returned rows that are no probabilities: they lie in [{valid.min():.4g}, "
            f"{valid.max():.4g}] with sums up to {valid.sum(axis=1).max():.4g}; take the softmax"
        )
    return probabilities
