"""What is fixed for a whole training run: the model, the optimizer, the adversary."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from jaxadv.attacks import n_fgsm, pgd
from jaxadv.classifier import make_classifier
from jaxadv.data.augment import AugmentFn, make_augment
from jaxadv.optimizer import make_optimizer
from jaxadv.types import Images


class Recipe(NamedTuple):
    """What is fixed for a whole run, and static in its step.

    Attributes:
      model: `(images, train) -> logits`.
      optimizer: optax chain.
      augment: `(keys, images) -> images`.
      num_attacked: adversarial examples in each device's share of a batch.
      num_synthetic: synthetic examples in each device's share of a batch.
      label_smoothing: of these.
      attack: `(key, logits_fn, images, labels, *, example_ids, eps, step_size, num_steps)`, which
        returns images.
      trades_beta: weight of the divergence in the loss of TRADES (Zhang et al. 2019); None: the
        cross entropy of the mixed batch.
      precision: of matrix products and convolutions, a name of `jax.default_matmul_precision`.
      ema_decay: of the variables' average; 0 keeps none.
      seed: of every key stream.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    augment: AugmentFn
    num_attacked: int
    num_synthetic: int
    label_smoothing: float
    attack: Callable[..., Images]
    trades_beta: float | None
    precision: str
    ema_decay: float
    seed: int


def make_recipe(config: ConfigDict, num_classes: int, schedule: optax.Schedule) -> Recipe:
    """Returns the recipe of configs/default.py.

    Args:
      config: of the run, checked.
      num_classes: of its data set.
      schedule: the learning rate of each step.
    """
    share = config.train.batch_size // jax.device_count()
    return Recipe(
        model=make_classifier(config.model, num_classes),
        optimizer=make_optimizer(config.optimizer, schedule),
        augment=make_augment(config.data.augmentation),
        num_attacked=round(config.attack.fraction * share),
        num_synthetic=round(config.data.synthetic.share * config.train.batch_size)
        // jax.device_count(),
        label_smoothing=config.data.synthetic.label_smoothing,
        attack=_make_attack(config.attack),
        trades_beta=config.train.trades_beta if config.train.loss == "trades" else None,
        precision=config.train.precision,
        ema_decay=config.train.ema_decay,
        seed=config.seed,
    )


def _make_attack(attack: ConfigDict) -> Callable[..., Images]:
    if attack.name == "pgd":
        return partial(pgd, norm=attack.norm, loss=attack.loss, random_start=attack.random_start)

    def one_step(*args: Any, num_steps: Int[Array, ""], **budget: Any) -> Images:
        del num_steps  # 1, see jaxadv.config
        return n_fgsm(*args, loss=attack.loss, **budget)

    return one_step
