"""The models that this project trains, as attacks and evaluations take them."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int, PyTree

from jaxadv.attacks.batching import Model
from jaxadv.core.types import Images, Logits, LogitsFn
from jaxadv.models.classifier import make_logits_fn, make_noisy_logits_fn, noise_modes


def noise_models(module: nn.Module, weights: PyTree, seed: int) -> dict[str, Model]:
    """Return a classifier with its noise on, off, fixed and as in training, as far as it has them.

    Args:
      module: of `make_classifier`.
      weights: its variables, replicated or on the host.
      seed: of the noise sample of "fixed".
    """
    return {
        noise: Model(_logits_fn_maker(module, noise), (weights, seed))
        for noise in noise_modes(module)
    }


def module_logits_fn(module: nn.Module, variables: PyTree) -> LogitsFn:
    """Return a classifier as a function `(key, images) -> logits` of images without numbers.

    Args:
      module: of `make_classifier` or `make_model`.
      variables: its variables.
    """

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        return make_logits_fn(module, variables, jnp.arange(len(images)))(key, images)

    return logits_fn


@cache
def _logits_fn_maker(
    module: nn.Module, noise: str
) -> Callable[[PyTree, Int[Array, "share"]], LogitsFn]:
    return lambda context, ids: make_noisy_logits_fn(module, context[0], ids, noise, context[1])
