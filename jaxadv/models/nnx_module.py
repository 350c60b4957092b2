"""NNX modules as Linen modules, which is what training, checkpoints and evaluations take.

NNX is imported with the first such module, since its import delays every start.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxadv.core.types import Images, Logits


class NnxModule(nn.Module):
    """An NNX module as a Linen module.

    Variables of the types `nnx.Param` and `nnx.BatchStat` are in the collections `params` and
    `batch_stats`, those of other types in collections of their own. The state of random number
    generators is not kept: the module is constructed in each call, with the keys of that call.

    Attributes:
      nnx_class: class of the module, constructed as `nnx_class(**arguments, rngs=rngs)`.
      arguments: names and values of the other arguments.
      stochastic: whether two forward passes in evaluation mode differ.
    """

    nnx_class: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]
    stochastic: bool = False

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """Return the logits; `train` (static) selects `nnx.Module.train` or `eval`."""
        from flax.nnx.bridge import ToLinen

        inner = ToLinen(self._construct, metadata_fn=None)
        nn.share_scope(self, inner)
        return inner(images, nnx_method=_call_train if train else _call_eval)

    @nn.nowrap
    def _construct(self, rngs: Any) -> Any:
        from flax import nnx

        # Streams without a key use that of `default`. `init` passes one key, that of `params`.
        source = next(name for name in ("noise", "params", "default") if name in rngs)
        keys = {name: stream.key.get_value() for name, stream in rngs.items()}
        streams = nnx.Rngs(**{**keys, "default": keys[source]})
        return self.nnx_class(**dict(self.arguments), rngs=streams)


def _call_train(module: Any, images: Images) -> Logits:
    module.train()
    return module(images)


def _call_eval(module: Any, images: Images) -> Logits:
    module.eval()
    return module(images)
