"""The training step of a classifier: its state, its attack, its loss and its update."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxadv.core.devices import AXIS, jit_once, positions
from jaxadv.core.losses import cross_entropy
from jaxadv.core.rng import stream
from jaxadv.core.types import DeviceBatch, HostBatch, Images, Labels, Logits, UserError
from jaxadv.data.examples import StoredExamples
from jaxadv.data.pca import principal_components
from jaxadv.data.resident import ResidentSplit
from jaxadv.models.classifier import (
    has_own_layers,
    make_logits_fn,
    noise_keys,
    state_collections,
    without_noise,
)
from jaxadv.models.defences import InputNoise
from jaxadv.training.batch import TrainingBatch, make_batch
from jaxadv.training.curriculum import Budget
from jaxadv.training.gradient_alignment import gradient_misalignment
from jaxadv.training.setup import TrainingSetup
from jaxadv.training.weight_perturbation import perturb_weights

Adversarial = Float[Array, "attacked height width channels"]
Metrics = dict[str, Float[Array, ""]]


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: number of updates, an int32 scalar.
      variables: `params` and the other collections of the model: `batch_stats` of batch norm and
        spectral norm, the fixed `pca` and `frozen` of defences, and those of a user's module.
      ema: average of the variables; None without one.
      opt_state: state of the optax chain.
    """

    step: PyTree  # not Int[Array, ""]: JAX and Orbax rebuild trees with other leaves
    variables: PyTree
    ema: PyTree | None
    opt_state: optax.OptState

    @property
    def weights(self) -> PyTree:
        """The variables for predictions: the average, if there is one."""
        return self.variables if self.ema is None else self.ema


def init_state(setup: TrainingSetup, image_shape: tuple[int, ...]) -> TrainState:
    """Return the initial state for images of shape (height, width, channels)."""

    def init() -> TrainState:
        image = jnp.zeros((1, *image_shape))
        variables = setup.model.init(stream(setup.seed, "init"), image, train=False)
        return TrainState(
            step=jnp.int32(0),
            variables=variables,
            ema=variables if setup.average else None,
            opt_state=setup.optimizer.init(variables["params"]),
        )

    return jit_once(init)()


def fit_projection(state: TrainState, train: HostBatch | StoredExamples) -> TrainState:
    """Fit the fixed low-rank projection, if the model has one, to the principal components.

    Raises:
      UserError: the rank exceeds the number of images, or the train split is not in memory.
    """
    if "pca" not in state.variables:
        return state
    if not isinstance(train, HostBatch):
        raise UserError(
            "config.model.defence.low_rank needs the whole train split in memory, which is "
            "streamed: set config.data.streaming=False, or config.model.defence.low_rank.learned"
            "=True"
        )
    images = train.images
    ((name, projection),) = state.variables["pca"].items()
    rank = len(projection["components"])
    if rank > len(images):
        raise UserError(
            f"config.model.defence.low_rank.rank is {rank}: the train split has only "
            f"{len(images)} images"
        )
    print("Computing the principal components of the train split", flush=True)
    mean, components = principal_components(images, rank)
    fitted = {"pca": {name: {"mean": mean, "components": components}}}
    return with_variables(state, {**state.variables, **fitted})


def with_variables(state: TrainState, variables: PyTree) -> TrainState:
    """Return a state whose variables and their average are the given ones."""
    return replace(state, variables=variables, ema=None if state.ema is None else variables)


def make_train_step(setup: TrainingSetup) -> Callable:
    """Return the training step, to be mapped over devices by `pmap_batches`.

    The step is `(state, data, budget, real, synthetic) -> (state, metrics)`. `data` is the whole
    train split, and `real` selects the real images in the batch of this device. Without the train
    split on the devices, `data` is None and `real` contains these images. `synthetic` contains the
    others, as uint8.

    The step attacks `num_attacked` examples, with the same share of real and synthetic ones as far
    as the batch size allows. The loss is one of `jaxadv.training.losses`; its gradient is taken at
    the perturbed weights of AWP, if there are any. The attack uses running batch statistics, and
    dropout only as a defence, so that its forward passes do not change the statistics (Pang et al.
    2021, "Bag of tricks for adversarial training"). Gradients, batch statistics and metrics are
    averaged over the devices, so the state stays the same on all of them. The metrics are those of
    the weights that the gradient is taken at. With CutMix their labels are those of the larger part
    of each image.
    """

    def train_step(
        state: TrainState,
        data: ResidentSplit | None,
        budget: Budget,
        real: Int[Array, "real"] | DeviceBatch,
        synthetic: DeviceBatch,
    ) -> tuple[TrainState, Metrics]:
        batch = make_batch(setup, state.step, data, real, synthetic)
        adversarial = _attack(setup, state, budget, batch)

        def gradients_at(params: PyTree) -> tuple[PyTree, tuple[Metrics, PyTree]]:
            loss_fn = partial(_loss, setup, state, budget, batch, adversarial)
            gradients, aux = jax.grad(loss_fn, has_aux=True)(params)
            return lax.pmean(gradients, AXIS), aux

        params = state.variables["params"]
        if setup.awp_gamma:
            gradients, _ = gradients_at(params)
            params = perturb_weights(params, gradients, setup.awp_gamma)
        gradients, (metrics, model_state) = gradients_at(params)
        metrics = lax.pmean(metrics, AXIS)
        return _update(setup, state, gradients, _average_floats(model_state)), metrics

    def at_precision(*args: Any) -> tuple[TrainState, Metrics]:
        with jax.default_matmul_precision(setup.precision):
            return train_step(*args)

    return at_precision


def _attack(
    setup: TrainingSetup, state: TrainState, budget: Budget, batch: TrainingBatch
) -> Adversarial:
    """Return adversarial images of the first `num_attacked` examples."""
    n = setup.num_attacked
    if n == 0:
        return batch.images[:0]
    return setup.attack(
        stream(setup.seed, "attack", state.step),
        make_logits_fn(_attacked_model(setup.model), state.variables, batch.ids[:n]),
        batch.images[:n],
        batch.labels[:n],
        example_ids=batch.ids[:n],
        **budget._asdict(),
    )


def _attacked_model(model: nn.Module) -> nn.Module:
    """Return the model for the attack: without noise that is added at test time only."""
    match getattr(model, "defence", None):
        case InputNoise(train=False):
            return without_noise(model)
    return model


def _loss(
    setup: TrainingSetup,
    state: TrainState,
    budget: Budget,
    batch: TrainingBatch,
    adversarial: Adversarial,
    params: PyTree,
) -> tuple[Float[Array, ""], tuple[Metrics, PyTree]]:
    """Return the loss at some weights, its metrics and the new state of the model."""
    n = len(adversarial)
    first_clean = 0 if setup.loss.needs_clean else n
    images = jnp.concatenate([adversarial, batch.images[first_clean:]])
    logits, model_state = _train_logits(setup, state, params, images)
    adversarial_logits, clean_logits = logits[:n], logits[n:]
    loss = setup.loss.loss_fn(clean_logits, adversarial_logits, batch.labels, batch.targets)
    if setup.gradient_alignment and n:
        variables = {**state.variables, "params": params}
        loss += setup.gradient_alignment * gradient_misalignment(
            stream(setup.seed, "gradient_alignment", state.step),
            make_logits_fn(_attacked_model(setup.model), variables, batch.ids[:n]),
            batch.images[:n],
            batch.labels[:n],
            batch.ids[:n],
            jnp.asarray(budget.eps),
        )
    metrics = {
        "loss": loss,
        **_metrics("adversarial", adversarial_logits, batch.labels[:n]),
        **_metrics("clean", clean_logits, batch.labels[first_clean:]),
    }
    return loss, (metrics, model_state)


def _train_logits(
    setup: TrainingSetup, state: TrainState, params: PyTree, images: Images
) -> tuple[Logits, PyTree]:
    """Return the logits in training mode and the new state of the model, such as batch statistics.

    Our layers derive the key of an example from its position in the whole batch, so all devices use
    the same keys. A module of a user may not: its keys for examples differ between devices.
    """
    first_example = 0 if has_own_layers(setup.model) else positions(len(images))[0]
    return setup.model.apply(
        {**state.variables, "params": params},
        images,
        train=True,
        rngs=noise_keys(stream(setup.seed, "noise", state.step), first_example),
        mutable=state_collections(state.variables),
    )


def _average_floats(model_state: PyTree) -> PyTree:
    """Average over the devices; integers, such as counters, are the same on all of them."""

    def average(leaf: Array) -> Array:
        return lax.pmean(leaf, AXIS) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(average, model_state)


def _metrics(name: str, logits: Logits, labels: Labels) -> Metrics:
    if not len(labels):
        return {}
    return {
        f"loss_{name}": cross_entropy(logits, labels).mean(),
        f"accuracy_{name}": (logits.argmax(axis=-1) == labels).mean(dtype=jnp.float32),
    }


def _update(
    setup: TrainingSetup, state: TrainState, gradients: PyTree, model_state: PyTree
) -> TrainState:
    params = state.variables["params"]
    updates, opt_state = setup.optimizer.update(gradients, state.opt_state, params)
    variables = {**state.variables, **model_state, "params": optax.apply_updates(params, updates)}
    step = state.step + 1
    ema = state.ema
    if setup.average:
        ema = setup.average(ema, variables, step)
    return TrainState(step=step, variables=variables, ema=ema, opt_state=opt_state)
