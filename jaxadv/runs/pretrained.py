"""Published weights: `load_pretrained`, and the initial weights of a training."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.trained import module_logits_fn, noise_models
from jaxadv.core.devices import replicate, set_up_cpu
from jaxadv.core.files import file_sha256, user_path
from jaxadv.core.types import UserError
from jaxadv.models import make_model
from jaxadv.models.checks import variable_shapes
from jaxadv.models.state_dicts import (
    VariablePath,
    select_variables,
    state_dict_key,
    to_variables,
    without_prefix,
    without_prefixes,
)
from jaxadv.models.weight_files import read_state_dict
from jaxadv.runs import checkpoints
from jaxadv.runs.workdir import read

_DEFAULT_SHAPE = (32, 32, 3)
# Buffers of the normalisation in published files, and the attribute of a module they belong to.
_NORMALISATION = {
    "mean": "mean", "std": "std", "mu": "mean", "sigma": "std", "normalize.mean": "mean",
    "normalize.std": "std", "normalizer.mean": "mean", "normalizer.std": "std",
}  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class PretrainedClassifier(Classifier):
    """A published model.

    Attributes:
      module: its Flax module.
      variables: its variables, with the collection `params`.
      sha256: of the file; None for a folder.
    """

    module: nn.Module
    variables: PyTree
    sha256: str | None


def load_pretrained(
    architecture: str,
    file: str | os.PathLike,
    *,
    image_shape: Sequence[int] | None = None,
    mean: Sequence[float | int] | None = None,
    std: Sequence[float | int] | None = None,
    class_names: Sequence[str] | None = None,
) -> PretrainedClassifier:
    """Load a published model. Nothing in the file is executed, and PyTorch is not needed.

    Args:
      architecture: `wideresnet_28_10`, `dm_wideresnet_28_10`, `preactresnet_18` or another name of
        docs/models.md.
      file: a state dict of PyTorch (`.pt`, `.pth`, `.bin`) or a dictionary that has one, a
        `.safetensors` file, an `.npy` dictionary of DeepMind, or a folder of Orbax.
      image_shape: height, width and channels of the images; None: those of the published models.
      mean: of each channel, by which the model normalises images in [0, 1]; None: that of the
        file, or as published for the architecture.
      std: standard deviation of each channel, likewise.
      class_names: shown in reports.

    Returns:
      The classifier. It is a function `(key, images) -> logits` for the attacks of
      `jaxadv.attacks`, and a model for `jaxadv.evaluate`; `module` and `variables` are its parts.
      The number of classes is that of the file.

    Raises:
      UserError: the architecture is unknown, the file cannot be read or could run code, or it does
        not fit the architecture: the message names the keys.
    """
    set_up_cpu()  # the weights start JAX
    path = user_path(str(file))
    if (path / "config.json").exists():
        raise UserError(f"{path} is the workdir of a run: pass it to jaxadv.load_classifier")
    weights = _read(path)
    buffers = _buffers(weights)
    module = make_model(
        architecture,
        10,
        mean=buffers.get("mean") if mean is None else mean,
        std=buffers.get("std") if std is None else std,
    )
    shape = _image_shape(image_shape, module)
    num_classes = _num_classes(weights, module, shape)
    if (mean, buffers) == (None, {}) and getattr(module, "mean", None) and num_classes != 10:
        raise UserError(
            f"{path} has {num_classes} classes and does not say how it normalises images: pass "
            f"mean and std, since the default of {architecture} is that of CIFAR-10"
        )
    module = module.clone(num_classes=num_classes)
    variables = jax.tree.map(
        jnp.asarray, _fit(module, weights, variable_shapes(module, shape), path)
    )

    return PretrainedClassifier(
        logits_fn=module_logits_fn(module, variables),
        name=f"{architecture} ({path.name})",
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        class_names=tuple(map(str, class_names)) if class_names is not None else None,
        noises=noise_models(module, replicate(variables), 0),
        module=module,
        variables=variables,
        sha256=file_sha256(path) if path.is_file() else None,
    )


def initial_variables(
    config: ConfigDict, module: nn.Module, initial: PyTree, image_shape: tuple[int, ...]
) -> PyTree:
    """Return the variables of a module with the weights of `config.init_from`, for fine-tuning.

    The last layer keeps its random values if the file has another number of classes; a printed
    line says so.

    Args:
      config: of the training; `init_from` is a file or folder of `load_pretrained`, or the workdir
        of a run, whose best checkpoint is read.
      module: of the training.
      initial: its variables, randomly initialised.
      image_shape: height, width and channels of its images.

    Raises:
      UserError: the file cannot be read, or does not fit the module.
    """
    path = user_path(config.init_from)
    if (path / "config.json").exists():
        _check_same_model(path, config.model)
    weights = _read(path)
    last_layer = _last_layer(module, image_shape)
    variables = _fit(module, weights, initial, path, last_layer)
    flat = traverse_util.flatten_dict(variables)
    kept = [path for path in last_layer if flat[path] is traverse_util.flatten_dict(initial)[path]]
    note = ""
    if kept:
        names = ", ".join(sorted(map("/".join, kept)))
        num_classes = _num_classes(weights, module, image_shape)
        note = f", but {names} start from random values: the file has {num_classes} classes"
    print(f"Initial weights from {path}{note}", flush=True)
    return variables


def _check_same_model(workdir: Path, model: ConfigDict) -> None:
    """Check that the model of a run computes what the model of this training does."""
    trained = read(workdir, "train").model
    for key in ("name", "activation", "options"):
        ours, theirs = (json.loads(one.to_json()).get(key) or None for one in (model, trained))
        if ours != theirs:
            raise UserError(
                f"config.init_from is a run whose config.model.{key} is {theirs!r}, here it is "
                f"{ours!r}: use that of the run"
            )


def _read(path: Path) -> PyTree:
    """Return the variables in a folder, or the state dict in a file."""
    return checkpoints.read_tree(path) if path.is_dir() else read_state_dict(path)


def _is_state_dict(weights: PyTree) -> bool:
    return "params" not in weights


def _fit(
    module: nn.Module,
    weights: PyTree,
    target: PyTree,
    path: Path,
    last_layer: Collection[VariablePath] = (),
) -> PyTree:
    """Return the variables of a module with the weights of a file or folder."""
    _check_normalisation(module, _buffers(weights), path)
    try:
        if not _is_state_dict(weights):
            return select_variables(weights, target, last_layer=last_layer)
        arrays = {
            key: array for key, array in weights.items()
            if without_prefix(key) not in _NORMALISATION
        }  # fmt: skip
        unused = getattr(module, "unused_keys", ())
        return to_variables(arrays, target, unused=unused, last_layer=last_layer)
    except UserError as error:
        raise UserError(
            f"{path}: {error}. Choose the architecture and the size of images of the file"
        ) from None


def _check_normalisation(
    module: nn.Module, buffers: Mapping[str, tuple[float, ...]], path: Path
) -> None:
    for name, values in buffers.items():
        used = getattr(module, name, None)
        if used is None or len(used) != len(values) or not np.allclose(used, values, atol=1e-4):
            asked = ", ".join(f"{key}={buffers[key]}" for key in sorted(buffers))
            raise UserError(
                f"{path} normalises images with {asked}, the model with {name}={used}: set mean "
                "and std (in a config: config.model.options.mean and std)"
            )


def _buffers(weights: PyTree) -> dict[str, tuple[float, ...]]:
    """Return the mean and the standard deviation by which a file normalises images."""
    if not _is_state_dict(weights):
        return {}
    return {
        _NORMALISATION[key]: tuple(float(value) for value in array.ravel())
        for key, array in without_prefixes(weights).items()
        if key in _NORMALISATION
    }


def _image_shape(given: Any, module: nn.Module) -> tuple[int, ...]:
    if given is None:
        return getattr(module, "published_shape", _DEFAULT_SHAPE)
    sizes = tuple(given) if isinstance(given, Sequence) else ()
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"image_shape is {given!r}: pass height, width and channels")
    return sizes


def _last_layer(module: nn.Module, image_shape: tuple[int, ...]) -> list[VariablePath]:
    """Return the variables of the last layer: their shapes depend on the number of classes."""
    if not hasattr(module, "num_classes"):
        return []
    more = module.clone(num_classes=module.num_classes + 1)
    shapes, others = (
        traverse_util.flatten_dict(variable_shapes(one, image_shape)) for one in (module, more)
    )
    return [path for path in shapes if shapes[path].shape != others[path].shape]


def _num_classes(weights: PyTree, module: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Return the number of classes of a file, the length of the bias of its last layer."""
    biases = [path for path in _last_layer(module, image_shape) if path[-1] == "bias"]
    if _is_state_dict(weights):
        arrays = without_prefixes(weights)
        found = [arrays.get(state_dict_key(path)) for path in biases]
    else:
        flat = traverse_util.flatten_dict(weights)
        found = [flat.get(path) for path in biases]
    sizes = {bias.shape[0] for bias in found if bias is not None and bias.ndim == 1}
    return sizes.pop() if len(sizes) == 1 else 10  # then the file does not fit
