"""What a gradient, a step of a GAN or a sample of it takes on this device."""

import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxadv.classifier import make_classifier
from jaxadv.crafting import craft
from jaxadv.gan import init_state, make_averaging, make_gan_step, make_recipe
from jaxadv.parallel import pmap_batches, replicate
from jaxadv.sampling import make_sampler
from jaxadv.types import Batch

_BATCH = 64  # images that a gradient is timed on
_SHAPE = (32, 32, 3)
_NUM_CLASSES = 10


def seconds_per_gradient(model: ConfigDict) -> float:
    """Returns the time of one image's gradient, in an attack on a batch over all devices.

    Args:
      model: `config.model`.
    """
    return _seconds_per_gradient(model.to_json(sort_keys=True))


@cache
def _seconds_per_gradient(model: str) -> float:
    classifier = make_classifier(ConfigDict(json.loads(model)), num_classes=_NUM_CLASSES)
    weights = jax.jit(classifier.init)(jax.random.key(0), jnp.zeros((1, *_SHAPE)))

    def attack(num_steps: int) -> Callable[[], Any]:
        attack = {"attack": "pgd", "noise": "on", "eps": 0.03, "step_size": 0.01}
        return lambda: craft(
            classifier, weights, _images(_BATCH), {**attack, "num_steps": num_steps},
            np.arange(_BATCH), _BATCH, seed=0,
        )  # fmt: skip

    num_steps = max(1, min(50, round(1 / _seconds(attack(1)))))
    return _seconds(attack(num_steps)) / (num_steps * _BATCH)


def seconds_per_gan_step(config: ConfigDict) -> float:
    """Returns the time of a step of the generator, and of the discriminator's before it.

    Args:
      config: of configs/gan.py.
    """
    recipe = make_recipe(config, _NUM_CLASSES)
    step = pmap_batches(make_gan_step(recipe), num_replicated=2, num_batches=1)
    indices = np.arange(config.train.num_discriminator_steps * config.train.batch_size)
    state, data = replicate((init_state(recipe, _SHAPE), _images(len(indices))))
    return _seconds(lambda: step(state, data, indices))


def seconds_per_sample(config: ConfigDict) -> float:
    """Returns the time of drawing a sample, in a batch over all devices.

    Args:
      config: of configs/gan.py.
    """
    recipe, size = make_recipe(config, _NUM_CLASSES), config.sampling.batch_size
    state = replicate(init_state(recipe, _SHAPE))
    networks = make_averaging(recipe, num_samples=size, batch_size=size)(state), state.discriminator
    sampler = make_sampler(recipe, config.sampling)
    labels = np.zeros(size, np.int32)
    return _seconds(lambda: sampler(networks, np.arange(size), labels)) / size


def _images(num: int) -> Batch:
    images: Any = np.zeros((num, *_SHAPE), np.uint8)
    return Batch(images, jnp.zeros(num, jnp.int32))


def _seconds(work: Callable[[], Any]) -> float:
    """Returns the time of work that was compiled before."""
    jax.block_until_ready(work())
    began = time.monotonic()
    jax.block_until_ready(work())
    return time.monotonic() - began
