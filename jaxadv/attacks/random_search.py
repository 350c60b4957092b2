"""Random search: the attack that any other one must beat."""

from functools import partial

import jax
from jaxtyping import Array, ArrayLike, Bool, Int

from jaxadv.attacks.passes import BlackBox, make_passes, reaching
from jaxadv.attacks.queries import (
    Queried,
    Search,
    Task,
    always,
    begin,
    buys_nothing,
    go_on,
    keep_larger,
    make_task,
    search,
)
from jaxadv.attacks.threat import THREATS, perturb, random_perturbation
from jaxadv.losses import make_objective
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey


def random_search(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    norm: str = "linf",
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: Queried | None = None,
) -> Queried:
    """Looks at uniform draws from the ball of each image until one is misclassified.

    The clean image is the first. What is returned has the largest margin seen. The arguments are
    those of `jaxadv.attacks.nes`.
    """
    task = make_task(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples, norm=norm,
    )  # fmt: skip
    found = go_on(resume, begin(task.images), task.eps, norm)
    if buys_nothing(num_queries):
        return found
    with reaching(logits_fn):
        return _random_search(task, found, logits_fn=logits_fn, norm=norm)


@partial(jax.jit, static_argnames=("logits_fn", "norm"))
def _random_search(
    task: Task, found: Queried, *, logits_fn: LogitsFn | BlackBox, norm: str
) -> Queried:
    threat = THREATS[norm]
    draw_key, look_key = jax.random.split(task.key)

    def propose(
        found: Queried, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> tuple[Images, tuple]:
        step_key = jax.random.fold_in(draw_key, step)
        delta = random_perturbation(threat, step_key, task.example_ids, task.images, task.eps)
        return perturb(threat, task.images, delta, task.eps), ()

    return search(
        look_key,
        make_passes(logits_fn, task.labels, task.targets),
        make_objective("margin", task.labels, task.targets),
        task,
        found,
        Search(propose, always(0), keep_larger),
    )
