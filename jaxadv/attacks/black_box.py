"""Queries to a model: the interface through which black-box attacks see only outputs.

The model is a JAX function, or a `BlackBox` that is called from Python.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxadv.attacks.host_calls import NumClassesError, handle_of, host_call
from jaxadv.core.images import is_concrete, value_range
from jaxadv.core.logits import finite_logits
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PRNGKey, UserError


@dataclass(frozen=True, eq=False)
class BlackBox:
    """A model that JAX cannot trace, such as a web service or a model of another framework.

    Black-box attacks take it in place of `logits_fn`, outside of `jit`. It is called in the thread
    of the attack, so it may use JAX and raise exceptions.

    Attributes:
      predict: float32 images (n, height, width, channels) in [0, 1], a NumPy array -> their class
        probabilities (n, classes). For label-only access return one-hot vectors. A row with a NaN
        or infinite value counts as misclassified.
      num_classes: number of classes; None: learned from the first answer.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    num_classes: int | None = None

    def logits(self, key: PRNGKey | None, images: Images) -> Logits:
        """Return the logarithm of the probabilities, NaN where they are not finite.

        The key is ignored. Inside of `jit` it works only in functions that `run_with_host_calls`
        runs.

        Raises:
          UserError: `num_classes` is not known.
        """
        return trace_black_box(self)(key, images)

    @cached_property
    def _queries(self) -> "_Queries":
        return _Queries(self.predict, self.num_classes)


_last_num_classes = [2]  # of the last model whose number of classes was learned


class _Queries:
    """The calls of `predict`, whose answers are checked; the methods are those of `host_call`."""

    def __init__(self, predict: Callable, num_classes: int | None, largest_class: int = 0) -> None:
        self._predict = predict
        self._num_classes = num_classes  # None until the first answer
        self._largest_class = largest_class
        self._unread: np.ndarray | None = None  # the first answer, if it came too early

    def query(self, num_classes: int, images: Array, active: Array) -> np.ndarray:
        """Return the logits of images (k, batch, ...); those of inactive rows are 0."""
        queried = np.asarray(images)[:, np.asarray(active)]
        answer = self._ask(num_classes, queried.reshape(-1, *queried.shape[2:]))
        logits = np.zeros((*images.shape[:2], num_classes), np.float32)
        logits[:, np.asarray(active)] = answer.reshape(*queried.shape[:2], num_classes)
        return logits

    def forward(self, num_classes: int, key: Any, images: Array) -> np.ndarray:
        """Return the logits of all images."""
        return self._ask(num_classes, np.array(images))

    def _ask(self, num_classes: int, images: np.ndarray) -> np.ndarray:
        if self._unread is None:
            answer = self._predict(images)
            probabilities = check_answer(answer, len(images), self._largest_class)
        else:
            probabilities, self._unread = self._unread, None
        found = probabilities.shape[1]
        if self._num_classes is None:
            self._num_classes = _last_num_classes[0] = found
            if found != num_classes:
                self._unread = probabilities
                raise NumClassesError(found)
        if found != self._num_classes:
            raise UserError(
                f"predict returned {found} classes, but the model has {self._num_classes}: return "
                "one column per class"
            )
        with np.errstate(invalid="ignore"):
            logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
        return logits.astype(np.float32)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class TracedBlackBox:
    """A `BlackBox` that compiled functions take as an argument, also as a logits function.

    Attributes:
      handle: of the Python object that answers the queries.
      num_classes: number of logits; static.
      host: that object, which is kept alive; None inside of compiled functions.
    """

    handle: Any
    num_classes: int
    host: Any = None
    calls_host = True

    def __call__(self, key: PRNGKey | None, images: Images) -> Logits:
        """Return the logits of all images, NaN where they are not finite."""
        key = jnp.zeros((), jnp.int32) if key is None else key
        images = images.astype(jnp.float32)
        (logits,) = host_call(
            self.handle, key, images, method="forward", num_classes=self.num_classes
        )
        return finite_logits(logits)

    def query(
        self, images: Float[Array, "k batch height width channels"], active: Bool[Array, "batch"]
    ) -> Float[Array, "k batch classes"]:
        """Return the logits of the active rows."""
        (logits,) = host_call(
            self.handle, images, active, method="query", num_classes=self.num_classes
        )
        return finite_logits(logits)

    def with_num_classes(self, num_classes: int) -> "TracedBlackBox":
        """Return the same model with another number of classes."""
        return TracedBlackBox(self.handle, num_classes, self.host)

    def tree_flatten(self) -> tuple[tuple[Any], int]:
        """Return the handle, which is traced, and the number of classes, which is static."""
        return (self.handle,), self.num_classes

    @classmethod
    def tree_unflatten(cls, num_classes: int, children: tuple[Any]) -> "TracedBlackBox":
        """Return the model from what `tree_flatten` returned."""
        return cls(*children, num_classes)


def trace_black_box(
    model: BlackBox | TracedBlackBox, labels: Labels | None = None, targets: Labels | None = None
) -> TracedBlackBox:
    """Return a `BlackBox` as an argument of compiled functions.

    A number of classes that is not known is guessed from the labels and from earlier models. If the
    first answer has another number, the attack is traced again, and uses that answer.

    Raises:
      ValueError: a label or target is not one of its classes, or the number of classes is not known
        inside of `jit` or without labels.
    """
    if isinstance(model, TracedBlackBox):
        return model
    classes = [array for array in (labels, targets) if array is not None]
    is_known = all(map(is_concrete, classes))
    largest = max((int(value_range(c)[1]) for c in classes if c.size), default=0) if is_known else 0
    if model.num_classes is None:
        if not classes:
            raise UserError(
                "num_classes of the BlackBox is not known: write BlackBox(predict, num_classes=10)"
            )
        if not is_known:
            raise ValueError(
                "logits_fn is a BlackBox, which runs in Python and cannot be attacked inside of "
                "jit: call the attack outside"
            )
        queries = _Queries(model.predict, None, largest)
        return TracedBlackBox(handle_of(queries), max(_last_num_classes[0], largest + 1), queries)
    if largest >= model.num_classes:
        raise ValueError(
            f"the labels or targets contain class {largest}, but num_classes of the BlackBox is "
            f"{model.num_classes}"
        )
    return TracedBlackBox(handle_of(model._queries), model.num_classes, model)


QueryFn = Callable[
    [Key[Array, "k"], Float[Array, "k batch height width channels"], Bool[Array, "batch"]],
    Float[Array, "k batch classes"],
]
"""`(keys, images, active) -> logits`: k forward passes of a batch, each with its own noise sample.

Logits of inactive rows are ignored. JAX needs fixed shapes and computes them anyway; a `BlackBox`
is not queried for them."""


def make_query_fn(model: LogitsFn | TracedBlackBox) -> QueryFn:
    """Return a function that queries the model; its logits are float32, NaN where not finite."""
    if isinstance(model, TracedBlackBox):
        return lambda keys, images, active: model.query(images, active)

    def query(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch classes"]:
        # Without vmap for a pair: kernels with a sample axis would make convolutions slow. A model
        # outside of JAX gets all of them in one call.
        if len(images) <= 2 and not getattr(model, "calls_host", False):
            logits = jnp.stack([model(*one) for one in zip(keys, images, strict=True)])
        else:
            logits = jax.vmap(model)(keys, images)
        return finite_logits(logits.astype(jnp.float32))

    return query


def query_context() -> AbstractContextManager:
    """Give matrix products the highest precision: lower ones hide small differences of images."""
    return jax.default_matmul_precision("highest")


def check_answer(answer: np.ndarray, n: int, largest_class: int) -> np.ndarray:
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
