"""The training step of a classifier: its static configuration, its state and its losses."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from jaxadv.attacks import n_fgsm, pgd
from jaxadv.core.devices import AXIS, jit_once, positions
from jaxadv.core.images import to_float
from jaxadv.core.losses import cross_entropy, kl_divergence, smoothed_cross_entropy
from jaxadv.core.rng import example_keys, stream
from jaxadv.core.types import (
    ByteImages,
    DeviceBatch,
    HostBatch,
    Images,
    Labels,
    Logits,
    PerExample,
    UserError,
)
from jaxadv.data.augment import AugmentFn, default_augmentation, make_augment
from jaxadv.data.examples import StoredExamples
from jaxadv.data.pca import principal_components
from jaxadv.data.resident import ResidentSplit
from jaxadv.models.classifier import (
    has_own_layers,
    make_classifier,
    make_logits_fn,
    noise_keys,
    state_collections,
    without_noise,
)
from jaxadv.models.defences import InputNoise
from jaxadv.training.curriculum import Budget
from jaxadv.training.optimizer import make_optimizer, moving_average

Adversarial = Float[Array, "attacked height width channels"]
Metrics = dict[str, Float[Array, ""]]


class TrainingSetup(NamedTuple):
    """Static training configuration: what is fixed for a whole run.

    Attributes:
      model: module that maps (images, train) to logits.
      optimizer: optax chain.
      augment: `(keys, images) -> images`.
      num_attacked: adversarial examples in the batch of one device.
      num_synthetic: synthetic examples in the batch of one device.
      label_smoothing: of the synthetic examples.
      attack: `(key, logits_fn, images, labels, *, example_ids, eps, step_size, num_steps)`; returns
        images.
      trades_beta: weight of the divergence in the TRADES loss (Zhang et al. 2019); None: the cross
        entropy of the mixed batch.
      precision: of matrix products and convolutions, a name of `jax.default_matmul_precision`.
      ema_decay: decay of the moving average of the variables; 0: no average.
      seed: of all random numbers.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    augment: AugmentFn
    num_attacked: int
    num_synthetic: int
    label_smoothing: float
    attack: Callable[..., Images]
    trades_beta: float | None
    precision: str
    ema_decay: float
    seed: int


def make_training_setup(
    config: ConfigDict, num_classes: int, schedule: optax.Schedule
) -> TrainingSetup:
    """Return the static configuration for a checked config of configs/default.py.

    Args:
      config: of the run.
      num_classes: of its data set.
      schedule: maps a step to its learning rate.
    """
    num_devices = jax.device_count()
    num_synthetic = round(config.data.synthetic.share * config.train.batch_size)
    return TrainingSetup(
        model=make_classifier(config.model, num_classes),
        optimizer=make_optimizer(config.optimizer, schedule),
        augment=make_augment(config.data.augmentation or default_augmentation(config.data.source)),
        num_attacked=round(config.attack.fraction * (config.train.batch_size // num_devices)),
        num_synthetic=num_synthetic // num_devices,
        label_smoothing=config.data.synthetic.label_smoothing,
        attack=_make_attack(config.attack),
        trades_beta=config.train.trades_beta if config.train.loss == "trades" else None,
        precision=config.train.precision,
        ema_decay=config.train.ema_decay,
        seed=config.seed,
    )


TRAINING_ATTACKS = ("pgd", "n_fgsm")  # values of config.attack.name


def _make_attack(attack: ConfigDict) -> Callable[..., Images]:
    if attack.name == "pgd":
        return partial(pgd, norm=attack.norm, loss=attack.loss, random_start=attack.random_start)

    def one_step(*args: Any, num_steps: Int[Array, ""], **budget: Any) -> Images:
        del num_steps  # 1, see jaxadv.config
        return n_fgsm(*args, loss=attack.loss, **budget)

    return one_step


@struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: number of updates, an int32 scalar.
      variables: `params` and the other collections of the model: `batch_stats` of batch norm and
        spectral norm, the fixed `pca` and `frozen` of defences, and those of a user's module.
      ema: moving average of the variables; None without an average.
      opt_state: state of the optax chain.
    """

    step: PyTree  # not Int[Array, ""]: JAX and Orbax rebuild trees with other leaves
    variables: PyTree
    ema: PyTree | None
    opt_state: optax.OptState

    @property
    def weights(self) -> PyTree:
        """The variables for predictions: the moving average, if there is one."""
        return self.variables if self.ema is None else self.ema


def init_state(setup: TrainingSetup, image_shape: tuple[int, ...]) -> TrainState:
    """Return the initial state for images of shape (height, width, channels)."""

    def init() -> TrainState:
        image = jnp.zeros((1, *image_shape))
        variables = setup.model.init(stream(setup.seed, "init"), image, train=False)
        return TrainState(
            step=jnp.int32(0),
            variables=variables,
            ema=variables if setup.ema_decay else None,
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
    """Return a state whose variables and their moving average are the given ones."""
    return replace(state, variables=variables, ema=None if state.ema is None else variables)


def make_train_step(setup: TrainingSetup) -> Callable:
    """Return the training step, to be mapped over devices by `pmap_batches`.

    The step is `(state, data, budget, real, synthetic) -> (state, metrics)`. `data` is the whole
    train split, and `real` selects the real images in the batch of this device. Without the train
    split on the devices, `data` is None and `real` contains these images. `synthetic` contains the
    others, as uint8.

    The step attacks `num_attacked` examples, with the same share of real and synthetic ones as far
    as the batch size allows. The loss is the mean over the mixed batch of adversarial and clean
    examples. The TRADES loss is the mean over the clean batch plus the divergence of the
    adversarial examples. The attack uses running batch statistics, and dropout only as a defence,
    so that its forward passes do not change the statistics (Pang et al. 2021, "Bag of tricks for
    adversarial training"). Gradients, batch statistics and metrics are averaged over the devices,
    so the state stays the same on all of them.
    """

    def train_step(
        state: TrainState,
        data: ResidentSplit | None,
        budget: Budget,
        real: Int[Array, "real"] | DeviceBatch,
        synthetic: DeviceBatch,
    ) -> tuple[TrainState, Metrics]:
        images, labels, smoothing = _mix_batch(setup, _select(data, real), synthetic)
        example_ids = positions(len(labels))
        keys = example_keys(stream(setup.seed, "augment", state.step), example_ids)
        clean = setup.augment(keys, to_float(images))
        adversarial = _attack(setup, state, budget, clean, labels, example_ids)
        examples = Examples(clean, adversarial, labels, smoothing)
        loss_fn = _cross_entropy_loss if setup.trades_beta is None else _trades_loss
        (_, (metrics, model_state)), gradients = jax.value_and_grad(
            lambda params: loss_fn(setup, state, params, examples), has_aux=True
        )(state.variables["params"])
        gradients, metrics = lax.pmean((gradients, metrics), AXIS)
        return _update(setup, state, gradients, _average_floats(model_state)), metrics

    def at_precision(*args: Any) -> tuple[TrainState, Metrics]:
        with jax.default_matmul_precision(setup.precision):
            return train_step(*args)

    return at_precision


class Examples(NamedTuple):
    """The examples of a step; the attacked ones come first.

    Attributes:
      clean: all images before the attack.
      adversarial: adversarial images of the first examples.
      labels: of all examples.
      smoothing: label smoothing of each example.
    """

    clean: Images
    adversarial: Adversarial
    labels: Labels
    smoothing: PerExample


def _select(data: ResidentSplit | None, real: Int[Array, "real"] | DeviceBatch) -> DeviceBatch:
    """Return the real examples of a batch, from the train split if it is on the devices."""
    if isinstance(real, DeviceBatch):
        return real
    assert data is not None
    return data.take(real)


def _mix_batch(
    setup: TrainingSetup, real: DeviceBatch, synthetic: DeviceBatch
) -> tuple[ByteImages | Images, Labels, PerExample]:
    """Return images, labels and label smoothing of a batch; the examples to attack come first."""
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

    smoothing = mix(jnp.zeros(num_real), jnp.full(setup.num_synthetic, setup.label_smoothing))
    return (
        mix(real.images, synthetic.images),
        mix(real.labels, synthetic.labels),
        smoothing,
    )


def _attack(
    setup: TrainingSetup,
    state: TrainState,
    budget: Budget,
    clean: Images,
    labels: Labels,
    example_ids: Int[Array, "share"],
) -> Adversarial:
    """Return adversarial images of the first `num_attacked` examples."""
    n = setup.num_attacked
    if n == 0:
        return clean[:0]
    return setup.attack(
        stream(setup.seed, "attack", state.step),
        make_logits_fn(_attacked_model(setup.model), state.variables, example_ids[:n]),
        clean[:n],
        labels[:n],
        example_ids=example_ids[:n],
        **budget._asdict(),
    )


def _attacked_model(model: nn.Module) -> nn.Module:
    """Return the model for the attack: without noise that is added at test time only."""
    match getattr(model, "defence", None):
        case InputNoise(train=False):
            return without_noise(model)
    return model


LossAndAux = tuple[Float[Array, ""], tuple[Metrics, PyTree]]


def _cross_entropy_loss(
    setup: TrainingSetup, state: TrainState, params: PyTree, examples: Examples
) -> LossAndAux:
    """Return the cross entropy of the mixed batch, its metrics and the new model state."""
    clean, adversarial, labels, smoothing = examples
    n = len(adversarial)
    images = jnp.concatenate([adversarial, clean[n:]])
    logits, model_state = _train_logits(setup, state, params, images)
    loss = smoothed_cross_entropy(logits, labels, smoothing).mean()
    metrics = _metrics("adversarial", logits[:n], labels[:n])
    metrics = {"loss": loss, **metrics, **_metrics("clean", logits[n:], labels[n:])}
    return loss, (metrics, model_state)


def _trades_loss(
    setup: TrainingSetup, state: TrainState, params: PyTree, examples: Examples
) -> LossAndAux:
    """Return the loss of TRADES (equation 5), its metrics and the new model state.

    The loss is the cross entropy of the clean batch plus beta times the divergence.
    """
    clean, adversarial, labels, smoothing = examples
    n = len(adversarial)
    images = jnp.concatenate([clean, adversarial])
    all_logits, model_state = _train_logits(setup, state, params, images)
    logits, adversarial_logits = all_logits[: len(labels)], all_logits[len(labels) :]
    natural = smoothed_cross_entropy(logits, labels, smoothing).mean()
    divergences = kl_divergence(logits[:n], adversarial_logits)
    loss = natural + (setup.trades_beta or 0.0) * divergences.sum() / len(labels)
    metrics = _metrics("adversarial", adversarial_logits, labels[:n])
    metrics = {"loss": loss, **metrics, **_metrics("clean", logits, labels)}
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
    if ema is not None:
        ema = moving_average(ema, variables, setup.ema_decay, step)
    return TrainState(step=step, variables=variables, ema=ema, opt_state=opt_state)
