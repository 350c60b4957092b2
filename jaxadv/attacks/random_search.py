"""Random search: the attack without gradients that any other one must beat."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxadv.attacks.expectation import Noise, expected_score
from jaxadv.attacks.inputs import check_at_least, check_inputs
from jaxadv.attacks.threat import THREATS, perturb, random_perturbation
from jaxadv.losses import margin
from jaxadv.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey


def random_search(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    norm: str = "linf",
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
) -> Images:
    """Returns for each image the best of `num_queries` uniform draws from its ball.

    The best has the largest margin, or the smallest for its target. Nothing of it follows a
    gradient, so a model that it breaks and a gradient attack does not is masking its gradients.

    The arguments are those of `jaxadv.attacks.pgd`; `num_queries` is traced, and 0 returns the
    clean images. Every draw from the ball is scored under the same `num_noise_samples` draws of
    the model's noise, so that a lucky draw of the noise does not decide.

    Raises:
      ValueError: a shape, a range or a name that is not as for `pgd`.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    check_inputs(logits_fn, key, images, labels, targets, norm=norm, loss="margin")
    check_at_least(0, eps=eps, num_queries=num_queries)
    check_at_least(1, num_noise_samples=num_noise_samples)
    return _random_search(
        key,
        logits_fn,
        images,
        labels,
        targets,
        jnp.arange(len(images)) if example_ids is None else jnp.asarray(example_ids),
        jnp.asarray(eps, images.dtype),
        jnp.asarray(num_queries, jnp.int32),
        jnp.asarray(num_noise_samples, jnp.int32),
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
    num_noise_samples: Int[Array, ""],
    *,
    norm: str,
) -> Images:
    threat = THREATS[norm]
    noise = Noise(num_noise_samples, chunk_size=1, average="loss")
    draw_key, noise_key = jax.random.split(key)

    def score(logits: Logits) -> PerExample:
        return margin(logits, labels) if targets is None else -margin(logits, targets)

    def query(i: Int[Array, ""], best: tuple[Images, PerExample]) -> tuple[Images, PerExample]:
        found, scores = best
        key = jax.random.fold_in(draw_key, i)
        delta = random_perturbation(threat, key, example_ids, images, eps)
        candidates = perturb(threat, images, delta, eps)
        new_scores = expected_score(noise_key, logits_fn, score, candidates, noise)
        better = new_scores > scores
        found = jnp.where(better[:, None, None, None], candidates, found)
        return found, jnp.where(better, new_scores, scores)

    worst = jnp.full(len(images), -jnp.inf)
    return lax.stop_gradient(lax.fori_loop(0, num_queries, query, (images, worst))[0])
