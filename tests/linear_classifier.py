"""A linear classifier of two classes, whose accuracy under attack has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxadv.adapters.trained import noise_models
from jaxadv.core.types import HostBatch
from jaxadv.evaluation.attack_suites import expand_suite
from jaxadv.evaluation.suite import run_attack_suite
from jaxadv.models.classifier import is_declared_stochastic
from jaxadv.models.defences import InputNoise


class Linear(nn.Module):
    """Two classes with the logits 0 and w.x + b."""

    @nn.compact
    def __call__(self, images, train=False):
        w = self.param("w", nn.initializers.normal(1.0), (12,))
        b = self.param("b", nn.initializers.zeros_init(), ())
        score = images.reshape(len(images), -1) @ w + b
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)


class NoisyLinear(Linear):
    """The same with Gaussian noise on the images: the score is Gaussian with known moments."""

    defence: InputNoise | None = InputNoise(sigma=0.05)

    @nn.compact
    def __call__(self, images, train=False):
        w = self.param("w", nn.initializers.normal(1.0), (12,))
        b = self.param("b", nn.initializers.zeros_init(), ())
        if self.defence is not None:
            noise = jax.random.normal(self.make_rng("noise"), images.shape)
            images = images + self.defence.sigma * noise
        score = images.reshape(len(images), -1) @ w + b
        return jnp.stack([jnp.zeros_like(score), 30 * score], axis=-1)


def make_problem():
    """Return weights, a split, and the margin of each example."""
    generator = np.random.default_rng(0)
    # Far enough from 0 and 255 that clipping never matters at these radii.
    images = generator.integers(64, 192, (50, 2, 2, 3), dtype=np.uint8)
    w = generator.normal(size=12).astype(np.float32)
    scores = (images / 255).reshape(50, -1) @ w
    b = -np.float32(np.median(scores))
    labels = (scores + b > 0).astype(np.int32)
    labels[:5] = 1 - labels[:5]
    margins = np.where(labels == 1, scores + b, -(scores + b))
    return {"params": {"w": w, "b": b}}, HostBatch(images, labels), margins


def run_suite(module, weights, split, batch_size=16, seed=0, cache=None, **attacks):
    """Return the results of an attack suite, its entries by key, and the example results."""
    results, examples = run_attack_suite(
        noise_models(module, weights, seed),
        split,
        expand_suite(attacks),
        stochastic=is_declared_stochastic(module),
        num_passes=20,
        batch_size=batch_size,
        seed=seed,
        progress=False,
        cache=cache,
    )
    return results, {entry.key: entry for entry in results.attacks}, examples
