"""The training step of a conditional GAN: its static configuration, its state and its losses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from jaxadv.core.devices import (
    AXIS,
    divisible_size,
    jit_once,
    padded_batches,
    platform,
    pmap_batches,
    positions,
    replicate,
)
from jaxadv.core.images import to_float
from jaxadv.core.rng import example_keys, stream
from jaxadv.core.types import Images, Labels, PRNGKey, UserError
from jaxadv.data import Dataset
from jaxadv.data.augment import AugmentFn, default_augmentation, make_augment
from jaxadv.data.examples import image_shape
from jaxadv.data.resident import ResidentSplit
from jaxadv.gan.networks import Discriminator, Generator, Latents
from jaxadv.runs import checkpoints
from jaxadv.runs.workdir import check_dataset
from jaxadv.training.optimizer import moving_average


class GanSetup(NamedTuple):
    """Static training configuration of a GAN: what is fixed for a whole run.

    Attributes:
      generator, discriminator: the modules.
      generator_optimizer, discriminator_optimizer: optax chains, each with its own learning rate
        (Heusel et al. 2017).
      latent_size: of the generator's input.
      num_discriminator_steps: for each step of the generator.
      ema_decay: decay of the moving average of the generator's params.
      augment: `(keys, images) -> images`, for the real images.
      dtype: in which the networks compute.
      seed: of all random numbers.
    """

    generator: Generator
    discriminator: Discriminator
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    latent_size: int
    num_discriminator_steps: int
    ema_decay: float
    augment: AugmentFn
    dtype: Any
    seed: int


def make_gan_setup(config: ConfigDict, num_classes: int, num_channels: int) -> GanSetup:
    """Return the static configuration for a config of configs/gan.py.

    With `config.train.mixed_precision` the networks compute in bfloat16, except on a CPU.

    Args:
      config: of the run.
      num_classes: of its data set.
      num_channels: of its images.
    """
    half = config.train.mixed_precision and platform() != "cpu"

    def adam(learning_rate: float) -> optax.GradientTransformation:
        return optax.adam(learning_rate, b1=config.optimizer.beta1, b2=config.optimizer.beta2)

    return GanSetup(
        generator=Generator(num_classes, num_channels, axis_name=AXIS, **config.generator),
        discriminator=Discriminator(num_classes, **config.discriminator),
        generator_optimizer=adam(config.optimizer.generator_learning_rate),
        discriminator_optimizer=adam(config.optimizer.discriminator_learning_rate),
        latent_size=config.latent_size,
        num_discriminator_steps=config.train.num_discriminator_steps,
        ema_decay=config.train.ema_decay,
        augment=make_augment(config.data.augmentation or default_augmentation(config.data.source)),
        dtype=jnp.bfloat16 if half else jnp.float32,
        seed=config.seed,
    )


@struct.dataclass
class GanState:
    """Everything that a training step changes.

    Attributes:
      step: number of updates of the generator, an int32 scalar.
      generator, discriminator: their variables: `params` and `batch_stats`.
      ema: moving average of the generator's params.
      generator_opt, discriminator_opt: states of the optimizers.
    """

    step: PyTree  # as in TrainState
    generator: PyTree
    discriminator: PyTree
    ema: PyTree
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState


def init_state(setup: GanSetup, image_shape: tuple[int, ...]) -> GanState:
    """Return the initial state for images of shape (height, width, channels)."""

    def init() -> GanState:
        generator_key, discriminator_key = jax.random.split(stream(setup.seed, "init"))
        label = jnp.zeros(1, jnp.int32)
        latent, image = jnp.zeros((1, setup.latent_size)), jnp.zeros((1, *image_shape))
        generator = setup.generator.init(generator_key, latent, label)
        discriminator = setup.discriminator.init(discriminator_key, image, label)
        return GanState(
            step=jnp.int32(0),
            generator=generator,
            discriminator=discriminator,
            ema=generator["params"],
            generator_opt=setup.generator_optimizer.init(generator["params"]),
            discriminator_opt=setup.discriminator_optimizer.init(discriminator["params"]),
        )

    return jit_once(init)()


def make_gan_step(setup: GanSetup) -> Callable:
    """Return the training step, to be mapped over devices by `pmap_batches`.

    The step is `(state, data, indices) -> (state, metrics)`. `data` is the whole train split.
    `indices` of shape (num_discriminator_steps * share,) select the real images of this device, for
    one discriminator step after another. One generator step follows.

    The loss is the hinge loss (Lim & Ye 2017). Latent, class and augmentation of an example follow
    from the step and its position in the batch. Norms and gradients are averaged over the devices.
    """

    def gan_step(
        state: GanState, data: ResidentSplit, indices: Int[Array, "all"]
    ) -> tuple[GanState, dict[str, Float[Array, ""]]]:
        share = len(indices) // setup.num_discriminator_steps
        example_ids = positions(share)
        metrics: dict[str, Float[Array, ""]] = {}
        # Unrolled: in a loop XLA's CPU backend computes the kernel gradients slowly.
        for i in range(setup.num_discriminator_steps):
            step = state.step * (setup.num_discriminator_steps + 1) + i
            images, labels = data.take(indices[i * share : (i + 1) * share])
            keys = example_keys(stream(setup.seed, "augment", step), example_ids)
            real = setup.augment(keys, to_float(images))
            state, metrics = _discriminator_step(
                setup, state, real, labels, *_sample_inputs(setup, step, example_ids)
            )
        step = state.step * (setup.num_discriminator_steps + 1) + setup.num_discriminator_steps
        state, loss = _generator_step(setup, state, *_sample_inputs(setup, step, example_ids))
        return state, lax.pmean({"generator_loss": loss, **metrics}, AXIS)

    return gan_step


def _sample_inputs(
    setup: GanSetup, step: Int[Array, ""], example_ids: Int[Array, "share"]
) -> tuple[Latents, Labels]:
    """Sample latents and classes for the generator."""
    keys = example_keys(stream(setup.seed, "latent", step), example_ids)
    keys = jax.vmap(jax.random.split)(keys)
    num_classes = setup.generator.num_classes
    labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys[:, 0])
    return sample_latents(keys[:, 1], setup.latent_size), labels


def sample_latents(
    keys: Key[Array, "batch"], size: int, truncation: float | None = None
) -> Latents:
    """Sample a standard normal latent for each key.

    With a truncation, values beyond it are sampled again (Brock et al. 2019).
    """

    def sample(key: PRNGKey) -> Float[Array, "latent"]:
        if truncation is None:
            return jax.random.normal(key, (size,))
        return jax.random.truncated_normal(key, -truncation, truncation, (size,))

    return jax.vmap(sample)(keys)


def _discriminator_step(
    setup: GanSetup,
    state: GanState,
    real: Images,
    labels: Labels,
    latents: Latents,
    fake_labels: Labels,
) -> tuple[GanState, dict[str, Float[Array, ""]]]:
    latents = latents.astype(setup.dtype)
    fake, _ = setup.generator.apply(
        state.generator, latents, fake_labels, train=True, mutable=["batch_stats"]
    )
    images = jnp.concatenate([real, fake]).astype(setup.dtype)
    classes = jnp.concatenate([labels, fake_labels])

    def loss_fn(params: PyTree) -> tuple[Float[Array, ""], tuple]:
        variables = {**state.discriminator, "params": params}
        logits, batch_stats = setup.discriminator.apply(
            variables, images, classes, train=True, mutable=["batch_stats"]
        )
        real_logits, fake_logits = jnp.split(logits, 2)
        hinge = nn.relu(1 - real_logits).mean() + nn.relu(1 + fake_logits).mean()
        return hinge, (batch_stats, real_logits.mean(), fake_logits.mean())

    params = state.discriminator["params"]
    (loss, (batch_stats, real_logit, fake_logit)), gradients = jax.value_and_grad(
        loss_fn, has_aux=True
    )(params)
    gradients = lax.pmean(gradients, AXIS)
    updates, opt = setup.discriminator_optimizer.update(gradients, state.discriminator_opt, params)
    discriminator = {**batch_stats, "params": optax.apply_updates(params, updates)}
    metrics = {"discriminator_loss": loss, "logit_real": real_logit, "logit_fake": fake_logit}
    return replace(state, discriminator=discriminator, discriminator_opt=opt), metrics


def _generator_step(
    setup: GanSetup, state: GanState, latents: Latents, labels: Labels
) -> tuple[GanState, Float[Array, ""]]:
    def loss_fn(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        variables = {**state.generator, "params": params}
        images, batch_stats = setup.generator.apply(
            variables, latents.astype(setup.dtype), labels, train=True, mutable=["batch_stats"]
        )
        images = images.astype(setup.dtype)
        logits: Any = setup.discriminator.apply(state.discriminator, images, labels)
        return -logits.mean(), batch_stats

    params = state.generator["params"]
    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    gradients = lax.pmean(gradients, AXIS)
    updates, opt = setup.generator_optimizer.update(gradients, state.generator_opt, params)
    params, step = optax.apply_updates(params, updates), state.step + 1
    ema = moving_average(state.ema, params, step, setup.ema_decay)
    generator = {**batch_stats, "params": params}
    return replace(state, step=step, generator=generator, ema=ema, generator_opt=opt), loss


def make_averaging(
    setup: GanSetup, *, num_samples: int = 2048, batch_size: int = 256
) -> Callable[[GanState], PyTree]:
    """Return `state -> variables`: the averaged params and batch statistics that fit them.

    The running statistics belong to other weights. So the moments of the input of each norm are
    recomputed, as means over batches of samples ("standing statistics", Brock et al. 2019).
    """
    generator = setup.generator.clone(momentum=0.0)

    def moments(params: PyTree, stats: PyTree, numbers: Int[Array, "share"]) -> PyTree:
        latents, labels = _sample_inputs(setup, jnp.int32(-1), numbers)
        variables = {"params": params, "batch_stats": stats}
        _, new_stats = generator.apply(
            variables, latents.astype(setup.dtype), labels, train=True, mutable=["batch_stats"]
        )
        return _map_norms(_to_moments, new_stats["batch_stats"])

    step = pmap_batches(moments, num_replicated=2, num_batches=1)
    numbers = np.arange(num_samples)
    batches = [padded for _, padded in padded_batches(numbers, divisible_size(batch_size))]

    def average(state: GanState) -> PyTree:
        stats = state.generator["batch_stats"]
        batch_moments = [step(state.ema, stats, batch) for batch in batches]
        mean = jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *batch_moments)
        return {"params": state.ema, "batch_stats": _map_norms(_to_statistics, mean)}

    return average


def _map_norms(fn: Callable[[dict], dict], stats: PyTree) -> PyTree:
    return jax.tree.map(fn, stats, is_leaf=lambda node: "mean" in node)


def _to_moments(norm: dict) -> dict:
    return {"mean": norm["mean"], "var": norm["var"] + norm["mean"] ** 2}


def _to_statistics(norm: dict) -> dict:
    # The difference of two nearly equal floats may be negative.
    return {"mean": norm["mean"], "var": jnp.maximum(norm["var"] - norm["mean"] ** 2, 0)}


def checkpoint_items(generator: PyTree, state: GanState) -> dict[str, PyTree]:
    """Return the items of a checkpoint: the averaged generator for sampling, and the state."""
    return {"weights": generator, "training": state}


def restore(
    config: ConfigDict, dataset: Dataset, workdir: Path, which: str
) -> tuple[GanSetup, tuple[PyTree, PyTree], int]:
    """Return the setup, the variables of generator and discriminator, and the round.

    Args:
      config: of the run.
      dataset: of the run.
      workdir: of the run.
      which: "best" by the Fréchet distance to the train split, or "last".

    Raises:
      UserError: no checkpoint can be restored, or the run was trained on another data set.
    """
    shape = image_shape(dataset.train)
    setup = make_gan_setup(config, len(dataset.class_names), shape[-1])
    state = init_state(setup, shape)
    items = checkpoint_items(state.generator, state)
    restored = checkpoints.restore(workdir, which, items, check_dataset(workdir, dataset))
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet: train first, without config.mode=sample")
    discriminator = restored.items["training"].discriminator
    return setup, replicate((restored.items["weights"], discriminator)), restored.epoch
