"""Random search: the attack that any other one must beat."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxadv.attacks.inputs import as_inputs, check_at_least, check_inputs
from jaxadv.attacks.passes import BlackBox, make_passes, reaching
from jaxadv.attacks.queries import Queried, Search, always, begin, keep_larger, search
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
    images, labels, example_ids = as_inputs(images, labels, example_ids)
    check_inputs(logits_fn, key, images, labels, targets, norm=norm, loss="margin")
    check_at_least(0, eps=eps, num_queries=num_queries)
    check_at_least(1, num_noise_samples=num_noise_samples)
    with reaching(logits_fn):
        return _random_search(
            key,
            logits_fn,
            images,
            labels,
            targets,
            example_ids,
            begin(images) if resume is None else resume,
            jnp.asarray(eps, images.dtype),
            jnp.asarray(num_queries, jnp.int32),
            jnp.asarray(num_noise_samples, jnp.int32),
            norm=norm,
        )


@partial(jax.jit, static_argnames=("logits_fn", "norm"))
def _random_search(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    targets: Labels | None,
    example_ids: Int[Array, "batch"],
    found: Queried,
    eps: Float[Array, ""],
    num_queries: Int[Array, ""],
    num_noise_samples: Int[Array, ""],
    *,
    norm: str,
) -> Queried:
    threat = THREATS[norm]
    draw_key, look_key = jax.random.split(key)

    def propose(found: Queried, active: Bool[Array, "batch"]) -> tuple[Images, tuple]:
        step_key = jax.random.fold_in(draw_key, found.steps.max())
        delta = random_perturbation(threat, step_key, example_ids, images, eps)
        return perturb(threat, images, delta, eps), ()

    return search(
        look_key,
        make_passes(logits_fn),
        make_objective("margin", labels, targets),
        images,
        found,
        Search(propose, always(0), keep_larger),
        num_queries=num_queries,
        num_noise_samples=num_noise_samples,
    )
