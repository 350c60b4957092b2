"""Attacks that follow the gradient of a loss with respect to the image: FGSM and PGD."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.expectation import (
    AVERAGES,
    Noise,
    Objective,
    expected_gradient,
    expected_logits,
    expected_score,
)
from jaxadv.attacks.inputs import (
    as_inputs,
    check_at_least,
    check_count,
    check_inputs,
    count_classes,
)
from jaxadv.attacks.threat import THREATS, perturb, random_perturbation
from jaxadv.losses import LOSSES, divergence, make_objective
from jaxadv.types import Images, Labels, LogitsFn, PerExample, PRNGKey

PGD_LOSSES = (*LOSSES, "kl")


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
) -> Images:
    """Returns adversarial images after one step of size eps (Goodfellow et al. 2015).

    The arguments are those of `pgd`, of which this is the single step from the clean image.
    """
    return pgd(
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
) -> Images:
    """Returns adversarial images found by projected gradient ascent (Madry et al. 2018).

    Each step moves by `step_size` in the direction of steepest ascent of the norm, then
    projects on the eps-ball around the clean image and on [0, 1]. A random start is uniform
    in the ball. With several restarts the one with the largest margin is kept for each
    example, scored under as many draws of noise, which the attack has not seen.

    `norm`, `loss`, `random_start`, `num_restarts`, `noise_chunk_size` and `noise_average` are
    static, and so is `logits_fn`: a new function object is a new compilation. `eps`,
    `step_size`, `num_steps` and `num_noise_samples` are traced, so a whole curriculum runs
    through one compilation.

    Args:
      key: randomness of the starts and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key. It may
        close over traced parameters inside a transformed function.
      images: clean images in [0, 1], shape (batch, height, width, channels).
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
      Images of the same shape, within eps of the clean ones and in [0, 1].

    Raises:
      ValueError: a shape, a range or a name that is not as above.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> pgd(jax.random.key(0), logits_fn, x, y, eps=0.1, step_size=0.1, num_steps=3).min()
    Array(0.4, dtype=float32)
    """
    images, labels, example_ids = as_inputs(images, labels, example_ids)
    num_classes = count_classes(logits_fn, key, images)
    check_inputs(
        images, labels, targets, example_ids, num_classes=num_classes, norm=norm, loss=loss,
        losses=PGD_LOSSES,
    )  # fmt: skip
    if loss == "kl" and (targets is not None or not random_start):
        raise ValueError("loss 'kl' has no targets, and needs random_start")
    check_at_least(0, eps=eps, step_size=step_size)
    check_count(0, num_steps=num_steps)
    check_count(
        1,
        num_restarts=num_restarts,
        num_noise_samples=num_noise_samples,
        noise_chunk_size=noise_chunk_size,
    )
    if noise_average not in AVERAGES:
        raise ValueError(f"noise_average {noise_average!r} is not one of {', '.join(AVERAGES)}")
    if num_restarts > 1 and not random_start:
        raise ValueError(f"num_restarts is {num_restarts}: without random_start all are the same")
    return _pgd(
        key,
        logits_fn,
        images,
        labels,
        targets,
        example_ids,
        jnp.asarray(eps, images.dtype),
        jnp.asarray(step_size, images.dtype),
        jnp.asarray(num_steps, jnp.int32),
        jnp.asarray(num_noise_samples, jnp.int32),
        norm=norm,
        loss=loss,
        random_start=random_start,
        num_restarts=num_restarts,
        noise_chunk_size=noise_chunk_size,
        noise_average=noise_average,
    )


@partial(jax.jit, static_argnames=("logits_fn", "loss"))
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
      logits_fn: `(key, images) -> logits`, static.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: half the radius of the noise; traced, as is `step_size`.
      step_size: length of the step; the paper takes eps.
      loss: static, as of `pgd`, but for "kl".
      example_ids: distinct numbers of the examples, shape (batch,), by default their positions.

    Returns:
      Images of the same shape in [0, 1].
    """
    threat = THREATS["linf"]
    images, labels, ids = as_inputs(images, labels, example_ids)
    start_key, noise_key = jax.random.split(key)
    radius = jnp.asarray(2 * eps, images.dtype)
    noisy = jnp.clip(images + random_perturbation(threat, start_key, ids, images, radius), 0, 1)
    objective = make_objective(loss, labels, None)
    gradient = expected_gradient(noise_key, logits_fn, objective, noisy, Noise(1, 1, "loss"))
    return lax.stop_gradient(jnp.clip(noisy + step_size * threat.steepest(gradient), 0, 1))


_STATIC = (
    "logits_fn",
    "norm",
    "loss",
    "random_start",
    "num_restarts",
    "noise_chunk_size",
    "noise_average",
)


@partial(jax.jit, static_argnames=_STATIC)
def _pgd(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    targets: Labels | None,
    example_ids: Int[Array, "batch"],
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
) -> Images:
    threat = THREATS[norm]
    noise = Noise(num_noise_samples, noise_chunk_size, noise_average)
    attempt_key, score_key = jax.random.split(key)
    objective: Objective
    if loss == "kl":
        objective = partial(divergence, expected_logits(score_key, logits_fn, images, noise))
    else:
        objective = make_objective(loss, labels, targets)
    score = make_objective("margin", labels, targets)

    def attempt(key: PRNGKey) -> Images:
        start_key, noise_key = jax.random.split(key)

        def step(i: Int[Array, ""], adversarial: Images) -> Images:
            step_key = jax.random.fold_in(noise_key, i)
            gradient = expected_gradient(step_key, logits_fn, objective, adversarial, noise)
            delta = adversarial + step_size * threat.steepest(gradient) - images
            return perturb(threat, images, delta, eps)

        start = images
        if random_start:
            delta = random_perturbation(threat, start_key, example_ids, images, eps)
            start = jnp.where(num_steps > 0, perturb(threat, images, delta, eps), images)
        return lax.fori_loop(0, num_steps, step, start)

    if num_restarts == 1:
        return lax.stop_gradient(attempt(jax.random.fold_in(attempt_key, 0)))

    def restart(i: Int[Array, ""], best: tuple[Images, PerExample]) -> tuple[Images, PerExample]:
        images, scores = best
        new_images = attempt(jax.random.fold_in(attempt_key, i))
        new_scores = expected_score(score_key, logits_fn, score, new_images, noise)
        better = new_scores > scores
        images = jnp.where(better[:, None, None, None], new_images, images)
        return images, jnp.where(better, new_scores, scores)

    worst = jnp.full(len(images), -jnp.inf)
    return lax.stop_gradient(lax.fori_loop(0, num_restarts, restart, (images, worst))[0])
