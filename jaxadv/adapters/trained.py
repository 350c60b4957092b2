"""The models that this project trains, as attacks and evaluations take them."""

from collections.abc import Callable
from functools import cache

from flax import linen as nn
from jaxtyping import Array, Int, PyTree

from jaxadv.attacks.batching import Model
from jaxadv.core.types import LogitsFn
from jaxadv.models.classifier import make_noisy_logits_fn, noise_modes


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


@cache
def _logits_fn_maker(
    module: nn.Module, noise: str
) -> Callable[[PyTree, Int[Array, "share"]], LogitsFn]:
    return lambda context, ids: make_noisy_logits_fn(module, context[0], ids, noise, context[1])
