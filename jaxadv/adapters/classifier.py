"""The type of a model that attacks and evaluations take."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jaxadv.attacks.batching import Model
from jaxadv.attacks.black_box import BlackBox
from jaxadv.core.types import LogitsFn, UserError


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model as a function `(key, images) -> logits`, with facts about it.

    Images are floats in [0, 1] of shape (batch, height, width, channels). `jaxadv.wrap` makes a
    classifier from a model of another library.

    Attributes:
      logits_fn: the function, or a `BlackBox`.
      name: of the model, in reports.
      num_parameters: number of trainable values; None: unknown.
      stochastic: whether two forward passes over the same image differ.
      class_names: of the classes in the order of the logits; None: unknown.
      noises: the model by the mode of its noise; None: it has one mode, `logits_fn`.
    """

    logits_fn: LogitsFn | BlackBox
    name: str = "model"
    num_parameters: int | None = None
    stochastic: bool = False
    class_names: tuple[str, ...] | None = None
    noises: Mapping[str, Model] | None = None

    def __call__(self, key: jax.Array | None, images: jax.Array) -> jax.Array:
        """Return the logits. A deterministic model needs no key: pass None.

        Raises:
          UserError: the model is a `BlackBox`, or stochastic and called without a key.
        """
        if isinstance(self.logits_fn, BlackBox):
            raise UserError(
                f"{self.name} is a BlackBox, which only nes, square and random_search can attack: "
                "pass them classifier.logits_fn"
            )
        if key is None:
            if self.stochastic:
                raise UserError(f"{self.name} is stochastic: call it with a key of jax.random")
            key = jax.random.key(0)  # some libraries require a key even in evaluation mode
        return self.logits_fn(key, images)
