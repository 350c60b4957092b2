"""The static configuration of a training: what is fixed for a whole run."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from jaxadv.attacks import n_fgsm, pgd
from jaxadv.core.types import Images
from jaxadv.data.augment import AugmentFn, default_augmentation, make_augment
from jaxadv.models.classifier import make_classifier
from jaxadv.training.losses import TrainingLoss, make_loss
from jaxadv.training.optimizer import AverageFn, make_average, make_optimizer, make_schedule


class TrainingSetup(NamedTuple):
    """Static training configuration: what is fixed for a whole run.

    Attributes:
      model: module that maps (images, train) to logits.
      optimizer: optax chain.
      num_classes: of the data set.
      augment: `(keys, images) -> images`.
      attack: `(key, logits_fn, images, labels, *, example_ids, eps, step_size, num_steps)`; returns
        images.
      num_attacked: adversarial examples in the batch of one device.
      loss: of the clean and the adversarial examples.
      schedule: maps a step to its learning rate.
      precision: of matrix products and convolutions, a name of `jax.default_matmul_precision`.
      seed: of all random numbers.
      num_synthetic: synthetic examples in the batch of one device.
      label_smoothing: of the real examples.
      synthetic_smoothing: label smoothing of the synthetic examples.
      cutmix: probability of CutMix.
      awp_gamma: relative size of the adversarial weight perturbation; 0: none.
      gradient_alignment: weight of the regulariser; 0: none.
      average: average of the variables, see `make_average`; None: no average.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    num_classes: int
    augment: AugmentFn
    attack: Callable[..., Images]
    num_attacked: int
    loss: TrainingLoss
    schedule: optax.Schedule
    precision: str
    seed: int
    num_synthetic: int = 0
    label_smoothing: float = 0.0
    synthetic_smoothing: float = 0.0
    cutmix: float = 0.0
    awp_gamma: float = 0.0
    gradient_alignment: float = 0.0
    average: AverageFn | None = None


def make_training_setup(
    config: ConfigDict, num_classes: int, steps_per_epoch: int
) -> TrainingSetup:
    """Return the static configuration for a checked config of configs/default.py.

    Args:
      config: of the run.
      num_classes: of its data set.
      steps_per_epoch: of its training.
    """
    train = config.train
    schedule = make_schedule(config.optimizer, train.num_epochs, steps_per_epoch)
    num_devices = jax.device_count()
    num_synthetic = round(config.data.synthetic.share * train.batch_size)
    return TrainingSetup(
        model=make_classifier(config.model, num_classes),
        optimizer=make_optimizer(config.optimizer, schedule),
        num_classes=num_classes,
        augment=make_augment(config.data.augmentation or default_augmentation(config.data.source)),
        attack=_make_attack(config.attack),
        num_attacked=round(config.attack.fraction * (train.batch_size // num_devices)),
        loss=make_loss(train),
        schedule=schedule,
        precision=train.precision,
        seed=config.seed,
        num_synthetic=num_synthetic // num_devices,
        label_smoothing=train.label_smoothing,
        synthetic_smoothing=config.data.synthetic.label_smoothing,
        cutmix=train.cutmix,
        awp_gamma=train.awp_gamma,
        gradient_alignment=train.gradient_alignment,
        average=make_average(train, steps_per_epoch),
    )


TRAINING_ATTACKS = ("pgd", "n_fgsm")  # values of config.attack.name


def _make_attack(attack: ConfigDict) -> Callable[..., Images]:
    if attack.name == "pgd":
        return partial(pgd, norm=attack.norm, loss=attack.loss, random_start=attack.random_start)

    def one_step(*args: Any, num_steps: Int[Array, ""], **budget: Any) -> Images:
        del num_steps  # 1, see jaxadv.config
        return n_fgsm(*args, loss=attack.loss, **budget)

    return one_step
