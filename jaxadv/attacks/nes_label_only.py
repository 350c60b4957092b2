"""Label-only NES: a search that sees the predicted class alone (Ilyas et al., 2018)."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxadv.attacks.black_box import (
    BlackBox,
    QueryFn,
    TracedBlackBox,
    make_query_fn,
    query_context,
)
from jaxadv.attacks.checks import Arguments, as_starts, check_arguments, check_product
from jaxadv.attacks.eot import Objective
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.nes import GradientSampling, choose_chunk_size, estimate_gradient
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Decision,
    Proposal,
    SearchMethod,
    SearchProblem,
    is_zero_budget,
    make_problem,
    resume_or_start,
    run_search,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, ascend
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.rng import example_keys, uniform
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey

# From the code of Ilyas et al., as shares of the initial radius: the first decrease of the radius
# in a step, the least decrease after a success, and the least decrease that is ever tried.
_FIRST_DECREASE, _DECREASE_AFTER_SUCCESS, _LEAST_DECREASE = 0.5, 0.1, 2e-3


class LabelOnlyNumbers(NamedTuple):
    """The traced numbers of label-only NES, see `nes_label_only`."""

    step_size: Float[Array, ""]
    min_step_size: Float[Array, ""]
    label_radius: Float[Array, ""]
    sigma: Float[Array, ""]
    momentum: Float[Array, ""]


@dataclass(frozen=True)
class LabelOnlyOptions:
    """The static arguments of label-only NES, see `nes_label_only`."""

    samples_per_gradient: int
    chunk_size: int
    label_samples: int
    norm: str
    directions: str


class _Extras(NamedTuple):
    iterate: Images  # adversarial, within the radius; `images` are clean until the radius is eps
    radius: PerExample  # infinite until there is an adversarial iterate
    decrease: PerExample  # of the radius in the next step
    step_size: PerExample
    velocity: Images
    has_gradient: Bool[Array, "batch"]  # whether the velocity is that of this iterate


def nes_label_only(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    step_size: ArrayLike = 0.01,
    min_step_size: ArrayLike = 5e-5,
    samples_per_gradient: int = 50,
    label_samples: int = 50,
    label_radius: ArrayLike = 1e-3,
    sigma: ArrayLike = 1e-3,
    momentum: ArrayLike = 0.9,
    norm: str = "linf",
    directions: str = "normal",
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    starts: Array | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run label-only NES: move from an image of another class towards the clean image.

    The attack sees labels alone (Ilyas et al., 2018, sections 2.4 and 2.5). The first query checks
    the clean image. The search begins at `starts`, or at the first image of uniform noise that is
    misclassified, in a ball that contains all images. Each step follows an estimated gradient into
    a smaller ball. The gradient is that of a proxy score: the share of random neighbours that are
    misclassified. A step is accepted if the label stays wrong. Otherwise it is repeated with half
    its length, then with half the decrease of the radius. An example ends when its ball has the
    radius eps; until then its result is the clean image.

    The constants are those of the code of Ilyas et al. (labsix/limited-blackbox-attacks).
    Differences: that code always has a target and starts at an image of it. It shrinks the ball
    only while the loss is low (`adv_thresh`), and only by a part (`conservative`) of what was
    tried. It also halves the step size on a plateau, and gives up where this attack estimates
    another gradient.

    A gradient takes `samples_per_gradient` x `label_samples` queries, so budgets of 100,000 are
    common. Margins are 1 where the label is wrong and -1 where it is right. Static arguments:
    `norm`, `directions`, `samples_per_gradient`, `label_samples` and the operations of `logits_fn`;
    all others are traced. The result and the errors are those of `jaxadv.attacks.nes`.

    Args:
      key: key of the starts, the directions, the neighbours and the model's noise.
      logits_fn: `(key, images) -> logits` or a `BlackBox`; only its largest output is used.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: radius of the ball in which the result must be, in units of the pixel range, one for all
        images or an array of shape (batch,).
      num_queries: budget of forward passes per example.
      step_size: length of the first trial of each step.
      min_step_size: least length of a trial.
      samples_per_gradient: points at which the proxy score is evaluated per gradient; even.
      label_samples: random neighbours per point.
      label_radius: neighbours are uniform within this distance of the point, per pixel.
      sigma: standard deviation of the points around the iterate, per pixel.
      momentum: decay of the moving average of the gradients, in [0, 1).
      norm: "linf", "l2" or "l1".
      directions: "normal" or "rademacher".
      num_noise_samples: forward passes that each success check averages over.
      targets: target classes, shape (batch,); then `starts` should be images of these classes.
      starts: misclassified images, or images of the targets, to begin at; same shape as `images`.
      example_ids: distinct integers, shape (batch,), by default the positions in the batch.
      resume: result of an earlier call with a smaller budget.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> nes_label_only(
    ...     jax.random.key(0), logits_fn, x, y, eps=0.1, num_queries=2000, step_size=0.1, sigma=0.1,
    ...     samples_per_gradient=10, label_samples=10,
    ... ).success
    Array([ True], dtype=bool)
    """
    static: dict[str, Any] = {
        "samples_per_gradient": samples_per_gradient, "label_samples": label_samples, "norm": norm,
        "directions": directions,
    }  # fmt: skip
    check_nes_label_only({
        "eps": eps, "num_queries": num_queries, "step_size": step_size, "momentum": momentum,
        "min_step_size": min_step_size, "label_radius": label_radius, "sigma": sigma, **static,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    images = problem.images
    starts = as_starts(starts, images)
    initial = initial_result(images, _initial_extras(images, step_size, norm))
    state = resume_or_start(resume, initial, problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    traced = (step_size, min_step_size, label_radius, sigma, momentum)
    numbers = LabelOnlyNumbers(*(jnp.asarray(x, jnp.float32) for x in traced))
    chunk_size = choose_chunk_size(model, samples_per_gradient, None, len(images))
    options = LabelOnlyOptions(**static, chunk_size=chunk_size)
    with query_context():
        return _nes_label_only(model, problem, state, starts, numbers, options=options)


def check_nes_label_only(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raise a ValueError that names the first invalid argument of `nes_label_only`."""
    check_arguments(arguments, num_classes)
    samples = ("samples_per_gradient", "label_samples")
    check_product(**{name: arguments[name] for name in samples if name in arguments})


def _initial_radius(norm: str, shape: tuple[int, ...]) -> float:
    """Return the radius of a ball that contains all images, whatever its centre."""
    size = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]


def _initial_extras(images: Images, step_size: ArrayLike, norm: str) -> _Extras:
    ones = jnp.ones_like(images[:, 0, 0, 0])
    return _Extras(
        iterate=images,
        radius=jnp.inf * ones,
        decrease=_FIRST_DECREASE * _initial_radius(norm, images.shape[1:]) * ones,
        step_size=jnp.asarray(step_size, images.dtype) * ones,
        velocity=jnp.zeros_like(images),
        has_gradient=ones < 0,
    )


@partial(jit_kernel, static_argnames="options")
def _nes_label_only(
    model: TracedModel | TracedBlackBox,
    problem: SearchProblem,
    state: AttackResult,
    starts: Images | None,
    numbers: LabelOnlyNumbers,
    *,
    options: LabelOnlyOptions,
) -> AttackResult:
    images, eps = problem.images, problem.eps
    threat = THREATS[options.norm]
    initial_radius = _initial_radius(options.norm, images.shape[1:])
    margin = make_objective("margin", problem.labels, problem.targets)
    query_fn = make_query_fn(model)
    proxy_fn = _make_proxy_fn(
        query_fn, margin, problem.example_ids, options.label_samples, numbers.label_radius
    )
    sampling = GradientSampling(
        options.samples_per_gradient, options.chunk_size, options.directions, numbers.sigma
    )
    start_key, gradient_key, check_key = jax.random.split(problem.key, 3)

    def score(logits: Logits) -> PerExample:
        return jnp.where(margin(logits) > 0, 1.0, -1.0).astype(logits.dtype)

    def needs_gradient(state: AttackResult) -> Bool[Array, "batch"]:
        return jnp.isfinite(state.extras.radius) & ~state.extras.has_gradient

    def cost(state: AttackResult) -> Int[Array, "batch"]:
        gradient_cost = options.samples_per_gradient * options.label_samples
        return jnp.where(needs_gradient(state), gradient_cost, 0)

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        extras = state.extras
        rows = needs_gradient(state) & active

        def update_velocity() -> Images:
            estimate = estimate_gradient(
                jax.random.fold_in(gradient_key, step),
                proxy_fn,
                lambda proxy: proxy[:, 0],
                extras.iterate,
                problem.example_ids,
                rows,
                sampling,
            )
            momentum = numbers.momentum
            velocity = momentum * extras.velocity + (1 - momentum) * estimate.gradient
            return jnp.where(rows[:, None, None, None], velocity, extras.velocity)

        velocity = lax.cond(rows.any(), update_velocity, lambda: extras.velocity)
        extras = extras._replace(velocity=velocity, has_gradient=extras.has_gradient | rows)
        radius = jnp.maximum(extras.radius - extras.decrease, eps)
        moved = ascend(threat, images, extras.iterate, velocity, extras.step_size, radius)
        keys = example_keys(jax.random.fold_in(start_key, step), problem.example_ids)
        noise = (1 + jax.vmap(partial(uniform, shape=images.shape[1:]))(keys)) / 2
        start = noise if starts is None else jnp.where(step == 1, starts, noise)
        has_iterate = jnp.isfinite(extras.radius)[:, None, None, None]
        # Proxy scores are finite for all logits.
        return Proposal(
            jnp.where(has_iterate, moved, start), extras, jnp.zeros_like(state.nonfinite)
        )

    def accept(state: AttackResult, candidates: Images, margins: PerExample) -> Decision:
        extras, is_wrong, is_clean_image = state.extras, margins > 0, state.steps == 0
        has_iterate = jnp.isfinite(extras.radius)
        smaller = jnp.maximum(extras.radius - extras.decrease, eps)
        new_radius = jnp.where(has_iterate, smaller, initial_radius)
        radius = jnp.where(is_wrong, new_radius, extras.radius)
        success = is_wrong & (is_clean_image | (radius <= eps))
        # A failed step is repeated at half the length, then with half the decrease of the radius.
        # If all of these fail, another gradient is estimated.
        can_shorten = extras.step_size / 2 >= numbers.min_step_size
        can_slow_down = extras.decrease > 0
        half = extras.decrease / 2
        halved = jnp.where(half < _LEAST_DECREASE * initial_radius, 0.0, half)
        failed = has_iterate & ~is_wrong
        decrease = jnp.where(failed & ~can_shorten, halved, extras.decrease)
        after_success = jnp.maximum(decrease, _DECREASE_AFTER_SUCCESS * initial_radius)
        decrease = jnp.where(has_iterate & is_wrong, after_success, decrease)
        retries = failed & (can_shorten | can_slow_down)
        return Decision(
            success | is_clean_image,
            success,
            _Extras(
                iterate=jnp.where(is_wrong[:, None, None, None], candidates, extras.iterate),
                radius=radius,
                decrease=decrease,
                step_size=jnp.where(failed & can_shorten, extras.step_size / 2, numbers.step_size),
                velocity=extras.velocity,
                has_gradient=extras.has_gradient & retries,
            ),
        )

    return run_search(
        check_key, query_fn, score, problem, state, SearchMethod(propose, cost, accept)
    )


def _make_proxy_fn(
    query_fn: QueryFn,
    margin: Objective,
    example_ids: Int[Array, "batch"],
    num_samples: int,
    radius: Float[Array, ""],
) -> QueryFn:
    """Return a `QueryFn` with one output, the share of neighbours that are misclassified."""

    def proxy(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch 1"]:
        def neighbour(key: PRNGKey, images: Images) -> Images:
            sample = jax.vmap(partial(uniform, shape=images.shape[1:]))
            return images + radius * sample(example_keys(key, example_ids))

        def add(i: int | Int[Array, ""], total: Float[Array, "k batch"]) -> Float[Array, "k batch"]:
            noise_keys, place_keys = jax.vmap(
                lambda key: jax.random.split(jax.random.fold_in(key, i)), out_axes=1
            )(keys)
            logits = query_fn(noise_keys, jax.vmap(neighbour)(place_keys, images), active)
            return total + (jax.vmap(margin)(logits) > 0).astype(total.dtype)

        total = lax.fori_loop(0, num_samples, add, jnp.zeros_like(images[..., 0, 0, 0]))
        return total[..., None] / num_samples

    return proxy


NES_LABEL_ONLY = AttackSpec(
    attack_fn=nes_label_only,
    run=nes_label_only,
    traced=(
        "eps", "num_queries", "step_size", "min_step_size", "label_radius", "sigma", "momentum",
        "num_noise_samples",
    ),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    resumable=True,
    returns_clean=True,
    check=check_nes_label_only,
)  # fmt: skip
