"""Random search: the attack without gradients that any other one must beat."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.inputs import check_at_least, check_inputs
from jaxadv.attacks.threat import THREATS, perturb, random_perturbation
from jaxadv.losses import margin
from jaxadv.types import Images, Labels, LogitsFn, PerExample, PRNGKey


def random_search(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    norm: str = "linf",
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> Images:
    """Returns for each image the best of `num_queries` uniform draws from its ball.

    The best has the largest margin, or the smallest for its target. Nothing of it follows a
    gradient, so a model that it breaks and a gradient attack does not is masking its gradients.

    The arguments are those of `jaxadv.attacks.pgd`; `num_queries` is traced, and 0 returns the
    clean images.

    Raises:
      ValueError: a shape, a range or a name that is not as for `pgd`.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    check_inputs(logits_fn, key, images, labels, targets, norm=norm, loss="margin")
    check_at_least(0, eps=eps, num_queries=num_queries)
    return _random_search(
        key,
        logits_fn,
        images,
        labels,
        targets,
        jnp.arange(len(images)) if example_ids is None else jnp.asarray(example_ids),
        jnp.asarray(eps, images.dtype),
        jnp.asarray(num_queries, jnp.int32),
        norm=norm,
    )


@partial(jax.jit, static_argnames=("logits_fn", "norm"))
def _random_search(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    targets: Labels | None,
    example_ids: Int[Array, "batch"],
    eps: Float[Array, ""],
    num_queries: Int[Array, ""],
    *,
    norm: str,
) -> Images:
    threat = THREATS[norm]

    def query(i: Int[Array, ""], best: tuple[Images, PerExample]) -> tuple[Images, PerExample]:
        found, scores = best
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
        delta = random_perturbation(threat, draw_key, example_ids, images, eps)
        candidates = perturb(threat, images, delta, eps)
        logits = logits_fn(noise_key, candidates)
        new_scores = margin(logits, labels) if targets is None else -margin(logits, targets)
        better = new_scores > scores
        found = jnp.where(better[:, None, None, None], candidates, found)
        return found, jnp.where(better, new_scores, scores)

    worst = jnp.full(len(images), -jnp.inf)
    return lax.stop_gradient(lax.fori_loop(0, num_queries, query, (images, worst))[0])
