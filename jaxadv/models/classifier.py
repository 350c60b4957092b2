"""The classifier described by a config, and the functions `(key, images) -> logits` for attacks."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from jaxadv.core.devices import AXIS
from jaxadv.core.rng import stream
from jaxadv.core.types import Images, Logits, LogitsFn, PRNGKey, UserError
from jaxadv.models import make_model
from jaxadv.models.defences import DEFENCES, Defence, is_stochastic, smoothing_sigma

NOISES = ("on", "off", "fixed", "training")


def make_classifier(model: ConfigDict, num_classes: int) -> nn.Module:
    """Return the module of `config.model`, with batch norm synchronised over the devices.

    Raises:
      UserError: the name of the model or of its defence is unknown, or an option is out of range.
    """
    options = dict(model)
    # Configs from before there were defences lack the key.
    defence = make_defence(options.pop("defence", ConfigDict({"name": "none"})))
    return make_model(num_classes=num_classes, axis_name=AXIS, defence=defence, **options)


def make_defence(defence: ConfigDict) -> Defence | None:
    """Return the defence that `config.model.defence` names, with its options; None for "none"."""
    if defence.name == "none":
        return None
    if defence.name not in DEFENCES:
        names = ", ".join(("none", *DEFENCES))
        raise UserError(f"config.model.defence.name is {defence.name!r}: use one of {names}")
    return DEFENCES[defence.name](**defence.get(defence.name, {}))


def is_declared_stochastic(model: nn.Module) -> bool:
    """Return whether the defence of the model makes two forward passes differ."""
    return is_stochastic(getattr(model, "defence", None))


def check_certifiable(model: nn.Module) -> float:
    """Return the standard deviation of the Gaussian noise on the images of a model.

    Raises:
      UserError: the model has no such noise, so randomised smoothing cannot certify it.
    """
    sigma = smoothing_sigma(getattr(model, "defence", None))
    if not sigma:
        raise UserError(
            "config.evaluation.certification.num_examples is above 0, but the model has no "
            "Gaussian noise on its images: only input_noise and rse can be certified"
        )
    return sigma


def without_noise(model: nn.Module) -> nn.Module:
    """Return the model without its random defence, if it has one."""
    return model.clone(defence=None) if is_declared_stochastic(model) else model


def make_logits_fn(model: nn.Module, weights: PyTree, example_ids: Int[Array, "batch"]) -> LogitsFn:
    """Return the classifier in evaluation mode: running batch statistics, with its defence.

    Noise on an example follows from the key and the number of the example, so it does not depend on
    the batch. Noise on the weights follows from the key alone.
    """

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        def one(example_id: Int[Array, ""], image: Float[Array, "..."]) -> Float[Array, "classes"]:
            return model.apply(weights, image[None], rngs=noise_keys(key, example_id))[0]

        return jax.vmap(one)(example_ids, images)

    return logits_fn


def make_noisy_logits_fn(
    model: nn.Module,
    weights: PyTree,
    example_ids: Int[Array, "batch"],
    noise: str,
    seed: int | Int[Array, ""],
) -> LogitsFn:
    """Return the classifier with its noise on, off or fixed, or as it is in training.

    "fixed" is the same noise sample in every forward pass; "training" includes dropout and the
    statistics of the batch.
    """
    if noise == "training":
        return make_training_logits_fn(model, weights, example_ids)
    if noise == "off":
        model = without_noise(model)
    logits_fn = make_logits_fn(model, weights, example_ids)
    if noise == "fixed":
        return lambda _, images: logits_fn(stream(seed, "noise"), images)
    return logits_fn


def make_training_logits_fn(
    model: nn.Module, weights: PyTree, example_ids: Int[Array, "batch"]
) -> LogitsFn:
    """Return the classifier in training mode: with dropout and the statistics of the batch.

    The study evaluated its models in this mode. The logits of an image depend on the other images
    of its batch. The noise follows from the number of the first example, so that it differs between
    devices.
    """
    local_model = model.clone(axis_name=None)  # each device uses the statistics of its share

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        rngs = noise_keys(key, example_ids[0])
        return local_model.apply(weights, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    return logits_fn


def noise_keys(key: PRNGKey, position: int | Int[Array, ""]) -> dict[str, PRNGKey]:
    """Return a key for each collection; only `weight_noise` has the same key at every position."""
    weight_key, example_key = jax.random.split(key)
    noise_key, dropout_key = jax.random.split(jax.random.fold_in(example_key, position))
    return {"weight_noise": weight_key, "noise": noise_key, "dropout": dropout_key}
