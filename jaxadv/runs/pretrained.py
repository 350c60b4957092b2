"""Published weights: `load_pretrained`, and the initial weights of a training."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import PyTree

from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.trained import noise_models
from jaxadv.core.devices import replicate, set_up_cpu
from jaxadv.core.files import user_path
from jaxadv.core.types import Images, Logits, UserError
from jaxadv.models import make_model
from jaxadv.models.checks import variable_shapes
from jaxadv.models.classifier import make_logits_fn
from jaxadv.models.state_dicts import state_dict_key, to_state_dict, to_variables, without_prefixes
from jaxadv.models.weight_files import read_state_dict
from jaxadv.runs import checkpoints

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
        `.safetensors` file, an `.npy` dictionary of DeepMind, a folder of Orbax, or a workdir of
        this project.
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
    arrays = _read(path)
    buffers = _buffers(arrays)
    module = make_model(
        architecture,
        10,
        mean=buffers.get("mean") if mean is None else tuple(map(float, mean)),
        std=buffers.get("std") if std is None else tuple(map(float, std)),
    )
    published: Sequence[int] = getattr(module, "published_shape", _DEFAULT_SHAPE)
    shape = tuple(image_shape or published)
    module = module.clone(num_classes=_num_classes(arrays, module, shape))
    variables = jax.tree.map(
        jnp.asarray, _fit(module, arrays, variable_shapes(module, shape), path)
    )

    def logits_fn(key: jax.Array, images: Images) -> Logits:
        return make_logits_fn(module, variables, jnp.arange(len(images)))(key, images)

    return PretrainedClassifier(
        logits_fn=logits_fn,
        name=f"{architecture} ({path.name})",
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        class_names=tuple(map(str, class_names)) if class_names is not None else None,
        noises=noise_models(module, replicate(variables), 0),
        module=module,
        variables=variables,
        sha256=_sha256(path) if path.is_file() else None,
    )


def initial_variables(
    module: nn.Module, initial: PyTree, image_shape: tuple[int, ...], source: str
) -> PyTree:
    """Return the variables of a module with the weights of a file, for fine-tuning.

    The last layer keeps its random values if the file has another number of classes; a printed
    line says so.

    Args:
      module: of the training.
      initial: its variables, randomly initialised.
      image_shape: height, width and channels of its images.
      source: a file or folder; see `load_pretrained`.

    Raises:
      UserError: the file cannot be read, or does not fit the module.
    """
    path = user_path(source)
    arrays = _read(path)
    head = _head(module, image_shape)
    variables = _fit(module, arrays, initial, path, head)
    stripped = without_prefixes(arrays)
    kept = sorted(key for key in head if stripped[key].shape != to_state_dict(initial)[key].shape)
    if kept:
        print(
            f"Initial weights from {path}, but {', '.join(kept)} start from random values: the "
            f"file has {stripped[kept[0]].shape[0]} classes",
            flush=True,
        )
    else:
        print(f"Initial weights from {path}", flush=True)
    return variables


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.is_dir():
        return to_state_dict(checkpoints.read_tree(path))
    return read_state_dict(path)


def _fit(
    module: nn.Module,
    arrays: Mapping[str, np.ndarray],
    target: PyTree,
    path: Path,
    head: Sequence[str] = (),
) -> PyTree:
    """Return the variables of a module from the arrays of a file."""
    buffers = _buffers(arrays)
    for name, values in buffers.items():
        if getattr(module, name, None) is None or not np.allclose(getattr(module, name), values):
            numbers = ", ".join(f"{value:.4g}" for value in values)
            raise UserError(
                f"{path} normalises images with {name} ({numbers}), the model with "
                f"{getattr(module, name, None)}: set {name}=({numbers})"
            )
    weights = {
        key: array for key, array in without_prefixes(arrays).items() if key not in _NORMALISATION
    }
    unused = getattr(module, "unused_keys", ())
    try:
        return to_variables(weights, target, unused=unused, head=head)
    except UserError as error:
        raise UserError(f"{path}: {error}; choose the architecture that the file is of") from None


def _buffers(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    """Return the mean and the standard deviation by which a file normalises images."""
    return {
        _NORMALISATION[key]: tuple(float(value) for value in array.ravel())
        for key, array in without_prefixes(arrays).items()
        if key in _NORMALISATION
    }


def _head(module: nn.Module, image_shape: tuple[int, ...]) -> list[str]:
    """Return the keys of the last layer: those whose shapes depend on the number of classes."""
    if not hasattr(module, "num_classes"):
        return []
    more = module.clone(num_classes=module.num_classes + 1)
    shapes, others = (
        traverse_util.flatten_dict(variable_shapes(one, image_shape)) for one in (module, more)
    )
    return [state_dict_key(path) for path in shapes if shapes[path].shape != others[path].shape]


def _num_classes(
    arrays: Mapping[str, np.ndarray], module: nn.Module, image_shape: tuple[int, ...]
) -> int:
    """Return the number of classes of a file: the length of the bias of the last layer."""
    stripped = without_prefixes(arrays)
    sizes = {stripped[key].shape[0] for key in _head(module, image_shape) if key in stripped}
    return sizes.pop() if len(sizes) == 1 else 10  # then the file does not fit


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
