"""The classifier described by a config, and the functions `(key, images) -> logits` for attacks."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from jaxadv.core.devices import AXIS
from jaxadv.core.rng import stream
from jaxadv.core.types import Images, Logits, LogitsFn, PRNGKey, UserError
from jaxadv.models import make_model
from jaxadv.models.custom import is_import_path, make_custom
from jaxadv.models.defences import DEFENCES, Defence, is_stochastic, smoothing_sigma
from jaxadv.models.factory import published_options
from jaxadv.models.nnx_module import NnxModule

NOISES = ("on", "off", "fixed", "training")
FIXED_COLLECTIONS = ("pca", "frozen")  # variables of our defences that no training step changes


def make_classifier(model: ConfigDict, num_classes: int) -> nn.Module:
    """Return the module of `config.model`, with batch norm synchronised over the devices.

    Raises:
      UserError: the name of the model or of its defence is unknown, an option is out of range, or a
        module of the user cannot be imported or constructed.
    """
    arguments = dict(model)
    # Configs of earlier versions lack these keys.
    defence = make_defence(arguments.pop("defence", ConfigDict({"name": "none"})))
    options = _as_hashable(dict(arguments.pop("options", {})))
    if is_import_path(model.name):
        _refuse_own_options(model)
        return make_custom(model.name, num_classes, options, AXIS)
    known = published_options(model.name)
    for key in options.keys() - set(known):
        remedy = f"use {', '.join(known)}" if known else "leave it out"
        raise UserError(f"config.model.options.{key} is not an option of {model.name}: {remedy}")
    return make_model(
        num_classes=num_classes, axis_name=AXIS, defence=defence, **arguments, **options
    )


def check_model_config(model: ConfigDict) -> nn.Module:
    """Return the module of `config.model` for any number of classes, to check the config.

    Raises:
      UserError: see `make_classifier`.
    """
    return make_classifier(model, num_classes=10)


def _as_hashable(value: Any) -> Any:
    """Return an option of a model, with lists, which JSON has for tuples, and dicts frozen."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_hashable, value))
    if isinstance(value, Mapping | ConfigDict):
        return FrozenDict({key: _as_hashable(item) for key, item in value.items()})
    return value


def _refuse_own_options(model: ConfigDict) -> None:
    """Raise a UserError if a key is set that has an effect on our own models only."""
    for key in ("activation", "dropout"):
        if model.get(key) is not None:
            raise UserError(
                f"config.model.{key} is {model[key]!r}, which has no effect on {model.name}: set "
                "config.model.options, if its constructor has such an argument"
            )
    if (defence := model.get("defence", {}).get("name", "none")) != "none":
        raise UserError(
            f"config.model.defence.name is {defence!r}, which has no effect on {model.name}: set "
            "it to none, and implement the defence in that module"
        )


def make_defence(defence: ConfigDict) -> Defence | None:
    """Return the defence that `config.model.defence` names, with its options; None for "none"."""
    if defence.name == "none":
        return None
    if defence.name not in DEFENCES:
        names = ", ".join(("none", *DEFENCES))
        raise UserError(f"config.model.defence.name is {defence.name!r}: use one of {names}")
    return DEFENCES[defence.name](**defence.get(defence.name, {}))


def has_defence(model: nn.Module) -> bool:
    """Return whether a model has the option `defence`, which modules of users do not have."""
    return hasattr(model, "defence")


def has_own_layers(model: nn.Module) -> bool:
    """Return whether a model is made of the layers of this package, as published ones are too."""
    is_ours = type(model).__module__.startswith(f"{__package__}.")
    return has_defence(model) or (is_ours and not isinstance(model, NnxModule))


def is_declared_stochastic(model: nn.Module) -> bool:
    """Return whether two forward passes differ: by a defence, or as a module of a user declares."""
    declared = not has_defence(model) and getattr(model, "stochastic", False)
    return bool(declared) or is_stochastic(getattr(model, "defence", None))


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


def noise_modes(model: nn.Module) -> tuple[str, ...]:
    """Return the modes of the noise that a model has.

    A module of a user that is stochastic by itself cannot be used without its noise.
    """
    has_own_noise = is_declared_stochastic(model) and not has_defence(model)
    return tuple(noise for noise in NOISES if noise != "off" or not has_own_noise)


def without_noise(model: nn.Module) -> nn.Module:
    """Return the model without its random defence, if it has one."""
    return model.clone(defence=None) if is_declared_stochastic(model) else model


def state_collections(variables: Iterable[str]) -> list[str]:
    """Return the names of the collections that forward passes of training change."""
    return [name for name in variables if name not in ("params", *FIXED_COLLECTIONS)]


def make_logits_fn(model: nn.Module, weights: PyTree, example_ids: Int[Array, "batch"]) -> LogitsFn:
    """Return the classifier in evaluation mode: running batch statistics, with its defence.

    Noise on an example follows from the key and the number of the example, so it does not depend on
    the batch. Noise on the weights follows from the key alone.
    """

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        def one(example_id: Int[Array, ""], image: Float[Array, "..."]) -> Float[Array, "classes"]:
            rngs = noise_keys(key, example_id)
            return model.apply(weights, image[None], train=False, rngs=rngs)[0]

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
    # Each device uses the statistics of its share.
    local_model = model.clone(axis_name=None) if hasattr(model, "axis_name") else model
    mutable = state_collections(weights)

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        rngs = noise_keys(key, example_ids[0])
        return local_model.apply(weights, images, train=True, rngs=rngs, mutable=mutable)[0]

    return logits_fn


def noise_keys(key: PRNGKey, position: int | Int[Array, ""]) -> dict[str, PRNGKey]:
    """Return a key for each collection; only `weight_noise` has the same key at every position."""
    weight_key, example_key = jax.random.split(key)
    noise_key, dropout_key = jax.random.split(jax.random.fold_in(example_key, position))
    return {"weight_noise": weight_key, "noise": noise_key, "dropout": dropout_key}
