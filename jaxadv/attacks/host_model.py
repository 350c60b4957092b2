"""Models that run outside of JAX and have gradients, such as modules of PyTorch."""

import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxadv.attacks.host_calls import handle_of, host_call
from jaxadv.core.types import Logits, PRNGKey, UserError

# Forward passes whose gradient may be asked for: each keeps the activations of its batch.
_MAX_PENDING = 4


class HostModel:
    """A function `(key, images) -> logits` that computes values and gradients outside of JAX.

    Every attack takes it as its `logits_fn`, also inside of a JAX function, such as one that
    normalises the images; not inside of `jit`. Its functions get JAX arrays, which they must not
    change, and return JAX or NumPy arrays, on one device.

    >>> weights = np.array([[1.0, -1.0]], np.float32)
    >>> def forward(images):
    ...     return np.asarray(images).sum((1, 2)) @ weights
    >>> def forward_for_gradient(images):
    ...     def pull_back(cotangent):
    ...         gradient = np.asarray(cotangent) @ weights.T
    ...         return np.broadcast_to(gradient[:, None, None], images.shape)
    ...     return forward(images), pull_back
    >>> model = HostModel(2, forward, forward_for_gradient)
    >>> x, key = jnp.full((1, 2, 2, 1), 0.5), jax.random.key(0)
    >>> model(key, x)
    Array([[ 2., -2.]], dtype=float32)
    >>> jax.grad(lambda x: model(key, x)[0, 1])(x).ravel()
    Array([-1., -1., -1., -1.], dtype=float32)
    """

    def __init__(
        self,
        num_classes: int,
        forward: Callable[[Array], Any],
        forward_for_gradient: Callable[[Array], tuple[Any, Callable[[Array], Any]]],
    ) -> None:
        """Create a model.

        Args:
          num_classes: number of logits.
          forward: `images -> logits`: images (n, height, width, channels), or inputs of another
            shape (n, ...); logits (n, classes).
          forward_for_gradient: `images -> (logits, pull_back)`, where `pull_back(cotangent)`
            returns the gradient of `(logits * cotangent).sum()` with respect to the images. It may
            be called several times, by FAB without targets.
        """
        self.num_classes = num_classes
        self._forward = forward
        self._forward_for_gradient = forward_for_gradient
        self._pending: OrderedDict[int, Callable[[Array], Any]] = OrderedDict()
        self._tokens = itertools.count()

    def __call__(self, key: PRNGKey | None, images: Float[Array, "batch ..."]) -> Logits:
        """Return the logits; the key is ignored, but distinguishes noise samples of `vmap`."""
        key = jnp.zeros((), jnp.int32) if key is None else key
        logits = _logits(self.num_classes, handle_of(self), key, images)
        return logits.astype(jnp.float64 if images.dtype == jnp.float64 else jnp.float32)

    def forward(self, num_classes: int, key: Any, images: Array) -> Any:
        """Return the logits, for `host_call`."""
        return self._checked(self._forward(images), images)

    def forward_for_gradient(self, num_classes: int, key: Any, images: Array) -> tuple[Any, Any]:
        """Return the logits and a token by which `pull_back` finds this forward pass."""
        logits, pull_back = self._forward_for_gradient(images)
        token = next(self._tokens)
        self._pending[token] = pull_back
        while len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)
        return self._checked(logits, images), np.array([token], np.int32)

    def pull_back(
        self, num_classes: int, key: Any, images: Array, token: Array, cotangents: Array
    ) -> Any:
        """Return a gradient for each of several cotangents of the logits."""
        pull_back = self._pending.pop(int(np.asarray(token)[0]), None)
        if pull_back is None:  # dropped, or used before
            _, pull_back = self._forward_for_gradient(images)
        gradients = list(map(pull_back, _rows(cotangents)))
        for gradient in gradients:
            if gradient.shape != images.shape:
                raise UserError(
                    f"pull_back returned shape {gradient.shape}: return a gradient of the shape "
                    f"of the images, {images.shape}"
                )
        stack = _stack if all(isinstance(x, jax.Array) for x in gradients) else np.stack
        return stack(gradients).astype(images.dtype, copy=False)

    def _checked(self, logits: Any, images: Array) -> Any:
        if logits.shape != (len(images), self.num_classes):
            raise UserError(
                f"the model returned shape {logits.shape}: return logits of shape "
                f"({len(images)}, {self.num_classes})"
            )
        # A copy of a NumPy array, since its owner may change it.
        return logits.astype(np.float32)


_rows = jax.jit(list)
_stack = jax.jit(jnp.stack)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(num_classes: int, handle: Any, key: Any, images: Any) -> Any:
    (logits,) = host_call(handle, key, images, method="forward", num_classes=num_classes)
    return logits


def _logits_forward(num_classes: int, handle: Any, key: Any, images: Any) -> tuple:
    logits, token = host_call(
        handle, key, images, method="forward_for_gradient", num_classes=num_classes
    )
    return logits, (handle, key, images, token)


def _logits_backward(num_classes: int, residuals: tuple, cotangent: Any) -> tuple:
    (gradients,) = host_call(
        *residuals, cotangent[None], method="pull_back", num_classes=num_classes
    )
    return None, None, gradients[0]


_logits.defvjp(_logits_forward, _logits_backward)
