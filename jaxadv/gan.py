"""Train state of a conditional GAN, and the pure functions that change or use it."""

from collections.abc import Callable
from dataclasses import replace
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

from jaxadv.classifier import to_float
from jaxadv.data.augment import AugmentFn, make_augment
from jaxadv.models.cgan import Discriminator, Generator, Latents
from jaxadv.optimizer import moving_average
from jaxadv.parallel import (
    AXIS,
    divisible,
    jit_once,
    padded_batches,
    pmap_batches,
    positions,
)
from jaxadv.prng import example_keys, stream
from jaxadv.types import Batch, Images, Labels, PRNGKey


@struct.dataclass
class GanState:
    """All that a step changes.

    Attributes:
      step: updates of the generator, an int32 scalar.
      generator, discriminator: their variables: `params` and `batch_stats`.
      ema: moving average of the generator's params.
      generator_opt, discriminator_opt: states of the optimisers.
    """

    step: PyTree  # as in TrainState
    generator: PyTree
    discriminator: PyTree
    ema: PyTree
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState


class GanRecipe(NamedTuple):
    """What is fixed for a whole run, and static in its step.

    Attributes:
      generator, discriminator: the modules.
      generator_optimizer, discriminator_optimizer: optax chains, each with a rate of its own
        (Heusel et al. 2017).
      latent_size: of the generator's input.
      num_discriminator_steps: for each step of the generator.
      ema_decay: of the average of the generator's params.
      augment: of the real images.
      dtype: what the networks compute in.
      seed: of every key stream.
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


def make_recipe(config: ConfigDict, num_classes: int) -> GanRecipe:
    """Returns the recipe of configs/gan.py, in half precision where a device has it, if asked."""
    half = config.train.mixed_precision and jax.default_backend() != "cpu"

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(rate, b1=config.optimizer.beta1, b2=config.optimizer.beta2)

    return GanRecipe(
        generator=Generator(num_classes, axis_name=AXIS, **config.generator),
        discriminator=Discriminator(num_classes, **config.discriminator),
        generator_optimizer=adam(config.optimizer.generator_learning_rate),
        discriminator_optimizer=adam(config.optimizer.discriminator_learning_rate),
        latent_size=config.latent_size,
        num_discriminator_steps=config.train.num_discriminator_steps,
        ema_decay=config.train.ema_decay,
        augment=make_augment(config.data.augmentation),
        dtype=jnp.bfloat16 if half else jnp.float32,
        seed=config.seed,
    )


def init_state(recipe: GanRecipe, image_shape: tuple[int, ...]) -> GanState:
    """Returns the state before the first step, for images (height, width, channels)."""

    def init() -> GanState:
        generator_key, discriminator_key = jax.random.split(stream(recipe.seed, "init"))
        label = jnp.zeros(1, jnp.int32)
        latent, image = jnp.zeros((1, recipe.latent_size)), jnp.zeros((1, *image_shape))
        generator = recipe.generator.init(generator_key, latent, label)
        discriminator = recipe.discriminator.init(discriminator_key, image, label)
        return GanState(
            step=jnp.int32(0),
            generator=generator,
            discriminator=discriminator,
            ema=generator["params"],
            generator_opt=recipe.generator_optimizer.init(generator["params"]),
            discriminator_opt=recipe.discriminator_optimizer.init(discriminator["params"]),
        )

    return jit_once(init)()


def make_gan_step(recipe: GanRecipe) -> Callable:
    """Returns `(state, data, indices) -> (state, metrics)`, to be mapped over devices.

    `data` holds the whole train split as bytes; `indices` (num_discriminator_steps * share,) pick
    this device's part of the real images of the steps of the discriminator, one after another, and
    one step of the generator follows. The loss is the hinge loss (Lim & Ye 2017). What an example
    gets, latent, class and augmentation, follows from the step and its place in the batch, and
    norms and gradients are averaged over the devices.
    """

    def gan_step(
        state: GanState, data: Batch, indices: Int[Array, "all"]
    ) -> tuple[GanState, dict[str, Float[Array, ""]]]:
        share = len(indices) // recipe.num_discriminator_steps
        place = positions(share)
        metrics: dict[str, Float[Array, ""]] = {}
        # Written out: in a loop XLA's CPU backend makes the gradients of kernels slow.
        for turn in range(recipe.num_discriminator_steps):
            step = state.step * (recipe.num_discriminator_steps + 1) + turn
            picked = indices[turn * share : (turn + 1) * share]
            keys = example_keys(stream(recipe.seed, "augment", step), place)
            real = recipe.augment(keys, to_float(data.images[picked]))
            state, metrics = _discriminator_step(
                recipe, state, real, data.labels[picked], *_drawn(recipe, step, place)
            )
        step = state.step * (recipe.num_discriminator_steps + 1) + recipe.num_discriminator_steps
        state, loss = _generator_step(recipe, state, *_drawn(recipe, step, place))
        return state, lax.pmean({"generator_loss": loss, **metrics}, AXIS)

    return gan_step


def _drawn(
    recipe: GanRecipe, step: Int[Array, ""], place: Int[Array, "share"]
) -> tuple[Latents, Labels]:
    keys = jax.vmap(jax.random.split)(example_keys(stream(recipe.seed, "latent", step), place))
    num_classes = recipe.generator.num_classes
    labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys[:, 0])
    return draw_latents(keys[:, 1], recipe.latent_size), labels


def draw_latents(keys: Key[Array, "batch"], size: int, truncation: float | None = None) -> Latents:
    """Returns a standard normal latent for each key.

    With a truncation what lies beyond it is drawn again (Brock et al. 2019).
    """

    def draw(key: PRNGKey) -> Float[Array, "latent"]:
        if truncation is None:
            return jax.random.normal(key, (size,))
        return jax.random.truncated_normal(key, -truncation, truncation, (size,))

    return jax.vmap(draw)(keys)


def _discriminator_step(
    recipe: GanRecipe,
    state: GanState,
    real: Images,
    labels: Labels,
    latents: Latents,
    fake_labels: Labels,
) -> tuple[GanState, dict[str, Float[Array, ""]]]:
    latents = latents.astype(recipe.dtype)
    fake, _ = recipe.generator.apply(
        state.generator, latents, fake_labels, train=True, mutable=["batch_stats"]
    )
    images = jnp.concatenate([real, fake]).astype(recipe.dtype)
    classes = jnp.concatenate([labels, fake_labels])

    def loss(params: PyTree) -> tuple[Float[Array, ""], tuple]:
        variables = {**state.discriminator, "params": params}
        logits, changed = recipe.discriminator.apply(
            variables, images, classes, train=True, mutable=["batch_stats"]
        )
        of_real, of_fake = jnp.split(logits, 2)
        hinge = nn.relu(1 - of_real).mean() + nn.relu(1 + of_fake).mean()
        return hinge, (changed, of_real.mean(), of_fake.mean())

    params = state.discriminator["params"]
    (hinge, (changed, of_real, of_fake)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    gradients = lax.pmean(gradients, AXIS)
    updates, opt = recipe.discriminator_optimizer.update(gradients, state.discriminator_opt, params)
    discriminator = {**changed, "params": optax.apply_updates(params, updates)}
    metrics = {"discriminator_loss": hinge, "logit_real": of_real, "logit_fake": of_fake}
    return replace(state, discriminator=discriminator, discriminator_opt=opt), metrics


def _generator_step(
    recipe: GanRecipe, state: GanState, latents: Latents, labels: Labels
) -> tuple[GanState, Float[Array, ""]]:
    def loss(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
        variables = {**state.generator, "params": params}
        images, changed = recipe.generator.apply(
            variables, latents.astype(recipe.dtype), labels, train=True, mutable=["batch_stats"]
        )
        images = images.astype(recipe.dtype)
        logits: Any = recipe.discriminator.apply(state.discriminator, images, labels)
        return -logits.mean(), changed

    params = state.generator["params"]
    (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    gradients = lax.pmean(gradients, AXIS)
    updates, opt = recipe.generator_optimizer.update(gradients, state.generator_opt, params)
    params, step = optax.apply_updates(params, updates), state.step + 1
    ema = moving_average(state.ema, params, recipe.ema_decay, step)
    generator = {**changed, "params": params}
    return replace(state, step=step, generator=generator, ema=ema, generator_opt=opt), value


def make_averaging(
    recipe: GanRecipe, *, num_samples: int = 2048, batch_size: int = 256
) -> Callable[[GanState], PyTree]:
    """Returns `state -> variables` that sample: averaged params with statistics of their own.

    The running statistics are those of other weights, so the moments of each norm's input are
    recomputed, as means over batches of samples ("standing statistics", Brock et al. 2019).
    """
    generator = recipe.generator.clone(momentum=0.0)

    def moments(params: PyTree, stats: PyTree, numbers: Int[Array, "share"]) -> PyTree:
        latents, labels = _drawn(recipe, jnp.int32(-1), numbers)
        variables = {"params": params, "batch_stats": stats}
        _, changed = generator.apply(
            variables, latents.astype(recipe.dtype), labels, train=True, mutable=["batch_stats"]
        )
        return _map_norms(_to_moments, changed["batch_stats"])

    step = pmap_batches(moments, num_replicated=2, num_batches=1)
    numbers = np.arange(num_samples)
    batches = [padded for _, padded in padded_batches(numbers, divisible(batch_size))]

    def average(state: GanState) -> PyTree:
        stats = state.generator["batch_stats"]
        found = [step(state.ema, stats, batch) for batch in batches]
        mean = jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *found)
        return {"params": state.ema, "batch_stats": _map_norms(_to_statistics, mean)}

    return average


def _map_norms(fn: Callable[[dict], dict], stats: PyTree) -> PyTree:
    return jax.tree.map(fn, stats, is_leaf=lambda node: "mean" in node)


def _to_moments(norm: dict) -> dict:
    return {"mean": norm["mean"], "var": norm["var"] + norm["mean"] ** 2}


def _to_statistics(norm: dict) -> dict:
    # The difference of two nearly equal floats may fall below 0.
    return {"mean": norm["mean"], "var": jnp.maximum(norm["var"] - norm["mean"] ** 2, 0)}
