"""The attack of Carlini & Wagner (2017): minimal L2 perturbations."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.checks import (
    Arguments,
    Inputs,
    as_radius,
    check_arguments,
    check_at_least_one,
    check_product,
    prepare,
)
from jaxadv.attacks.eot import EOTEstimate
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.minimal_norm import Iterate, run_minimal_norm
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.search import select_rows
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

_NORMS = ("l2",)
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # of Adam (Kingma & Ba, 2015)
_SHRINK = 0.999999  # keeps black and white pixels at a finite argument of tanh
_GROWTH = 10.0  # of the constant, until a search succeeds


class CWNumbers(NamedTuple):
    """The traced arguments of the attack, see `cw`; `eps` is infinite for None."""

    eps: Float[Array, ""] | PerExample
    num_steps: Int[Array, ""]
    num_searches: Int[Array, ""]
    step_size: Float[Array, ""]
    constant: Float[Array, ""]


class _Memory(NamedTuple):
    """The state of the searches; every array has one row per example.

    Attributes:
      shift: the optimised variable, from the argument of tanh that gives the clean image.
      mean, square: moving averages of its gradient and of the square, of Adam.
      constant: weight of the margin in this search.
      low, high: largest constant that failed and least that succeeded; 0 and infinite without one.
      was_found: whether this search has found a misclassified image.
    """

    shift: Images
    mean: Images
    square: Images
    constant: PerExample
    low: PerExample
    high: PerExample
    was_found: Bool[Array, "batch"]


def cw(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike | None = None,
    num_steps: ArrayLike = 1000,
    num_searches: ArrayLike = 9,
    step_size: ArrayLike = 0.01,
    constant: ArrayLike = 1e-3,
    norm: str = "l2",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """Run the L2 attack of Carlini & Wagner (2017) for the nearest adversarial image.

    A search minimises the squared distance plus `constant` times the margin by which the label
    leads, with Adam. Pixels are (tanh(w) + 1) / 2, which keeps them in [0, 1]. Each next search
    begins at the clean image with another constant: ten times as large until a search succeeds, and
    then by bisection. `fmn` and `ddn` find distances that are as small with far fewer gradients.

    The reference implementation takes up to 10,000 steps in a search, aborts one whose loss no
    longer decreases, and repeats the largest constant in the last search. An image counts as
    misclassified from a margin of 0.0001 times that of the clean image on. The model's noise, if
    any, is sampled once per step and not averaged, so an image may be misclassified by chance.

    Traced arguments: `eps`, `num_steps`, `num_searches`, `step_size` and `constant`.

    Args:
      key: key of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: L2 distance up to which a misclassified image is a success, one for all images or an
        array of shape (batch,); None is any distance.
      num_steps: steps of a search, 1 or more, each with one gradient.
      num_searches: searches, 1 or more.
      step_size: learning rate of Adam.
      constant: weight of the margin in the first search, above 0.
      norm: "l2".
      targets: target classes, shape (batch,), as which the images are to be classified.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.

    Returns:
      The nearest misclassified image of each example within eps, or the clean image if none was
      found. `extras.distance` is the distance to the nearest misclassified image found, also beyond
      eps.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> import jax
    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> cw(jax.random.key(0), logits_fn, x, y, num_steps=50).success
    Array([ True], dtype=bool)
    """
    numbers = {
        "eps": eps, "num_steps": num_steps, "num_searches": num_searches, "step_size": step_size,
        "constant": constant,
    }  # fmt: skip
    check_cw({**numbers, "norm": norm})
    model, inputs = prepare(logits_fn, key, images, labels, targets, example_ids)
    dtype = inputs.images.dtype
    return _cw(
        model,
        inputs,
        CWNumbers(
            eps=as_radius("eps", eps, inputs.images),
            num_steps=jnp.asarray(num_steps, jnp.int32),
            num_searches=jnp.asarray(num_searches, jnp.int32),
            step_size=jnp.asarray(step_size, dtype),
            constant=jnp.asarray(constant, dtype),
        ),
        norm=norm,
    )


def check_cw(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `cw`."""
    check_arguments(arguments, num_classes, norms=_NORMS, optional=("eps",))
    counts = {"num_steps": 1000, "num_searches": 9}
    counts |= {name: value for name, value in arguments.items() if name in counts}
    check_at_least_one(**counts)
    check_product(**counts)


@partial(jit_kernel, static_argnames="norm")
def _cw(model: TracedModel, inputs: Inputs, numbers: CWNumbers, *, norm: str) -> AttackResult:
    images = inputs.images
    eps, num_steps, num_searches, step_size, constant = numbers
    start = jnp.arctanh((2 * images - 1) * _SHRINK)
    zeros, none = jnp.zeros_like(images), jnp.zeros_like(images[:, 0, 0, 0])
    first = _Memory(zeros, zeros, zeros, none + constant, none, none + jnp.inf, none > 0)

    def move(i: Int[Array, ""], iterate: Iterate, estimate: EOTEstimate) -> Iterate:
        memory = iterate.memory
        number = i % num_steps
        lags = (estimate.values < 0)[:, None, None, None]
        weight = memory.constant[:, None, None, None]
        slope = 2 * iterate.delta - jnp.where(lags, weight * estimate.gradient, 0)
        slope *= (1 - jnp.tanh(start + memory.shift) ** 2) / 2
        mean = _BETA1 * memory.mean + (1 - _BETA1) * slope
        square = _BETA2 * memory.square + (1 - _BETA2) * slope**2
        count = (number + 1).astype(images.dtype)
        mean_hat, square_hat = mean / (1 - _BETA1**count), square / (1 - _BETA2**count)
        shift = memory.shift - step_size * mean_hat / (jnp.sqrt(square_hat) + _TINY)
        continued = memory._replace(
            shift=shift,
            mean=mean,
            square=square,
            was_found=memory.was_found | iterate.is_wrong,
        )
        is_last = jnp.broadcast_to(number == num_steps - 1, len(images))
        memory = select_rows(is_last, _next_search(continued), continued)
        moved = (jnp.tanh(start + memory.shift) + 1) / 2
        return iterate._replace(delta=moved - images, memory=memory)

    return run_minimal_norm(
        model,
        inputs,
        inputs.key,
        eps=eps,
        num_steps=num_searches * num_steps,
        norm=norm,
        objective=make_objective("margin", inputs.labels, inputs.targets),
        memory=first,
        move=move,
    )


def _next_search(memory: _Memory) -> _Memory:
    """Return the start of the next search, with its constant."""
    zeros = jnp.zeros_like(memory.shift)
    low = jnp.where(memory.was_found, memory.low, memory.constant)
    high = jnp.where(memory.was_found, memory.constant, memory.high)
    middle = jnp.where(jnp.isfinite(high), (low + high) / 2, _GROWTH * memory.constant)
    return _Memory(zeros, zeros, zeros, middle, low, high, jnp.zeros_like(memory.was_found))


def _max_gradients(arguments: Arguments) -> int:
    return arguments.get("num_steps", 1000) * arguments.get("num_searches", 9)


CW = AttackSpec(
    attack_fn=cw,
    run=cw,
    traced=("eps", "num_steps", "num_searches", "step_size", "constant"),
    uses_gradients=True,
    max_queries=_max_gradients,
    norms=_NORMS,
    returns_clean=True,
    measures_distance=True,
    check=check_cw,
)
