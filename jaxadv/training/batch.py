"""The batch of a training step: real and synthetic examples, augmented, with their targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxadv.core.devices import positions
from jaxadv.core.images import to_float
from jaxadv.core.rng import example_keys, stream
from jaxadv.core.types import DeviceBatch, Images, Labels
from jaxadv.data.cutmix import cutmix
from jaxadv.data.resident import ResidentSplit
from jaxadv.training.losses import Targets
from jaxadv.training.setup import TrainingSetup


class TrainingBatch(NamedTuple):
    """The clean examples of a step on one device; those to attack come first.

    Attributes:
      images: after augmentation, in [0, 1].
      labels: classes.
      targets: distributions of the labels, shape (share, classes).
      ids: positions in the batch of all devices.
    """

    images: Images
    labels: Labels
    targets: Targets
    ids: Int[Array, "share"]


def make_batch(
    setup: TrainingSetup,
    step: Int[Array, ""],
    data: ResidentSplit | None,
    real: Int[Array, "real"] | DeviceBatch,
    synthetic: DeviceBatch,
) -> TrainingBatch:
    """Return the batch of this device; see `jaxadv.training.step.make_train_step`."""
    images, labels, targets = _mix_synthetic(setup, _select(data, real), synthetic)
    ids = positions(len(labels))
    keys = example_keys(stream(setup.seed, "augment", step), ids)
    images = setup.augment(keys, to_float(images))
    if setup.cutmix:
        keys = example_keys(stream(setup.seed, "cutmix", step), ids)
        images, labels, targets = cutmix(keys, images, labels, targets, setup.cutmix)
    return TrainingBatch(images, labels, targets, ids)


def _select(data: ResidentSplit | None, real: Int[Array, "real"] | DeviceBatch) -> DeviceBatch:
    """Return the real examples of a batch, from the train split if it is on the devices."""
    if isinstance(real, DeviceBatch):
        return real
    assert data is not None
    return data.take(real)


def _mix_synthetic(
    setup: TrainingSetup, real: DeviceBatch, synthetic: DeviceBatch
) -> tuple[Array, Labels, Targets]:
    """Return images, labels and targets. Real and synthetic ones have the same attacked share."""
    num_real = len(real.labels)
    num_examples = num_real + setup.num_synthetic
    num_attacked_synthetic = round(setup.num_attacked * setup.num_synthetic / num_examples)
    num_attacked_real = setup.num_attacked - num_attacked_synthetic

    def mix(real: Array, fake: Array) -> Array:
        return jnp.concatenate(
            [
                real[:num_attacked_real],
                fake[:num_attacked_synthetic],
                real[num_attacked_real:],
                fake[num_attacked_synthetic:],
            ]
        )

    smoothing = mix(
        jnp.full(num_real, setup.label_smoothing),
        jnp.full(setup.num_synthetic, setup.synthetic_smoothing),
    )
    labels = mix(real.labels, synthetic.labels)
    one_hot = jax.nn.one_hot(labels, setup.num_classes)
    targets = optax.smooth_labels(one_hot, smoothing[:, None])
    return mix(real.images, synthetic.images), labels, targets
