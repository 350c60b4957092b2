"""Random weights of a published architecture as a state dict, the same with and without PyTorch."""

import jax
import numpy as np
from flax import traverse_util


def random_state_dict(model, image_shape, seed=0):
    """Return arrays in the naming and layout of PyTorch; no norm is the identity."""
    generator = np.random.default_rng(seed)
    return {
        key: _random(generator, key, shape)
        for key, shape in sorted(state_dict_shapes(model, image_shape).items())
    }


def variable_shapes(model, image_shape):
    """Return the variables of a model as shapes."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def state_dict_shapes(model, image_shape):
    """Return the shapes of the arrays of a state dict by their keys."""
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(variable_shapes(model, image_shape)).items():
        _, *modules, name = path
        names = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
        key = ".".join((*modules, {**names, "var": "running_var"}.get(name, name)))
        shapes[key] = (*leaf.shape[:-3:-1], *leaf.shape[:-2]) if name == "kernel" else leaf.shape
    return shapes


def _random(generator, key, shape):
    if len(shape) > 1:
        array = generator.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    elif key.endswith(("weight", "running_var")):
        array = generator.uniform(0.5, 1.5, shape)
    else:
        array = generator.normal(0, 0.1, shape)
    return array.astype(np.float32)
