"""Attacks that follow the gradient of a loss with respect to the image: FGSM and PGD."""

from collections.abc import Callable
from functools import partial, wraps
from typing import NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.arguments import Arguments, check_arguments
from jaxadv.attacks.expectation import (
    Noise,
    Objective,
    expected_logits,
    expected_score,
    expected_value_and_gradient,
)
from jaxadv.attacks.inputs import Inputs, prepare
from jaxadv.attacks.threat import THREATS, perturb, random_perturbation
from jaxadv.attacks.tracing import TracedModel
from jaxadv.losses import LOSSES, divergence, make_objective
from jaxadv.types import Images, Labels, LogitsFn, PerExample, PRNGKey

PGD_LOSSES = (*LOSSES, "kl")
_P = ParamSpec("_P")


class Ascent(NamedTuple):
    """What steps along gradients found; every array has one row per example.

    Attributes:
      images: adversarial images, (batch, height, width, channels).
      nonfinite: gradients that were not finite, and counted as zero.
    """

    images: Images
    nonfinite: Int[Array, "batch"]


def _images_alone(attack: Callable[_P, Ascent]) -> Callable[_P, Images]:
    """Returns the attack as users call it; `__wrapped__` is the one that counts."""

    @wraps(attack)
    def images_alone(*args: _P.args, **kwargs: _P.kwargs) -> Images:
        return attack(*args, **kwargs).images

    return images_alone


@_images_alone
def fgsm(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    norm: str = "linf",
    loss: str = "cross_entropy",
    num_noise_samples: ArrayLike = 1,
    noise_chunk_size: int = 1,
    noise_average: str = "loss",
    targets: Labels | None = None,
) -> Ascent:
    """Returns adversarial images after one step of size eps (Goodfellow et al. 2015).

    The arguments are those of `pgd`, of which this is the single step from the clean image.
    """
    check_arguments({"loss": loss})
    return pgd.__wrapped__(  # type: ignore[attr-defined]
        key,
        logits_fn,
        images,
        labels,
        eps=eps,
        step_size=eps,
        num_steps=1,
        norm=norm,
        loss=loss,
        random_start=False,
        num_noise_samples=num_noise_samples,
        noise_chunk_size=noise_chunk_size,
        noise_average=noise_average,
        targets=targets,
    )


@_images_alone
def pgd(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    step_size: ArrayLike,
    num_steps: ArrayLike,
    norm: str = "linf",
    loss: str = "cross_entropy",
    random_start: bool = True,
    num_restarts: int = 1,
    num_noise_samples: ArrayLike = 1,
    noise_chunk_size: int = 1,
    noise_average: str = "loss",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> Ascent:
    """Returns adversarial images found by projected gradient ascent (Madry et al. 2018).

    Each step moves by `step_size` in the direction of steepest ascent of the norm, then
    projects on the eps-ball around the clean image and on [0, 1]. A random start is uniform
    in the ball. With several restarts the one with the largest margin is kept for each
    example, scored under as many draws of noise, which the attack has not seen.

    `norm`, `loss`, `random_start`, `num_restarts`, `noise_chunk_size` and `noise_average` are
    static, and so are the operations of `logits_fn`; the arrays that it reads are arguments, so
    that new weights compile nothing. `eps`, `step_size`, `num_steps` and `num_noise_samples` are
    traced: a whole curriculum runs through one compilation.

    Args:
      key: randomness of the starts and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key. It may
        close over traced parameters inside a transformed function.
      images: clean images in [0, 1], shape (batch, height, width, channels). Half precision is
        cast to single: so are the images that `logits_fn` is called with, and the result.
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range; 0 returns the clean images.
      step_size: length of a step in the same norm and units.
      num_steps: gradient steps; 0 returns the clean images.
      norm: "linf" or "l2".
      loss: "cross_entropy", "margin", "probability" or "dlr", ascended for the labels; or "kl", the
        divergence from the clean image's prediction, whatever its label (TRADES, Zhang et al.
        2019), which needs a random start: at the clean image its gradient is 0.
      random_start: start anywhere in the ball instead of at the clean image.
      num_restarts: independent attempts for each example.
      num_noise_samples: draws of the model's noise averaged in each gradient (EOT,
        Athalye et al. 2018), anew at each step.
      noise_chunk_size: how many of these draws are taken at once; memory grows with it. Above 1
        it helps where a batch does not fill the device.
      noise_average: "loss" ascends the mean of the losses of the draws, "softmax" the loss of
        their mean softmax, which is what an ensemble of noisy passes predicts.
      targets: classes to be predicted instead, shape (batch,): the loss is descended for them.
      example_ids: distinct numbers of the examples, shape (batch,), by default their
        positions. The start of an example follows from the key and its number alone, so it
        does not depend on the batch it sits in.

    Returns:
      Images of the same shape, within eps of the clean ones and in [0, 1]. A gradient that is not
      finite counts as zero for its example.

    Raises:
      ValueError: a shape, a range or a name that is not as above.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> pgd(jax.random.key(0), logits_fn, x, y, eps=0.1, step_size=0.1, num_steps=3).min()
    Array(0.4, dtype=float32)
    """
    arguments = {
        "eps": eps, "step_size": step_size, "num_steps": num_steps, "norm": norm, "loss": loss,
        "random_start": random_start, "num_restarts": num_restarts, "targets": targets,
        "num_noise_samples": num_noise_samples, "noise_chunk_size": noise_chunk_size,
        "noise_average": noise_average,
    }  # fmt: skip
    check_pgd(arguments)
    model, inputs = prepare(logits_fn, key, images, labels, targets, example_ids)
    eps, step_size = (jnp.asarray(x, inputs.images.dtype) for x in (eps, step_size))
    return _pgd(
        model,
        inputs,
        eps,
        step_size,
        jnp.asarray(num_steps, jnp.int32),
        jnp.asarray(num_noise_samples, jnp.int32),
        norm=norm,
        loss=loss,
        random_start=random_start,
        num_restarts=num_restarts,
        noise_chunk_size=noise_chunk_size,
        noise_average=noise_average,
    )


def check_pgd(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raises a ValueError that names what `pgd` cannot be asked."""
    check_arguments(arguments, num_classes, losses=PGD_LOSSES)
    random_start = arguments.get("random_start", True)
    if arguments.get("loss") == "kl" and not random_start:
        raise ValueError("loss is 'kl': it needs random_start, for its gradient is 0 at the image")
    if arguments.get("loss") == "kl" and arguments.get("targets") is not None:
        raise ValueError("targets cannot be used with loss 'kl', which has none")
    num_restarts = arguments.get("num_restarts", 1)
    if num_restarts > 1 and not random_start:
        raise ValueError(f"num_restarts is {num_restarts}: without random_start all are the same")


def n_fgsm(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    step_size: ArrayLike,
    loss: str = "cross_entropy",
    example_ids: Int[Array, "batch"] | None = None,
) -> Images:
    """Returns the images that N-FGSM trains on (de Jorge et al. 2022): one L-inf step from noise.

    The noise is uniform within twice eps, and what the step adds is not projected on the ball, so
    the result may be `2 eps + step_size` away: an attack of training, not of evaluation.

    Args:
      key: randomness of the noise and of the model.
      logits_fn: `(key, images) -> logits`.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: half the radius of the noise; traced, as is `step_size`.
      step_size: length of the step; the paper takes eps.
      loss: static, as of `pgd`, but for "kl".
      example_ids: distinct numbers of the examples, shape (batch,), by default their positions.

    Returns:
      Images of the same shape in [0, 1].

    Raises:
      ValueError: a shape, a range or a name that is not as above.
    """
    check_arguments({"eps": eps, "step_size": step_size, "loss": loss})
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    eps, step_size = (jnp.asarray(x, inputs.images.dtype) for x in (eps, step_size))
    return _n_fgsm(model, inputs, eps, step_size, loss=loss)


@partial(jax.jit, static_argnames="loss")
def _n_fgsm(
    model: TracedModel,
    inputs: Inputs,
    eps: Float[Array, ""],
    step_size: Float[Array, ""],
    *,
    loss: str,
) -> Images:
    threat = THREATS["linf"]
    images = inputs.images
    start_key, noise_key = jax.random.split(inputs.key)
    noise = random_perturbation(threat, start_key, inputs.example_ids, images, 2 * eps)
    noisy = jnp.clip(images + noise, 0, 1)
    objective = make_objective(loss, inputs.labels, None)
    found = expected_value_and_gradient(
        noise_key, model, objective, objective, noisy, Noise(1, 1, "loss")
    )
    return lax.stop_gradient(jnp.clip(noisy + step_size * threat.steepest(found.gradient), 0, 1))


_STATIC = (
    "norm",
    "loss",
    "random_start",
    "num_restarts",
    "noise_chunk_size",
    "noise_average",
)


@partial(jax.jit, static_argnames=_STATIC)
def _pgd(
    model: TracedModel,
    inputs: Inputs,
    eps: Float[Array, ""],
    step_size: Float[Array, ""],
    num_steps: Int[Array, ""],
    num_noise_samples: Int[Array, ""],
    *,
    norm: str,
    loss: str,
    random_start: bool,
    num_restarts: int,
    noise_chunk_size: int,
    noise_average: str,
) -> Ascent:
    key, images, labels, targets, example_ids = inputs
    threat = THREATS[norm]
    noise = Noise(num_noise_samples, noise_chunk_size, noise_average)
    attempt_key, score_key = jax.random.split(key)
    objective: Objective
    if loss == "kl":
        reference_key, score_key = jax.random.split(score_key)
        objective = partial(divergence, expected_logits(reference_key, model, images, noise))
    else:
        objective = make_objective(loss, labels, targets)
    score = make_objective("margin", labels, targets)

    def attempt(key: PRNGKey) -> Ascent:
        start_key, noise_key = jax.random.split(key)

        def step(i: Int[Array, ""], found: Ascent) -> Ascent:
            step_key = jax.random.fold_in(noise_key, i)
            here = expected_value_and_gradient(
                step_key, model, objective, objective, found.images, noise
            )
            delta = found.images + step_size * threat.steepest(here.gradient) - images
            return Ascent(perturb(threat, images, delta, eps), found.nonfinite + here.nonfinite)

        start = images
        if random_start:
            delta = random_perturbation(threat, start_key, example_ids, images, eps)
            start = jnp.where(num_steps > 0, perturb(threat, images, delta, eps), images)
        nothing = Ascent(start, jnp.zeros_like(labels))
        return lax.fori_loop(0, num_steps, step, nothing)

    if num_restarts == 1:
        return lax.stop_gradient(attempt(jax.random.fold_in(attempt_key, 0)))

    def restart(i: Int[Array, ""], best: tuple[Ascent, PerExample]) -> tuple[Ascent, PerExample]:
        found, scores = best
        new = attempt(jax.random.fold_in(attempt_key, i))
        new_scores = expected_score(score_key, model, score, new.images, noise)
        better = new_scores > scores
        kept = jnp.where(better[:, None, None, None], new.images, found.images)
        found = Ascent(kept, found.nonfinite + new.nonfinite)
        return found, jnp.where(better, new_scores, scores)

    nothing = Ascent(images, jnp.zeros_like(labels))
    worst = jnp.full_like(images[:, 0, 0, 0], -jnp.inf)
    return lax.stop_gradient(lax.fori_loop(0, num_restarts, restart, (nothing, worst))[0])
