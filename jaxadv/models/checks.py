"""Checks of a model on the shapes of a data set: it is traced, and nothing is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree

from jaxadv.core.devices import AXIS
from jaxadv.core.types import UserError
from jaxadv.models.classifier import (
    FIXED_COLLECTIONS,
    has_defence,
    noise_keys,
    state_collections,
)
from jaxadv.models.custom import describe

_BATCH = 2  # images; a model that mixes up axes fails more likely than with 1


def variable_shapes(model: nn.Module, image_shape: tuple[int, ...]) -> PyTree:
    """Return the shapes and types of the variables of a model, as its `init` would.

    Raises:
      UserError: the model cannot be initialised on images of this shape.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with _errors_named(model, image_shape, "be initialised"):
        return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)


def check_model(model: nn.Module, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Check that a model maps images of a shape to logits, in evaluation and in training.

    Args:
      model: of `make_classifier`.
      image_shape: (height, width, channels).
      num_classes: number of logits.

    Raises:
      UserError: it does not, or training cannot keep its variables.
    """
    variables = variable_shapes(model, image_shape)
    _check_variables(model, variables)
    for train in (False, True):
        mode = f"be called with train={train}"
        with _errors_named(model, image_shape, mode):
            logits, changed = _call(model, variables, image_shape, train)
        expected = (_BATCH, num_classes)
        if getattr(logits, "shape", None) != expected or not _is_float(logits):
            found = f"{logits.dtype}{list(logits.shape)}" if hasattr(logits, "shape") else "a tree"
            raise UserError(
                f"{_name(model)} returns {found} for {_BATCH} images with train={train}: return "
                f"logits of shape (batch, num_classes), here {list(expected)}, as floats"
            )
    for name, tree in changed.items():
        if tree != variables[name]:
            raise UserError(
                f"{_name(model)} changes the structure, shapes or types of its collection {name} "
                "in training: create its variables with their final shapes, and do not use sow"
            )


def _call(
    model: nn.Module, variables: PyTree, image_shape: tuple[int, ...], train: bool
) -> tuple[Any, dict[str, PyTree]]:
    """Return the shapes of the logits and of the changed collections of a forward pass."""

    def call(variables: PyTree, images: jax.Array) -> Any:
        def on_device(images: jax.Array) -> Any:
            return model.apply(
                variables,
                images,
                train=train,
                rngs=noise_keys(jax.random.key(0), 0),
                mutable=state_collections(variables),
            )

        return jax.vmap(on_device, axis_name=AXIS)(images[None])

    images = jax.ShapeDtypeStruct((_BATCH, *image_shape), jnp.float32)
    shapes = jax.eval_shape(call, variables, images)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes)


def _check_variables(model: nn.Module, variables: PyTree) -> None:
    parameters = jax.tree.leaves(variables.get("params", {}))
    if not parameters or not all(map(_is_float, parameters)):
        raise UserError(
            f"{_name(model)} has {'parameters that are not floats' if parameters else 'no params'}:"
            " training needs float variables in the collection params"
        )
    for name in FIXED_COLLECTIONS:
        if name in variables and not has_defence(model):
            raise UserError(
                f"{_name(model)} has a collection {name}, a name that our defences use: rename it"
            )


@contextmanager
def _errors_named(model: nn.Module, image_shape: tuple[int, ...], task: str) -> Iterator[None]:
    """Turn every error of a model into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        shape = " x ".join(map(str, image_shape))
        raise UserError(
            f"{_name(model)} cannot {task} on images of {shape} ({describe(error)}): correct the "
            "module, or change the images with config.data.size or config.data.channels"
        ) from error


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _name(model: nn.Module) -> str:
    return getattr(model, "nnx_class", type(model)).__name__
