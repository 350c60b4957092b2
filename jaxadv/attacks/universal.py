"""Universal perturbations: one perturbation for all images (Moosavi-Dezfooli et al., 2017)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.checks import (
    Arguments,
    Inputs,
    as_radius,
    check_arguments,
    check_at_least_one,
    check_classes,
    check_inputs,
)
from jaxadv.attacks.eot import Noise, expected_value_and_gradient
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.threat import THREATS
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.core.losses import cross_entropy
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey

_NORMS = ("linf", "l2")
_LARGEST_LOSS = 9.0  # in nats; images with more are misclassified, and have no gradient
Perturbation = Float[Array, "height width channels"]


def universal_perturbation(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    step_size: ArrayLike,
    num_steps: ArrayLike,
    norm: str = "linf",
    batch_size: int = 128,
) -> Perturbation:
    """Return one perturbation that fools a model on as many images as it can.

    Gradient ascent on batches of the images (Shafahi et al., 2020, algorithm 2): each step moves
    along the gradient of the cross entropy, summed over the images of a batch, and projects onto
    the ball. The cross entropy of an image counts up to 9 nats, so that no image outweighs the
    others. Images that were not used for the ascent show how universal the perturbation is: add it
    to them, and clip to [0, 1].

    Traced arguments: the arrays, `eps`, `step_size` and `num_steps`. `norm` and `batch_size` are
    static. The perturbation depends on the batch size, as the result of a training does.

    Args:
      key: key of the order of the images and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (n, height, width, channels). A few hundred suffice for
        ten classes.
      labels: true classes, shape (n,).
      eps: radius of the ball in units of the pixel range.
      step_size: length of a step in the same norm and units.
      num_steps: steps, each with one gradient of a batch; every image is used once before any is
        used again, except the last ones of a pass that fill no batch.
      norm: "linf" or "l2".
      batch_size: images in a batch, at most n are used.

    Returns:
      The perturbation, shape (height, width, channels), of norm eps or less.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((4, 2, 2, 1), 0.5), jnp.zeros(4, int)
    >>> budget = {"eps": 0.25, "step_size": 0.125, "num_steps": 5}
    >>> universal_perturbation(jax.random.key(0), logits_fn, x, y, **budget).ravel()
    Array([-0.25, -0.25, -0.25, -0.25], dtype=float32)
    """
    lengths = {"eps": eps, "step_size": step_size}
    check_universal({**lengths, "num_steps": num_steps, "norm": norm, "batch_size": batch_size})
    inputs = check_inputs(key, images, labels)
    if not len(inputs.images):
        raise ValueError("images are empty: pass at least one")
    size = min(batch_size, len(inputs.images))
    model = trace_model(logits_fn, inputs.key, inputs.images[:size])
    check_classes("labels", inputs.labels, model.num_classes)
    radius, length = (as_radius(name, number, inputs.images) for name, number in lengths.items())
    steps = jnp.asarray(num_steps, jnp.int32)
    return _universal(model, inputs, radius, length, steps, options=(norm, size))


def check_universal(arguments: Arguments) -> None:
    """Raise a ValueError that names the first invalid argument of `universal_perturbation`."""
    check_arguments(arguments, norms=_NORMS, arrays=())
    check_at_least_one(batch_size=arguments["batch_size"])


@partial(jit_kernel, static_argnames="options")
def _universal(
    model: TracedModel,
    inputs: Inputs,
    eps: Float[Array, ""],
    step_size: Float[Array, ""],
    num_steps: Int[Array, ""],
    *,
    options: tuple[str, int],
) -> Perturbation:
    norm, size = options
    threat, images = THREATS[norm], inputs.images
    order_key, noise_key = jax.random.split(inputs.key)
    batches_per_pass = len(images) // size

    def step(i: Int[Array, ""], delta: Images) -> Images:
        number, start = i // batches_per_pass, i % batches_per_pass * size
        order = jax.random.permutation(jax.random.fold_in(order_key, number), len(images))
        rows = lax.dynamic_slice_in_dim(order, start, size)

        def loss(logits: Logits) -> PerExample:
            return jnp.minimum(cross_entropy(logits, inputs.labels[rows]), _LARGEST_LOSS)

        moved = jnp.clip(images[rows] + delta, 0, 1)
        estimate = expected_value_and_gradient(
            jax.random.fold_in(noise_key, i), model, loss, loss, moved, Noise(1, 1, "loss")
        )
        gradient = estimate.gradient.sum(axis=0, keepdims=True)
        delta = delta + step_size * threat.steepest(delta, gradient)
        return threat.project(jnp.zeros_like(delta), delta, eps)

    delta = lax.fori_loop(0, num_steps, step, jnp.zeros_like(images[:1]))
    return lax.stop_gradient(delta[0])
