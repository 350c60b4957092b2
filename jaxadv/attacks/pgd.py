"""Gradient attacks with a fixed number of steps: FGSM, PGD and N-FGSM."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Int

from jaxadv.attacks.checks import Arguments, Inputs, as_radius, check_arguments, prepare
from jaxadv.attacks.eot import (
    Noise,
    Objective,
    expected_logits,
    expected_score,
    expected_value_and_gradient,
)
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.odi import check_odi, odi_objective
from jaxadv.attacks.result import AttackResult, initial_result, returning_images
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import (
    NORMS,
    THREATS,
    Radius,
    as_column,
    ascend,
    perturb,
    random_perturbation,
)
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import LOSSES, kl_divergence, make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PerExample, PRNGKey

PGD_LOSSES = (*LOSSES, "kl")
PGD_NORMS = (*NORMS, "l0")


class PGDBudget(NamedTuple):
    """The traced arguments of PGD, see `pgd`."""

    eps: Radius
    step_size: Radius
    num_steps: Int[Array, ""]
    num_noise_samples: Int[Array, ""]


@dataclass(frozen=True)
class PGDOptions:
    """The static arguments of PGD, see `pgd`."""

    norm: str
    loss: str
    random_start: bool
    num_odi_steps: int
    num_restarts: int
    noise_chunk_size: int
    noise_average: str


@returning_images
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
) -> AttackResult:
    """Run the fast gradient sign method (Goodfellow et al., 2015): one step of size eps.

    This is `pgd` with one step from the clean image, and takes its arguments, without the loss
    "kl". In L2 the step follows the normalised gradient, and in L1 it changes 1 % of the values.
    The result is the adversarial images.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> fgsm(jax.random.key(0), logits_fn, x, y, eps=0.1).max()
    Array(0.4, dtype=float32)
    """
    check_arguments({"loss": loss})
    return pgd_result(
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


@returning_images
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
    num_odi_steps: int = 0,
    num_restarts: int = 1,
    num_noise_samples: ArrayLike = 1,
    noise_chunk_size: int = 1,
    noise_average: str = "loss",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> AttackResult:
    """Run projected gradient descent (Madry et al., 2018) and return the adversarial images.

    Each step moves by `step_size` in the direction of steepest ascent of the loss: the sign of the
    gradient in L-inf, the normalised gradient in L2, and in L1 the 1 % of values with the largest
    gradients (Tramer & Boneh, 2019). It then projects onto the eps-ball around the clean image and
    clips to [0, 1]; in L1 it projects onto the intersection of the two (Croce & Hein, 2021). In L0
    this is PGD-0 (Croce & Hein, 2019): `eps` pixels may change, rounded down, in all channels. A
    step follows the gradient, and its length `step_size` is measured in L1; 10 to 100 are usual.
    The authors' code keeps any misclassified iterate, not the last one. With
    several restarts, each example keeps the restart with the largest margin. Margins are averaged
    over `num_noise_samples` noise samples that the attack has not seen.

    Traced arguments: `eps`, `step_size`, `num_steps` and `num_noise_samples`, so a curriculum over
    them compiles once. Static arguments: `norm`, `loss`, `random_start`, `num_odi_steps`,
    `num_restarts`, `noise_chunk_size`, `noise_average` and the operations of `logits_fn`. The
    arrays that `logits_fn` reads are traced too: new weights do not compile again.

    Args:
      key: key of the random starts, of the weights of ODI and of the model's noise.
      logits_fn: `(key, images) -> logits`; a deterministic function ignores the key. It may
        close over traced parameters inside a transformed function.
      images: clean images in [0, 1], shape (batch, height, width, channels). Half precision is
        cast to single precision, for `logits_fn` and for the result.
      labels: true classes, shape (batch,).
      eps: radius of the ball in units of the pixel range; 0 returns the clean images.
        An array of shape (batch,) gives each image its own radius. In L-inf an array of four axes
        that broadcasts to the images gives each value its own.
      step_size: length of a step in the same norm and units, or an array of one of these shapes.
      num_steps: gradient steps; 0 returns the clean images.
      norm: "linf", "l2", "l1" or "l0".
      loss: loss of the labels to ascend: "cross_entropy", "margin", "probability",
        "probability_margin" (PMA, Xie et al., 2025) or "dlr". "kl" is the Kullback-Leibler
        divergence from the prediction for the clean image, which ignores the labels (TRADES, Zhang
        et al., 2019). It needs a random start, because its gradient is 0 at the clean image.
      random_start: start uniformly in the ball instead of at the clean image.
      num_odi_steps: steps of length eps that diversify each start (ODI, Tashiro et al., 2020, who
        take 2): they ascend randomly weighted logits. They come before the `num_steps` steps, and
        each costs as many gradients as one of these. L-inf and L2 only.
      num_restarts: independent random starts per example.
      num_noise_samples: samples of the model's noise that each gradient averages over (EOT,
        Athalye et al., 2018); every step uses new ones.
      noise_chunk_size: noise samples evaluated at once; memory grows with it. Values above 1 are
        faster if one batch does not fill the device.
      noise_average: "loss" ascends the mean loss of the noise samples; "softmax" ascends the loss
        of their mean softmax, which is the prediction of an ensemble of noisy forward passes.
      targets: target classes, shape (batch,); the attack then descends their loss.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch. The
        start of an example depends on the key and its id alone, not on the rest of the batch.

    Returns:
      Images of the same shape, within eps of the clean ones and in [0, 1]. Gradients with a NaN or
      infinite value count as zero for their example.

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> pgd(jax.random.key(0), logits_fn, x, y, eps=0.1, step_size=0.1, num_steps=3).min()
    Array(0.4, dtype=float32)
    """
    traced = {
        "eps": eps, "step_size": step_size, "num_steps": num_steps,
        "num_noise_samples": num_noise_samples,
    }  # fmt: skip
    static: dict[str, Any] = {
        "norm": norm, "loss": loss, "random_start": random_start,
        "num_odi_steps": num_odi_steps, "num_restarts": num_restarts,
        "noise_chunk_size": noise_chunk_size, "noise_average": noise_average,
    }  # fmt: skip
    check_pgd({**traced, **static, "targets": targets})
    model, inputs = prepare(logits_fn, key, images, labels, targets, example_ids)
    budget = PGDBudget(
        eps=as_radius("eps", eps, inputs.images, per_value=norm == "linf"),
        step_size=as_radius("step_size", step_size, inputs.images, per_value=norm == "linf"),
        num_steps=jnp.asarray(num_steps, jnp.int32),
        num_noise_samples=jnp.asarray(num_noise_samples, jnp.int32),
    )
    return _pgd(model, inputs, budget, options=PGDOptions(**static))


# The same attacks with an `AttackResult` as their result.
fgsm_result: Callable[..., AttackResult] = fgsm.__wrapped__  # type: ignore[attr-defined]
pgd_result: Callable[..., AttackResult] = pgd.__wrapped__  # type: ignore[attr-defined]


def check_pgd(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `pgd`."""
    check_arguments(
        arguments, num_classes, losses=PGD_LOSSES, norms=PGD_NORMS, arrays=("eps", "step_size")
    )
    random_start = arguments.get("random_start", True)
    if arguments.get("loss") == "kl" and not random_start:
        raise ValueError(
            "loss is 'kl', whose gradient is 0 at the clean image: set random_start to True"
        )
    if arguments.get("loss") == "kl" and arguments.get("targets") is not None:
        raise ValueError("loss is 'kl', which ignores targets: remove targets or use another loss")
    check_odi(arguments)
    num_odi_steps = arguments.get("num_odi_steps", 0)
    if num_odi_steps and not random_start:
        raise ValueError(
            f"num_odi_steps is {num_odi_steps}, but these steps begin at a random start: set "
            "random_start to True or num_odi_steps to 0"
        )
    num_restarts = arguments.get("num_restarts", 1)
    if num_restarts > 1 and not random_start:
        raise ValueError(
            f"num_restarts is {num_restarts}, but without random_start all restarts are equal: set "
            "random_start to True or num_restarts to 1"
        )


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
    """Run N-FGSM (de Jorge et al., 2022), a training attack: one L-inf step from uniform noise.

    The noise is uniform in a ball of radius 2 eps. The perturbation is not projected afterwards.
    The result may be up to `2 eps + step_size` away from the clean image, so this attack is for
    training, not for evaluation.

    Args:
      key: key of the random starts and of the model's noise.
      logits_fn: `(key, images) -> logits`.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: half the radius of the noise, in units of the pixel range; traced. One for all images, an
        array of shape (batch,), or one of four axes that broadcasts to the images.
      step_size: length of the step in the same units, or an array of one of these shapes; traced.
        The paper uses eps.
      loss: "cross_entropy", "margin", "probability", "probability_margin" or "dlr"; static.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch; the
        noise of an example depends on the key and its id alone.

    Returns:
      Images of the same shape in [0, 1].

    Raises:
      ValueError: an argument has an invalid shape, range or name; the message names it.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> n_fgsm(jax.random.key(0), logits_fn, x, y, eps=0.0, step_size=0.1).max()
    Array(0.4, dtype=float32)
    """
    check_arguments({"eps": eps, "step_size": step_size, "loss": loss}, arrays=("eps", "step_size"))
    model, inputs = prepare(logits_fn, key, images, labels, None, example_ids)
    numbers = {"eps": eps, "step_size": step_size}
    eps, step_size = (
        as_radius(name, number, inputs.images, per_value=True) for name, number in numbers.items()
    )
    return _n_fgsm(model, inputs, eps, step_size, loss=loss)


@partial(jit_kernel, static_argnames="loss")
def _n_fgsm(
    model: TracedModel,
    inputs: Inputs,
    eps: Radius,
    step_size: Radius,
    *,
    loss: str,
) -> Images:
    threat = THREATS["linf"]
    images = inputs.images
    start_key, noise_key = jax.random.split(inputs.key)
    noise = random_perturbation(threat, start_key, inputs.example_ids, images, 2 * eps)
    noisy = jnp.clip(images + noise, 0, 1)
    objective = make_objective(loss, inputs.labels, None)
    estimate = expected_value_and_gradient(
        noise_key, model, objective, objective, noisy, Noise(1, 1, "loss")
    )
    step = as_column(step_size) * threat.steepest(noisy, estimate.gradient)
    return lax.stop_gradient(jnp.clip(noisy + step, 0, 1))


class _Iterate(NamedTuple):
    images: Images
    nonfinite: Int[Array, "batch"]  # gradients with a NaN or infinite value so far


@partial(jit_kernel, static_argnames="options")
def _pgd(
    model: TracedModel, inputs: Inputs, budget: PGDBudget, *, options: PGDOptions
) -> AttackResult:
    key, images, labels, targets, example_ids = inputs
    eps, step_size, num_steps, num_noise_samples = budget
    threat = THREATS[options.norm]
    noise = Noise(num_noise_samples, options.noise_chunk_size, options.noise_average)
    restart_key, score_key = jax.random.split(key)
    objective: Objective
    if options.loss == "kl":
        reference_key, score_key = jax.random.split(score_key)
        objective = partial(kl_divergence, expected_logits(reference_key, model, images, noise))
    else:
        objective = make_objective(options.loss, labels, targets)
    margin = make_objective("margin", labels, targets)
    run_length = jnp.where(num_steps > 0, num_steps + options.num_odi_steps, 0)

    def run_from_start(key: PRNGKey) -> _Iterate:
        start_key, noise_key, odi_key = jax.random.split(key, 3)

        def step(i: Int[Array, ""], current: _Iterate) -> _Iterate:
            step_key = jax.random.fold_in(noise_key, i)
            ascended, length = objective, step_size
            if options.num_odi_steps:
                is_odi_step = i < options.num_odi_steps
                ascended = odi_objective(
                    odi_key,
                    example_ids,
                    model.num_classes,
                    options.noise_average,
                    objective,
                    is_odi_step,
                )
                length = jnp.where(is_odi_step, as_column(eps), as_column(step_size))
            estimate = expected_value_and_gradient(
                step_key, model, ascended, ascended, current.images, noise
            )
            moved = ascend(threat, images, current.images, estimate.gradient, length, eps)
            return _Iterate(moved, current.nonfinite + estimate.nonfinite)

        start = images
        if options.random_start:
            delta = random_perturbation(threat, start_key, example_ids, images, eps)
            start = jnp.where(num_steps > 0, perturb(threat, images, delta, eps), images)
        return lax.fori_loop(0, run_length, step, _Iterate(start, jnp.zeros_like(labels)))

    def restart(
        i: Int[Array, ""], best: tuple[_Iterate, PerExample]
    ) -> tuple[_Iterate, PerExample]:
        kept, kept_margins = best
        new = run_from_start(jax.random.fold_in(restart_key, i))
        margins = expected_score(score_key, model, margin, new.images, noise)
        better = margins > kept_margins
        adversarial = jnp.where(better[:, None, None, None], new.images, kept.images)
        kept = _Iterate(adversarial, kept.nonfinite + new.nonfinite)
        return kept, jnp.where(better, margins, kept_margins)

    if options.num_restarts == 1:
        final = run_from_start(jax.random.fold_in(restart_key, 0))
    else:
        first = _Iterate(images, jnp.zeros_like(labels))
        no_margins = jnp.full_like(images[:, 0, 0, 0], -jnp.inf)
        final, _ = lax.fori_loop(0, options.num_restarts, restart, (first, no_margins))
    result = initial_result(images)
    num_gradients = options.num_restarts * run_length * num_noise_samples
    result = result._replace(
        images=final.images,
        queries=result.queries + num_gradients,
        gradients=result.gradients + num_gradients,
        nonfinite=final.nonfinite,
        steps=result.steps + run_length,
    )
    return lax.stop_gradient(result)


def _max_gradients(arguments: Arguments) -> int:
    num_restarts = arguments.get("num_restarts", 1)
    num_steps = arguments.get("num_steps", 1)
    run_length = num_steps and num_steps + arguments.get("num_odi_steps", 0)
    return run_length * num_restarts * arguments.get("num_noise_samples", 1)


FGSM = AttackSpec(
    attack_fn=fgsm,
    run=fgsm_result,
    traced=("eps", "num_noise_samples"),
    uses_gradients=True,
    max_queries=_max_gradients,  # with one step
    takes_example_ids=False,
)
PGD = AttackSpec(
    attack_fn=pgd,
    run=pgd_result,
    traced=("eps", "step_size", "num_steps", "num_noise_samples"),
    uses_gradients=True,
    max_queries=_max_gradients,
    norms=PGD_NORMS,
    check=check_pgd,
)
