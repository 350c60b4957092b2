"""Transfer attacks: momentum iterative FGSM, with look-ahead, input diversity and translations."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.checks import Arguments, Inputs, as_radius, check_arguments, prepare
from jaxadv.attacks.eot import Noise, expected_value_and_gradient
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result, returning_images
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, Radius, as_column, ascend
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.rng import example_keys
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PRNGKey

_SMALLEST_SIZE = 0.9  # of a resized image
_KERNEL_DEVIATIONS = 3  # standard deviations between the centre and the border of the kernel


class MIFGSMBudget(NamedTuple):
    """The traced arguments of MI-FGSM, see `mi_fgsm`."""

    eps: Radius
    step_size: Radius
    num_steps: Int[Array, ""]
    decay: Float[Array, ""]
    num_noise_samples: Int[Array, ""]


@dataclass(frozen=True)
class MIFGSMOptions:
    """The static arguments of MI-FGSM, see `mi_fgsm`."""

    norm: str
    loss: str
    nesterov: bool
    diversity: float
    kernel_size: int
    noise_chunk_size: int
    noise_average: str


@returning_images
def mi_fgsm(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    step_size: ArrayLike,
    num_steps: ArrayLike = 10,
    decay: ArrayLike = 1.0,
    nesterov: bool = False,
    diversity: float = 0.0,
    kernel_size: int = 1,
    norm: str = "linf",
    loss: str = "cross_entropy",
    num_noise_samples: ArrayLike = 1,
    noise_chunk_size: int = 1,
    noise_average: str = "loss",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """Run MI-FGSM (Dong et al., 2018), whose images often fool other models too.

    Each step follows the sign of an accumulated gradient, in L2 its direction, and in L1 its 1 % of
    largest values. The accumulated gradient is `decay` times the one before plus the new gradient,
    which is divided by its mean absolute value. Options:

    - `nesterov`: NI-FGSM (Lin et al., 2020), in L-inf. The gradient is that of the point
      `step_size * decay` times the accumulated gradient ahead, as in the authors' code.
    - `diversity`: DI-FGSM (Xie et al., 2019). With this probability the model sees the image shrunk
      to a random size of at least 90 % and padded with black at a random place.
    - `kernel_size`: TI-FGSM (Dong et al., 2019). The gradient is smoothed by a Gaussian kernel.

    To attack a model whose gradients are not available, run it on one or several surrogate models
    (`mean_logits`), and evaluate the images on the victim.

    Traced arguments: `eps`, `step_size`, `num_steps`, `decay` and `num_noise_samples`. All others
    are static.

    Args:
      key: key of the random sizes and of the model's noise.
      logits_fn: `(key, images) -> logits` of the surrogate.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range.
        An array of shape (batch,) gives each image its own radius. In L-inf an array of four axes
        that broadcasts to the images gives each value its own.
      step_size: length of a step in the same norm and units, or an array of one of these shapes;
        the papers use `eps / num_steps`.
      num_steps: gradient steps.
      decay: factor of the accumulated gradient in each step, from 0 to 1; 0 is the basic iterative
        method.
      nesterov: whether the gradient is that of a point ahead.
      diversity: probability of a resized input in each step.
      kernel_size: side of the kernel in pixels, odd; 1 is no smoothing. Its border is three
        standard deviations from its centre.
      norm: "linf", "l2" or "l1".
      loss: "cross_entropy", "margin", "probability", "probability_margin" or "dlr".
      num_noise_samples: samples of the model's noise that each gradient averages over.
      noise_chunk_size: noise samples evaluated at once; memory grows with it.
      noise_average: "loss" or "softmax", as for `jaxadv.attacks.pgd`.
      targets: target classes, shape (batch,); the attack then descends their loss.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.

    Returns:
      Images of the same shape, within eps of the clean ones and in [0, 1].

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> mi_fgsm(jax.random.key(0), logits_fn, x, y, eps=0.1, step_size=0.02).min()
    Array(0.4, dtype=float32)
    """
    traced = {
        "eps": eps, "step_size": step_size, "num_steps": num_steps, "decay": decay,
        "num_noise_samples": num_noise_samples,
    }  # fmt: skip
    static: dict[str, Any] = {
        "norm": norm, "loss": loss, "nesterov": nesterov, "diversity": diversity,
        "kernel_size": kernel_size, "noise_chunk_size": noise_chunk_size,
        "noise_average": noise_average,
    }  # fmt: skip
    check_mi_fgsm({**traced, **static})
    model, inputs = prepare(logits_fn, key, images, labels, targets, example_ids)
    dtype = inputs.images.dtype
    budget = MIFGSMBudget(
        eps=as_radius("eps", eps, inputs.images, per_value=norm == "linf"),
        step_size=as_radius("step_size", step_size, inputs.images, per_value=norm == "linf"),
        num_steps=jnp.asarray(num_steps, jnp.int32),
        decay=jnp.asarray(decay, dtype),
        num_noise_samples=jnp.asarray(num_noise_samples, jnp.int32),
    )
    return _mi_fgsm(model, inputs, budget, options=MIFGSMOptions(**static))


def check_mi_fgsm(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `mi_fgsm`."""
    check_arguments(arguments, num_classes, arrays=("eps", "step_size"))
    if arguments.get("nesterov") and arguments.get("norm", "linf") != "linf":
        raise ValueError(
            f"nesterov is True, but norm is {arguments['norm']!r}: NI-FGSM has steps in linf only"
        )


class _Iterate(NamedTuple):
    images: Images
    accumulated: Images  # gradient
    nonfinite: Int[Array, "batch"]


@partial(jit_kernel, static_argnames="options")
def _mi_fgsm(
    model: TracedModel, inputs: Inputs, budget: MIFGSMBudget, *, options: MIFGSMOptions
) -> AttackResult:
    key, images, labels, targets, example_ids = inputs
    threat = THREATS[options.norm]
    objective = make_objective(options.loss, labels, targets)
    noise = Noise(budget.num_noise_samples, options.noise_chunk_size, options.noise_average)
    resize_key, noise_key = jax.random.split(key)
    step_size = as_column(budget.step_size)

    def step(i: Int[Array, ""], current: _Iterate) -> _Iterate:
        def logits_fn(key: PRNGKey, images: Images) -> Logits:
            if options.diversity:
                keys = example_keys(jax.random.fold_in(resize_key, i), example_ids)
                resize = partial(_resize, probability=options.diversity)
                images = jax.vmap(resize)(keys, images)
            return model(key, images)

        point = current.images
        if options.nesterov:
            ahead = step_size * budget.decay * current.accumulated
            point = point + jnp.where(as_column(budget.eps) > 0, ahead, 0)
        estimate = expected_value_and_gradient(
            jax.random.fold_in(noise_key, i), logits_fn, objective, objective, point, noise
        )
        gradient = _unit_mean(_smooth(estimate.gradient, options.kernel_size))
        accumulated = budget.decay * current.accumulated + gradient
        moved = ascend(threat, images, current.images, accumulated, step_size, budget.eps)
        return _Iterate(moved, accumulated, current.nonfinite + estimate.nonfinite)

    start = _Iterate(images, jnp.zeros_like(images), jnp.zeros_like(labels))
    final = lax.fori_loop(0, budget.num_steps, step, start)
    result = initial_result(images)
    num_gradients = budget.num_steps * budget.num_noise_samples
    result = result._replace(
        images=final.images,
        queries=result.queries + num_gradients,
        gradients=result.gradients + num_gradients,
        nonfinite=final.nonfinite,
        steps=result.steps + budget.num_steps,
    )
    return lax.stop_gradient(result)


def _unit_mean(gradient: Images) -> Images:
    """Return the gradient of each image divided by its mean absolute value; 0 stays 0."""
    # Scaled first: the mean of tiny gradients of a confident model would underflow to zero.
    largest = jnp.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    mean = jnp.abs(scaled).mean(axis=(1, 2, 3), keepdims=True)
    return scaled / jnp.where(mean > 0, mean, 1)


def _resize(
    key: PRNGKey, image: Float[Array, "height width channels"], probability: float
) -> Float[Array, "height width channels"]:
    """Return the image, or with a probability a smaller copy at a random place on black."""
    is_resized_key, scale_key, place_key = jax.random.split(key, 3)
    scale = jax.random.uniform(scale_key, minval=_SMALLEST_SIZE).astype(image.dtype)
    room = jnp.array(image.shape[:2], image.dtype) * (1 - scale)
    place = room * jax.random.uniform(place_key, (2,)).astype(image.dtype)
    scales = jnp.stack([scale, scale])
    resized = jax.image.scale_and_translate(image, image.shape, (0, 1), scales, place, "linear")
    return jnp.where(jax.random.bernoulli(is_resized_key, probability), resized, image)


def _smooth(gradient: Images, kernel_size: int) -> Images:
    """Convolve with a Gaussian kernel, over zeros beyond the border."""
    if kernel_size == 1:
        return gradient
    rows, columns = (
        jnp.asarray(_smoothing_matrix(length, kernel_size), gradient.dtype)
        for length in gradient.shape[1:3]
    )
    return jnp.einsum("bhwc,ih,jw->bijc", gradient, rows, columns, precision="highest")


def _smoothing_matrix(length: int, kernel_size: int) -> Float[np.ndarray, "length length"]:
    """Return the matrix that convolves a line of pixels with the kernel."""
    offsets = np.linspace(-_KERNEL_DEVIATIONS, _KERNEL_DEVIATIONS, kernel_size)
    weights = np.exp(-(offsets**2) / 2)
    padded = np.pad(weights / weights.sum(), length)  # 0 for pixels that are farther apart
    centre = length + kernel_size // 2
    positions = np.arange(length)
    apart = np.clip(positions[:, None] - positions, -centre, len(padded) - 1 - centre)
    return padded[centre + apart]


def mean_logits(*logits_fns: LogitsFn) -> LogitsFn:
    """Return an ensemble of surrogate models: the mean of their logits (Dong et al., 2018, eq. 7).

    >>> one, other = (lambda key, x, k=k: k * x.sum((1, 2)) for k in (1.0, 3.0))
    >>> mean_logits(one, other)(jax.random.key(0), jnp.ones((1, 1, 1, 2)))
    Array([[2., 2.]], dtype=float32)
    """

    def logits_fn(key: PRNGKey, images: Images) -> Logits:
        return jnp.stack([logits_fn(key, images) for logits_fn in logits_fns]).mean(axis=0)

    return logits_fn


def _max_gradients(arguments: Arguments) -> int:
    return arguments.get("num_steps", 10) * arguments.get("num_noise_samples", 1)


MI_FGSM = AttackSpec(
    attack_fn=mi_fgsm,
    run=mi_fgsm.__wrapped__,  # type: ignore[attr-defined]
    traced=("eps", "step_size", "num_steps", "decay", "num_noise_samples"),
    uses_gradients=True,
    max_queries=_max_gradients,
    check=check_mi_fgsm,
)
