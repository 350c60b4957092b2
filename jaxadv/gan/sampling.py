"""Sampling from a trained GAN: the samplers, and the job that writes a data set of samples."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from jaxadv.core.devices import pmap_batches
from jaxadv.core.files import read_json
from jaxadv.core.progress import progress_bar
from jaxadv.core.rng import example_keys, stream
from jaxadv.core.sample_quality import SampleEvaluation
from jaxadv.core.types import ByteImages, HostBatch, Labels, PerExample, UserError
from jaxadv.data.sources import source_family
from jaxadv.data.synthetic import MANIFEST, ShardWriter, pack
from jaxadv.gan.evaluator import (
    SampleEvaluator,
    classify,
    evaluate_on_test,
    evaluator_workdir,
    make_sample_evaluator,
    num_test_images,
    summary,
)
from jaxadv.gan.networks import Latents
from jaxadv.gan.step import GanSetup, restore, sample_latents
from jaxadv.runs.distributed import from_first, is_first
from jaxadv.runs.workdir import load_dataset, provenance, source_version, trained_config

_PLACE_KEYS = ("path", "format")  # of `config.sampling`: they do not change the samples


def run(config: ConfigDict, workdir: Path) -> list[str]:
    """Write labelled samples of a GAN to a folder and evaluate them, unless they are there.

    Args:
      config: of configs/gan.py. `sampling` describes the samples. `data.data_dir` and
        `evaluator.checkpoint` say where files are on this machine. All other keys are those of the
        run.
      workdir: of the run.

    Returns:
      No warnings.

    Raises:
      UserError: the config is not valid, there is no checkpoint, or the folder has other files.
    """
    source_version()
    started = time.monotonic()
    sampling = config.sampling
    trained = trained_config(workdir, "gan", config.data.data_dir)
    if source_family(config.data.source) == source_family(trained.data.source):
        trained.data.source = config.data.source  # perhaps at another path
    stored_checkpoint = trained.evaluator.checkpoint or str(evaluator_workdir(workdir))
    trained.evaluator.checkpoint = config.evaluator.checkpoint or stored_checkpoint
    dataset = load_dataset(trained.data)
    setup, networks, number = restore(trained, dataset, workdir, sampling.which)
    folder = Path(sampling.path or workdir / "synthetic")
    packed = folder.with_name(f"{folder.name}.npz") if sampling.format == "npz" else None
    filtered = sampling.min_probability > 0 or sampling.labels == "judged"
    described = json.loads(sampling.to_json())
    if stored := from_first(lambda: _stored_evaluation(folder, described, number)):
        print(f"{folder} has these samples already", flush=True)
        evaluation = SampleEvaluation.from_json(stored)
    else:
        writer = ShardWriter(folder, sampling.shard_size) if is_first() else None
        evaluator = make_sample_evaluator(trained, dataset, workdir)
        sampler = make_sampler(setup, sampling)
        num_classes = len(dataset.class_names)
        if filtered:
            batches = filtered_batches(sampler, networks, evaluator, num_classes, sampling)
        else:
            batches = sample_batches(
                sampler, networks, sampling.num_images, num_classes, sampling.batch_size
            )
        first = concatenate(_write(batches, writer, sampling.num_images, num_test_images(dataset)))
        evaluation = evaluate_on_test(evaluator, first, dataset)

        def close_here() -> None:
            assert writer is not None
            writer.close(
                dataset=dataset.name,
                class_names=list(dataset.class_names),
                round=number,
                sampling=described,
                judged=evaluation.to_json(),
                provenance=provenance(time.monotonic() - started),
            )

        from_first(close_here)
    if packed:
        from_first(lambda: pack(folder, packed))
    print(summary(evaluation.samples))
    if filtered:
        message = "The evaluator selected or labelled these samples: its accuracy on them is biased"
        print(f"warning: {message}", file=sys.stderr)
    for path in filter(None, (packed, folder)):
        print(f"Samples: {path}")
    return []


def _stored_evaluation(
    folder: Path, described: Mapping[str, Any], number: int
) -> dict[str, Any] | None:
    """Return the evaluation in a folder that has all samples of a round; None in other folders.

    Args:
      folder: where the samples are written.
      described: `config.sampling` in JSON.
      number: of the round.
    """
    manifest = read_json(folder / MANIFEST)
    stored = manifest.get("sampling", {})
    is_same = all(
        stored.get(key) == value for key, value in described.items() if key not in _PLACE_KEYS
    )
    return manifest["judged"] if is_same and manifest.get("round") == number else None


def _write(
    batches: Iterable[HostBatch], writer: ShardWriter | None, num_images: int, num_kept: int
) -> Iterator[HostBatch]:
    """Write all batches and yield the first `num_kept` images.

    The writer is None except in the first process.
    """
    left = num_kept
    disable = None if is_first() else True
    with progress_bar(total=num_images, title="Sample", unit="img", disable=disable) as bar:
        for images, labels in batches:
            if writer is not None:
                writer.write(images, labels)
            bar.update(len(labels))
            if left:
                yield HostBatch(images[:left], labels[:left])
                left -= min(left, len(labels))


SAMPLERS = ("prior", "ddls")
LABELS = ("intended", "judged")
# Filtering stops with an error below this share of accepted samples, after so many samples.
_MIN_ACCEPTED, _MIN_SEEN = 0.001, 10_000

Points = Float[Array, "batch dimensions"]
EnergyFn = Callable[[Points], Float[Array, "batch"]]


def make_sampler(setup: GanSetup, sampling: ConfigDict) -> Callable:
    """Return `(networks, numbers, labels) -> images`, mapped over devices; images are uint8.

    `networks` are the variables of the generator and the discriminator. A sample follows from the
    seed, its number and its label, and does not depend on the batch.

    Args:
      setup: of the run.
      sampling: `config.sampling`.
    """
    truncation = sampling.truncation

    def sample(
        networks: tuple[PyTree, PyTree], numbers: Int[Array, "share"], labels: Labels
    ) -> ByteImages:
        generator, discriminator = networks
        keys = example_keys(stream(setup.seed, "sample"), numbers)
        start_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        latents = sample_latents(start_keys, setup.latent_size, truncation)

        def energy(latents: Latents) -> PerExample:
            images: Any = setup.generator.apply(generator, latents, labels)
            logits: Any = setup.discriminator.apply(discriminator, images, labels)
            return (latents**2).sum(axis=-1) / 2 - logits

        if sampling.sampler == "ddls":
            latents = langevin(noise_keys, energy, latents, **sampling.ddls)
        images: Any = setup.generator.apply(generator, latents, labels)
        return jnp.round(images * 255).astype(jnp.uint8)

    return pmap_batches(sample, num_replicated=1, num_batches=2, sharded_output=True)


def langevin(
    keys: Key[Array, "batch"],
    energy_fn: EnergyFn,
    points: Points,
    *,
    step_size: ArrayLike,
    num_steps: ArrayLike,
) -> Points:
    """Run unadjusted Langevin dynamics: steps x - s / 2 grad E(x) + sqrt(s) n.

    For small steps the density of the points tends to exp(-E), up to normalisation.
    Discriminator-driven latent sampling (DDLS; Che et al. 2020, algorithm 1) runs it on latents
    with E = |z|^2 / 2 - D(G(z)).

    Args:
      keys: one for each point, so that its noise does not depend on the other points.
      energy_fn: maps points to energies; each energy depends on its own point only.
      points: initial points.
      step_size: s; traced.
      num_steps: number of steps; traced.
    """

    def step(i: Int[Array, ""], points: Points) -> Points:
        gradient = jax.grad(lambda points: energy_fn(points).sum())(points)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, i), points.shape[1:])
        )
        return points - step_size / 2 * gradient + jnp.sqrt(step_size) * noise(keys)

    return lax.fori_loop(0, num_steps, step, points)


def prior_sampling(sampling: ConfigDict) -> ConfigDict:
    """Return the sampling for the evaluation of a GAN: from the prior, without truncation."""
    changed = ConfigDict(sampling.to_dict())
    changed.update({"sampler": "prior", "truncation": None})
    return changed


def sample_batches(
    sampler: Callable,
    networks: Any,
    num_images: int,
    num_classes: int,
    batch_size: int,
) -> Iterator[HostBatch]:
    """Yield `num_images` samples in batches; the labels cycle through the classes."""
    for start in range(0, num_images, batch_size):
        numbers = np.arange(start, start + batch_size)
        labels = (numbers % num_classes).astype(np.int32)
        kept = slice(min(batch_size, num_images - start))
        yield HostBatch(sampler(networks, numbers, labels)[kept], labels[kept])


def filtered_batches(
    sampler: Callable,
    networks: Any,
    evaluator: SampleEvaluator,
    num_classes: int,
    sampling: ConfigDict,
) -> Iterator[HostBatch]:
    """Yield `num_images` samples that the evaluator accepts, in batches.

    It accepts a sample if the probability of its class is at least `min_probability`. With `labels`
    "judged" that is the predicted class, which becomes the label.

    Raises:
      UserError: the share of accepted samples is below 0.001.
    """
    seen, left = 0, sampling.num_images
    endless = sample_batches(sampler, networks, 1 << 62, num_classes, sampling.batch_size)
    while left:
        images, labels = next(endless)
        classified = classify(evaluator, images)
        if sampling.labels == "judged":
            labels = classified.predictions().astype(np.int32)
        # NaN compares as False, so samples with non-finite probabilities are dropped.
        probabilities = classified.probabilities[np.arange(len(labels)), labels]
        rows = np.flatnonzero(probabilities >= sampling.min_probability)[:left]
        seen, left = seen + len(labels), left - len(rows)
        num_accepted = sampling.num_images - left
        if seen >= _MIN_SEEN and num_accepted < _MIN_ACCEPTED * seen:
            raise UserError(
                f"only {num_accepted} of {seen} samples have a probability of "
                f"{sampling.min_probability} or more: lower config.sampling.min_probability"
            )
        yield HostBatch(images[rows], labels[rows])


def concatenate(batches: Iterable[HostBatch]) -> HostBatch:
    """Return all images and labels in one batch."""
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return HostBatch(images, labels)
