"""NES that sees the predicted class alone (Ilyas et al. 2018, sections 2.4 and 2.5)."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxadv.attacks.arguments import Arguments, check_arguments, check_total
from jaxadv.attacks.expectation import Objective
from jaxadv.attacks.finite_difference import Sampling, choose_chunk_size, estimate_gradient
from jaxadv.attacks.inputs import check_images
from jaxadv.attacks.passes import BlackBox, Passes, make_passes, reaching
from jaxadv.attacks.queries import (
    Proposal,
    Queried,
    Search,
    Task,
    Verdict,
    begin,
    buys_nothing,
    go_on,
    make_task,
    search,
)
from jaxadv.attacks.threat import THREATS, perturb
from jaxadv.attacks.tracing import TracedModel
from jaxadv.draws import uniform
from jaxadv.losses import make_objective
from jaxadv.prng import example_keys
from jaxadv.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey

# Of Ilyas et al.'s code, as shares of the first radius: how far the ball shrinks in a step at
# first, at least after a success, and below what it waits for a better place.
_SHRINK, _LEAST_SHRINK, _NO_SHRINK = 0.5, 0.1, 2e-3


class _Memory(NamedTuple):
    place: Images  # adversarial, inside the radius; the images found are clean until it is eps
    radius: PerExample  # infinite until there is such a place
    shrink: PerExample
    step_size: PerExample
    velocity: Images
    has_gradient: Bool[Array, "batch"]  # at this place


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
    resume: Queried | None = None,
) -> Queried:
    """Walks from an image of another class towards the clean one, by labels alone.

    The first query looks at the clean image. The walk begins at `starts`, or at the first image of
    uniform noise that is misclassified, in a ball that holds every image. Each step follows the
    estimated gradient of a stand-in for the score, the share of neighbours that are misclassified,
    into a smaller ball. It is taken if the label stays wrong; else it is tried again with half its
    length, then with half the shrinking. An example is done when its ball has the radius eps. Until
    then its image is the clean one.

    The constants are those of the code of Ilyas et al. That always has a target and starts at an
    image of it, shrinks the ball only while the loss is low (`adv_thresh`) and by a part
    (`conservative`) of what was tried, halves the step size on a plateau as well, and gives up
    where this takes another gradient.

    A gradient takes `samples_per_gradient` x `label_samples` queries, so budgets of 100,000 are
    usual. The other arguments, the result and the errors are those of `jaxadv.attacks.nes`; the
    margins are 1 where the label is wrong and -1 where it is right.

    Args:
      key: randomness of the starts, the directions, the neighbours and the model's noise.
      logits_fn: of its outputs the largest alone is used.
      images: clean images in [0, 1], shape (batch, height, width, channels).
      labels: true classes, shape (batch,).
      eps: radius of the ball in which an image must end.
      num_queries: budget of each example.
      step_size: of the first try of each step.
      min_step_size: of the last.
      samples_per_gradient: places at which the stand-in is looked up for a gradient; static.
      label_samples: neighbours of each; static.
      label_radius: how far these are off in each pixel, uniformly.
      sigma: distance of the places from the image.
      momentum: of the gradients.
      norm: "linf" or "l2".
      directions: "normal" or "rademacher".
      num_noise_samples: passes averaged in each look at a step.
      targets: classes to be predicted instead: then `starts` should be images of these.
      starts: misclassified images, or images of the targets, to begin at.
      example_ids: distinct numbers of the examples.
      resume: result of an earlier call with a smaller budget.
    """
    check_nes_label_only({
        "eps": eps, "num_queries": num_queries, "step_size": step_size, "momentum": momentum,
        "min_step_size": min_step_size, "samples_per_gradient": samples_per_gradient,
        "label_samples": label_samples, "label_radius": label_radius, "sigma": sigma, "norm": norm,
        "directions": directions, "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, task = make_task(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    if starts is not None:
        starts = check_images("starts", starts).astype(jnp.float32)
        if starts.shape != task.images.shape:
            raise ValueError(f"starts have shape {starts.shape}, not {task.images.shape}")
    first = begin(task.images, _first_memory(task.images, step_size, norm))
    found = go_on(resume, first, task.eps, norm)
    if buys_nothing(num_queries):
        return found
    with reaching(model):
        return _nes_label_only(
            model,
            task,
            found,
            starts,
            *(jnp.asarray(x, jnp.float32) for x in (step_size, min_step_size)),
            *(jnp.asarray(x, jnp.float32) for x in (label_radius, sigma, momentum)),
            samples_per_gradient=samples_per_gradient,
            chunk_size=choose_chunk_size(model, samples_per_gradient, None, len(task.images)),
            label_samples=label_samples,
            norm=norm,
            directions=directions,
        )


def check_nes_label_only(arguments: Arguments, num_classes: int | None = None) -> None:
    """Raises a ValueError that names what `nes_label_only` cannot be asked."""
    check_arguments(arguments, num_classes)
    samples = ("samples_per_gradient", "label_samples")
    check_total(**{name: arguments[name] for name in samples if name in arguments})


def _first_radius(norm: str, shape: tuple[int, ...]) -> float:
    """Returns the radius of a ball that holds all images, whatever its centre."""
    return {"linf": 1.0, "l2": math.sqrt(math.prod(shape))}[norm]


def _first_memory(images: Images, step_size: ArrayLike, norm: str) -> _Memory:
    rows = jnp.ones_like(images[:, 0, 0, 0])
    return _Memory(
        place=images,
        radius=jnp.inf * rows,
        shrink=_SHRINK * _first_radius(norm, images.shape[1:]) * rows,
        step_size=jnp.asarray(step_size, images.dtype) * rows,
        velocity=jnp.zeros_like(images),
        has_gradient=rows < 0,
    )


_STATIC = (
    "samples_per_gradient", "chunk_size", "label_samples", "norm", "directions",
)  # fmt: skip


@partial(jax.jit, static_argnames=_STATIC)
def _nes_label_only(
    model: TracedModel | BlackBox,
    task: Task,
    found: Queried,
    starts: Images | None,
    step_size: Float[Array, ""],
    min_step_size: Float[Array, ""],
    label_radius: Float[Array, ""],
    sigma: Float[Array, ""],
    momentum: Float[Array, ""],
    *,
    samples_per_gradient: int,
    chunk_size: int,
    label_samples: int,
    norm: str,
    directions: str,
) -> Queried:
    images, eps = task.images, task.eps
    threat, whole = THREATS[norm], _first_radius(norm, images.shape[1:])
    margin = make_objective("margin", task.labels, task.targets)
    passes = make_passes(model, task.labels, task.targets)
    shares = _share_of_neighbours(passes, margin, task.example_ids, label_samples, label_radius)
    sampling = Sampling(samples_per_gradient, chunk_size, directions, sigma)
    start_key, gradient_key, look_key = jax.random.split(task.key, 3)

    def score(logits: Logits) -> PerExample:
        return jnp.where(margin(logits) > 0, 1.0, -1.0).astype(logits.dtype)

    def wants_gradient(found: Queried) -> Bool[Array, "batch"]:
        return jnp.isfinite(found.memory.radius) & ~found.memory.has_gradient

    def cost(found: Queried) -> Int[Array, "batch"]:
        return jnp.where(wants_gradient(found), samples_per_gradient * label_samples, 0)

    def propose(found: Queried, active: Bool[Array, "batch"], step: Int[Array, ""]) -> Proposal:
        memory = found.memory
        rows = wants_gradient(found) & active

        def follow() -> Images:
            estimate = estimate_gradient(
                jax.random.fold_in(gradient_key, step),
                shares,
                lambda share: share[:, 0],
                memory.place,
                task.example_ids,
                rows,
                sampling,
            )
            velocity = momentum * memory.velocity + (1 - momentum) * estimate.gradient
            return jnp.where(rows[:, None, None, None], velocity, memory.velocity)

        velocity = lax.cond(rows.any(), follow, lambda: memory.velocity)
        memory = memory._replace(velocity=velocity, has_gradient=memory.has_gradient | rows)
        move = memory.step_size[:, None, None, None] * threat.steepest(velocity)
        radius = jnp.maximum(memory.radius - memory.shrink, eps)[:, None, None, None]
        moved = perturb(threat, images, memory.place + move - images, radius)
        keys = example_keys(jax.random.fold_in(start_key, step), task.example_ids)
        noise = (1 + jax.vmap(partial(uniform, shape=images.shape[1:]))(keys)) / 2
        start = noise if starts is None else jnp.where(step == 1, starts, noise)
        there = jnp.isfinite(memory.radius)[:, None, None, None]
        # Shares are finite whatever the logits are.
        return Proposal(jnp.where(there, moved, start), memory, jnp.zeros_like(found.nonfinite))

    def judge(found: Queried, candidates: Images, margins: PerExample) -> Verdict:
        memory, wrong, first = found.memory, margins > 0, found.steps == 0
        there = jnp.isfinite(memory.radius)
        inside = jnp.maximum(memory.radius - memory.shrink, eps)
        radius = jnp.where(wrong, jnp.where(there, inside, whole), memory.radius)
        success = wrong & (first | (radius <= eps))
        # A step that failed is tried at half the length, then with half the shrinking; what
        # failed at all of these needs another gradient.
        shorter = memory.step_size / 2 >= min_step_size
        slower = memory.shrink > 0
        halved = jnp.where(memory.shrink / 2 < _NO_SHRINK * whole, 0.0, memory.shrink / 2)
        failed = there & ~wrong
        shrink = jnp.where(failed & ~shorter, halved, memory.shrink)
        shrink = jnp.where(there & wrong, jnp.maximum(shrink, _LEAST_SHRINK * whole), shrink)
        return Verdict(
            success | first,
            success,
            _Memory(
                place=jnp.where(wrong[:, None, None, None], candidates, memory.place),
                radius=radius,
                shrink=shrink,
                step_size=jnp.where(failed & shorter, memory.step_size / 2, step_size),
                velocity=memory.velocity,
                has_gradient=memory.has_gradient & failed & (shorter | slower),
            ),
        )

    return search(
        look_key,
        passes,
        score,
        task,
        found,
        Search(propose, cost, judge),
    )


def _share_of_neighbours(
    passes: Passes,
    margin: Objective,
    example_ids: Int[Array, "batch"],
    num_samples: int,
    radius: Float[Array, ""],
) -> Passes:
    """Returns passes whose one output is the share of neighbours that are misclassified."""

    def shares(
        keys: Key[Array, "k"],
        images: Float[Array, "k batch height width channels"],
        active: Bool[Array, "batch"],
    ) -> Float[Array, "k batch 1"]:
        def neighbour(key: PRNGKey, images: Images) -> Images:
            draw = jax.vmap(partial(uniform, shape=images.shape[1:]))
            return images + radius * draw(example_keys(key, example_ids))

        def add(i: int | Int[Array, ""], total: Float[Array, "k batch"]) -> Float[Array, "k batch"]:
            noise_keys, place_keys = jax.vmap(
                lambda key: jax.random.split(jax.random.fold_in(key, i)), out_axes=1
            )(keys)
            logits = passes(noise_keys, jax.vmap(neighbour)(place_keys, images), active)
            return total + (jax.vmap(margin)(logits) > 0).astype(total.dtype)

        total = lax.fori_loop(0, num_samples, add, jnp.zeros_like(images[..., 0, 0, 0]))
        return total[..., None] / num_samples

    return shares
