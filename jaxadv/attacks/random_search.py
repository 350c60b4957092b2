"""Random search: the attack that any other one must beat."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int

from jaxadv.attacks.arguments import check_arguments
from jaxadv.attacks.passes import BlackBox, make_passes, reaching
from jaxadv.attacks.queries import (
    Proposal,
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
from jaxadv.attacks.tracing import TracedModel
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
    check_arguments({
        "eps": eps, "num_queries": num_queries, "norm": norm,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, task = make_task(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )  # fmt: skip
    found = go_on(resume, begin(task.images), task.eps, norm)
    if buys_nothing(num_queries):
        return found
    with reaching(model):
        return _random_search(model, task, found, norm=norm)


@partial(jax.jit, static_argnames="norm")
def _random_search(
    model: TracedModel | BlackBox, task: Task, found: Queried, *, norm: str
) -> Queried:
    threat = THREATS[norm]
    draw_key, look_key = jax.random.split(task.key)

    def propose(found: Queried, active: Bool[Array, "batch"], step: Int[Array, ""]) -> Proposal:
        step_key = jax.random.fold_in(draw_key, step)
        delta = random_perturbation(threat, step_key, task.example_ids, task.images, task.eps)
        candidates = perturb(threat, task.images, delta, task.eps)
        return Proposal(candidates, (), jnp.zeros_like(found.nonfinite))

    return search(
        look_key,
        make_passes(model, task.labels, task.targets),
        make_objective("margin", task.labels, task.targets),
        task,
        found,
        Search(propose, always(0), keep_larger),
    )
