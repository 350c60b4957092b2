"""Train state of a classifier, and the step that changes it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxadv.classifier import (
    make_logits_fn,
    noise_keys,
    to_float,
    without_noise,
)
from jaxadv.curriculum import Budget
from jaxadv.data.spectrum import Pixels, principal_components
from jaxadv.losses import cross_entropy, divergence, smoothed_cross_entropy
from jaxadv.models.defences import InputNoise
from jaxadv.optimizer import moving_average
from jaxadv.parallel import AXIS, jit_once, positions
from jaxadv.prng import example_keys, stream
from jaxadv.recipe import Recipe
from jaxadv.types import Batch, ByteImages, Images, Labels, Logits, PerExample, UserError

Attacked = Float[Array, "attacked height width channels"]


@struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: updates done, an int32 scalar.
      variables: `params` and what else the model keeps: `batch_stats` of batch norm and spectral
        norm, the fixed `pca` and `frozen` of defences.
      ema: moving average of the variables; None where it is not kept.
      opt_state: state of the optax chain.
    """

    step: PyTree  # not Int[Array, ""]: JAX and Orbax rebuild trees with other things as leaves
    variables: PyTree
    ema: PyTree | None
    opt_state: optax.OptState

    @property
    def weights(self) -> PyTree:
        """The variables that predict: the average where one is kept."""
        return self.variables if self.ema is None else self.ema


class Shown(NamedTuple):
    """The examples of a step, those that are attacked first.

    Attributes:
      clean: all images as they are.
      adversarial: what the attack made of the first of them.
      labels: of all.
      smoothing: of these.
    """

    clean: Images
    adversarial: Attacked
    labels: Labels
    smoothing: PerExample


def init_state(recipe: Recipe, image_shape: tuple[int, ...]) -> TrainState:
    """Returns the state before the first step, for images (height, width, channels)."""

    def init() -> TrainState:
        image = jnp.zeros((1, *image_shape))
        variables = recipe.model.init(stream(recipe.seed, "init"), image)
        return TrainState(
            step=jnp.int32(0),
            variables=variables,
            ema=variables if recipe.ema_decay else None,
            opt_state=recipe.optimizer.init(variables["params"]),
        )

    return jit_once(init)()


def fit_projection(state: TrainState, images: Pixels) -> TrainState:
    """Returns the state with the principal components of the images, where its model uses them."""
    if "pca" not in state.variables:
        return state
    ((name, projection),) = state.variables["pca"].items()
    rank = len(projection["components"])
    if rank > len(images):
        raise UserError(
            f"config.model.defence.low_rank.rank is {rank}: the train split has only "
            f"{len(images)} images"
        )
    print("Finding the principal components of the train split", flush=True)
    mean, components = principal_components(images, rank)
    fitted = {"pca": {name: {"mean": mean, "components": components}}}
    ema = state.ema and {**state.ema, **fitted}
    return replace(state, variables={**state.variables, **fitted}, ema=ema)


def make_train_step(recipe: Recipe) -> Callable:
    """Returns `(state, data, budget, indices, synthetic) -> (state, metrics)`, to be mapped.

    `data` holds the whole train split as bytes, `indices` pick this device's real part of the batch
    and `synthetic` is the rest, as bytes. Gradients, batch statistics and metrics are averaged over
    the devices, so the state stays the same on all of them. `num_attacked` examples are attacked,
    of both kinds the same share as nearly as the batch of a device allows. The loss is the mean
    over the mixed batch of attacked and clean ones; that of TRADES is the mean over the clean
    batch, plus the divergence of the attacked. They are crafted with running batch statistics and
    without dropout that is no defence, which keeps the attack's own batches out of the statistics
    (Pang et al. 2021, "Bag of tricks for adversarial training").
    """

    def train_step(
        state: TrainState,
        data: Batch,
        budget: Budget,
        indices: Int[Array, "real"],
        synthetic: Batch,
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        images, labels, smoothing = _mixed(recipe, data, indices, synthetic)
        place = positions(len(labels))
        keys = example_keys(stream(recipe.seed, "augment", state.step), place)
        clean = recipe.augment(keys, to_float(images))
        adversarial = _attack_first(recipe, state, budget, clean, labels, place)
        shown = Shown(clean, adversarial, labels, smoothing)
        loss = _cross_entropy_loss if recipe.trades_beta is None else _trades_loss
        (_, (metrics, batch_stats)), gradients = jax.value_and_grad(
            lambda params: loss(recipe, state, params, shown), has_aux=True
        )(state.variables["params"])
        gradients, batch_stats, metrics = lax.pmean((gradients, batch_stats, metrics), AXIS)
        return _update(recipe, state, gradients, batch_stats), metrics

    def at_precision(*args: Any) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        with jax.default_matmul_precision(recipe.precision):
            return train_step(*args)

    return at_precision


def _mixed(
    recipe: Recipe, data: Batch, indices: Int[Array, "real"], synthetic: Batch
) -> tuple[ByteImages | Images, Labels, PerExample]:
    """Returns the examples of a batch, those to be attacked first, and their label smoothing."""
    share = len(indices) + recipe.num_synthetic
    made = round(recipe.num_attacked * recipe.num_synthetic / share)
    taken = recipe.num_attacked - made

    def mix(real: Array, fake: Array) -> Array:
        return jnp.concatenate([real[:taken], fake[:made], real[taken:], fake[made:]])

    smoothing = mix(jnp.zeros(len(indices)), jnp.full(recipe.num_synthetic, recipe.label_smoothing))
    return (
        mix(data.images[indices], synthetic.images),
        mix(data.labels[indices], synthetic.labels),
        smoothing,
    )


def _attack_first(
    recipe: Recipe,
    state: TrainState,
    budget: Budget,
    clean: Images,
    labels: Labels,
    place: Int[Array, "share"],
) -> Attacked:
    """Returns adversarial images of the first `num_attacked` examples."""
    n = recipe.num_attacked
    if n == 0:
        return clean[:0]
    return recipe.attack(
        stream(recipe.seed, "attack", state.step),
        make_logits_fn(_as_trained(recipe.model), state.variables, place[:n]),
        clean[:n],
        labels[:n],
        example_ids=place[:n],
        **budget._asdict(),
    )


def _as_trained(model: nn.Module) -> nn.Module:
    """Returns the model as the adversary of training sees it: without noise of test time only."""
    match getattr(model, "defence", None):
        case InputNoise(train=False):
            return without_noise(model)
    return model


def _train_logits(
    recipe: Recipe, state: TrainState, params: PyTree, images: Images
) -> tuple[Logits, PyTree]:
    """Returns the logits in training, and the new batch statistics.

    All devices have the same keys: the layers tell the examples apart by their place in the batch.
    """
    return recipe.model.apply(
        {**state.variables, "params": params},
        images,
        train=True,
        rngs=noise_keys(stream(recipe.seed, "noise", state.step), 0),
        mutable=["batch_stats"],
    )


def _cross_entropy_loss(
    recipe: Recipe, state: TrainState, params: PyTree, shown: Shown
) -> tuple[Float[Array, ""], tuple[dict, PyTree]]:
    clean, adversarial, labels, smoothing = shown
    n = len(adversarial)
    images = jnp.concatenate([adversarial, clean[n:]])
    logits, changed = _train_logits(recipe, state, params, images)
    loss = smoothed_cross_entropy(logits, labels, smoothing).mean()
    metrics = _metrics("adversarial", logits[:n], labels[:n])
    return loss, ({"loss": loss, **metrics, **_metrics("clean", logits[n:], labels[n:])}, changed)


def _trades_loss(
    recipe: Recipe, state: TrainState, params: PyTree, shown: Shown
) -> tuple[Float[Array, ""], tuple[dict, PyTree]]:
    """Cross entropy of the clean batch plus beta times the divergence (the paper's equation 5)."""
    clean, adversarial, labels, smoothing = shown
    n = len(adversarial)
    both, changed = _train_logits(recipe, state, params, jnp.concatenate([clean, adversarial]))
    logits, attacked = both[: len(labels)], both[len(labels) :]
    natural = smoothed_cross_entropy(logits, labels, smoothing).mean()
    divergences = divergence(logits[:n], attacked)
    loss = natural + (recipe.trades_beta or 0.0) * divergences.sum() / len(labels)
    metrics = _metrics("adversarial", attacked, labels[:n])
    return loss, ({"loss": loss, **metrics, **_metrics("clean", logits, labels)}, changed)


def _metrics(name: str, logits: Logits, labels: Labels) -> dict[str, Float[Array, ""]]:
    if not len(labels):
        return {}
    return {
        f"loss_{name}": cross_entropy(logits, labels).mean(),
        f"accuracy_{name}": (logits.argmax(axis=-1) == labels).mean(dtype=jnp.float32),
    }


def _update(
    recipe: Recipe, state: TrainState, gradients: PyTree, batch_stats: PyTree
) -> TrainState:
    params = state.variables["params"]
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, params)
    variables = {**state.variables, **batch_stats, "params": optax.apply_updates(params, updates)}
    step = state.step + 1
    ema = state.ema
    if ema is not None:
        ema = moving_average(ema, variables, recipe.ema_decay, step)
    return TrainState(step=step, variables=variables, ema=ema, opt_state=opt_state)
