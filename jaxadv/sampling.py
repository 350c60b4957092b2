"""Labelled images of a trained generator: by the prior of its latents, or driven by its critic."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

from jaxadv.gan import GanRecipe, draw_latents
from jaxadv.judge import Judge, look
from jaxadv.langevin import langevin
from jaxadv.models.cgan import Latents
from jaxadv.parallel import pmap_batches
from jaxadv.prng import example_keys, stream
from jaxadv.types import Batch, ByteImages, Labels, PerExample, UserError

SAMPLERS = ("prior", "ddls")
LABELS = ("intended", "judged")
# Share of the samples below which filtering goes nowhere, and how many are seen before it is said.
_LEAST_ACCEPTED, _LEAST_SEEN = 0.001, 10_000


def make_sampler(recipe: GanRecipe, sampling: ConfigDict) -> Callable:
    """Returns `(networks, numbers, labels) -> images`, mapped over devices, in bytes.

    `networks` are the variables of the generator and of the discriminator. What a sample is
    follows from the seed, its number and its label, not from its batch.

    Args:
      recipe: of the run.
      sampling: `config.sampling`.
    """
    truncation = sampling.truncation

    def sample(
        networks: tuple[PyTree, PyTree], numbers: Int[Array, "share"], labels: Labels
    ) -> ByteImages:
        generator, discriminator = networks
        keys = example_keys(stream(recipe.seed, "sample"), numbers)
        start_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        latents = draw_latents(start_keys, recipe.latent_size, truncation)

        def energy(latents: Latents) -> PerExample:
            images: Any = recipe.generator.apply(generator, latents, labels)
            realness: Any = recipe.discriminator.apply(discriminator, images, labels)
            return (latents**2).sum(axis=-1) / 2 - realness

        if sampling.sampler == "ddls":
            latents = langevin(noise_keys, energy, latents, **sampling.ddls)
        images: Any = recipe.generator.apply(generator, latents, labels)
        return jnp.round(images * 255).astype(jnp.uint8)

    return pmap_batches(sample, num_replicated=1, num_batches=2, sharded_output=True)


def samples(
    sampler: Callable,
    networks: Any,
    num_images: int,
    num_classes: int,
    batch_size: int,
) -> Iterator[Batch]:
    """Yields as many images as asked for, in batches, whose labels go around the classes."""
    for start in range(0, num_images, batch_size):
        numbers = np.arange(start, start + batch_size)
        labels: Any = (numbers % num_classes).astype(np.int32)
        kept = slice(min(batch_size, num_images - start))
        yield Batch(sampler(networks, numbers, labels)[kept], labels[kept])


def judged_samples(
    sampler: Callable, networks: Any, judge: Judge, num_classes: int, sampling: ConfigDict
) -> Iterator[Batch]:
    """Yields `num_images` samples that pass the judge, in batches.

    A sample passes if the judge gives its class at least `min_probability`; with `labels`
    "judged" its class is the one that the judge finds likeliest.

    Raises:
      UserError: hardly any sample passes.
    """
    seen, left = 0, sampling.num_images
    endless = samples(sampler, networks, 1 << 62, num_classes, sampling.batch_size)
    while left:
        batch = next(endless)
        images: Any = batch.images
        labels: Any = batch.labels
        judged = look(judge, images)
        if sampling.labels == "judged":
            labels = judged.predictions().astype(np.int32)
        # Where the judge's output is not finite it is not certain of anything.
        certain = judged.probabilities[np.arange(len(labels)), labels] >= sampling.min_probability
        rows = np.flatnonzero(certain)[:left]
        seen, left = seen + len(labels), left - len(rows)
        if seen >= _LEAST_SEEN and sampling.num_images - left < _LEAST_ACCEPTED * seen:
            raise UserError(
                f"of {seen} samples the judge gives {sampling.num_images - left} a probability of "
                f"{sampling.min_probability}: lower config.sampling.min_probability"
            )
        yield Batch(images[rows], labels[rows])
