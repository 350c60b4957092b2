"""The classifier that a config describes, as attacks and evaluations see it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from jaxadv.attacks.inputs import outside_of_range
from jaxadv.models import make_model
from jaxadv.models.defences import DEFENCES, Defence, is_stochastic, smoothing_sigma
from jaxadv.parallel import AXIS
from jaxadv.types import Images, Logits, LogitsFn, PRNGKey, UserError


def make_classifier(model: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the module of `config.model`, its batch norm synchronised over the devices.

    Raises:
      UserError: for a model or defence that cannot be meant.
    """
    options = dict(model)
    # A run from before there were defences has no such key.
    defence = make_defence(options.pop("defence", ConfigDict({"name": "none"})))
    return make_model(num_classes=num_classes, axis_name=AXIS, defence=defence, **options)


def make_defence(defence: ConfigDict) -> Defence | None:
    """Returns the defence of `config.model.defence`: the one named, with its own options."""
    if defence.name == "none":
        return None
    if defence.name not in DEFENCES:
        names = ", ".join(("none", *DEFENCES))
        raise UserError(f"config.model.defence.name is {defence.name!r}: use one of {names}")
    return DEFENCES[defence.name](**defence.get(defence.name, {}))


def is_declared_stochastic(model: nn.Module) -> bool:
    """Returns whether the model has a defence that makes two passes differ."""
    return is_stochastic(getattr(model, "defence", None))


def check_certifiable(model: nn.Module) -> float:
    """Returns the deviation of the Gaussian noise on the model's images.

    Raises:
      UserError: there is none, so nothing can be certified.
    """
    sigma = smoothing_sigma(getattr(model, "defence", None))
    if not sigma:
        raise UserError(
            "config.evaluation.certification.num_examples is above 0, but the model has no "
            "Gaussian noise on its images: only input_noise and rse can be certified"
        )
    return sigma


def without_noise(model: nn.Module) -> nn.Module:
    """Returns the model with its random defence switched off: exactly the plain one."""
    return model.clone(defence=None) if is_declared_stochastic(model) else model


def make_logits_fn(model: nn.Module, weights: PyTree, example_ids: Int[Array, "batch"]) -> LogitsFn:
    """Returns the classifier as attacks see it: running batch statistics, defences on.

    The noise of an example follows from the key and the number of the example, so that it does
    not depend on the batch; noise of the weights follows from the key alone.
    """

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        def one(example_id: Int[Array, ""], image: Float[Array, "..."]) -> Float[Array, "classes"]:
            return model.apply(weights, image[None], rngs=noise_keys(key, example_id))[0]

        return jax.vmap(one)(example_ids, images)

    return logits_fn


def make_training_logits_fn(
    model: nn.Module, weights: PyTree, example_ids: Int[Array, "batch"]
) -> LogitsFn:
    """Returns the classifier as it is in training: with dropout, and statistics of the batch.

    The study evaluated its models so. What becomes of an image depends on the batch it sits in.
    Its noise follows from the number of the first example, so that two devices draw their own.
    """
    alone = model.clone(axis_name=None)  # each device has statistics of its own share

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        rngs = noise_keys(key, example_ids[0])
        return alone.apply(weights, images, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    return logits_fn


def noise_keys(key: PRNGKey, place: int | Int[Array, ""]) -> dict[str, PRNGKey]:
    """Returns a key for each collection; only that of the weights is the same in every place."""
    weight_key, example_key = jax.random.split(key)
    noise_key, dropout_key = jax.random.split(jax.random.fold_in(example_key, place))
    return {"weight_noise": weight_key, "noise": noise_key, "dropout": dropout_key}


def to_float(images: Array) -> Images:
    """Converts images to float32 in [0, 1]: uint8 is divided by 255, floats are taken as they are.

    Raises:
      UserError: images of another type, or floats outside of [0, 1]; see `check_images`.
    """
    check_images(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return jnp.clip(images.astype(jnp.float32), 0, 1)  # of what rounding adds: see `check_images`


def check_images(images: Array | np.ndarray) -> None:
    """Raises a UserError if these are not images: uint8, or floats in [0, 1] but for rounding.

    The range is checked where the values are known, that is outside of compiled functions.
    """
    dtype = images.dtype
    if images.ndim != 4:
        raise UserError(
            f"the images have shape {images.shape}: use (n, height, width, channels), with one "
            "channel for grey images"
        )
    if dtype == jnp.uint8:
        return
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"the images are {dtype}: use uint8 from 0 to 255, or floats from 0 to 1")
    if outside := outside_of_range(images):
        raise UserError(
            f"the images are {dtype} with values from {outside[0]:.9g} to {outside[1]:.9g}: use "
            "floats from 0 to 1, or uint8 from 0 to 255"
        )
