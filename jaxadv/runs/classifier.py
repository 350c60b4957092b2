"""Classifiers of finished runs, restored from their workdirs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.trained import module_logits_fn, noise_models
from jaxadv.core.devices import replicate, set_up_cpu
from jaxadv.core.files import user_path
from jaxadv.core.results import CheckpointSource
from jaxadv.core.types import UserError
from jaxadv.models.classifier import is_declared_stochastic
from jaxadv.runs.dataset_record import describe_dataset
from jaxadv.runs.workdir import (
    load_dataset,
    recorded_dataset,
    restore_module,
    trained_config,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedClassifier(Classifier):
    """The classifier of a run.

    Attributes:
      module: its Flax module.
      variables: its variables, with the collection `params`.
      source: the checkpoint that they are from.
      sha256: checksums of all items of the checkpoint.
    """

    module: nn.Module
    variables: PyTree
    source: CheckpointSource
    sha256: dict[str, str]


def load_classifier(workdir: str | os.PathLike, which: str = "best") -> TrainedClassifier:
    """Restore the classifier of a run.

    Args:
      workdir: folder of a run of `run.py`.
      which: "best", the checkpoint with the highest accuracy under attack on the held-out images,
        or "last".

    Returns:
      The classifier. It is a function `(key, images) -> logits` for the attacks of
      `jaxadv.attacks`, and a model for `jaxadv.evaluate`; `module` and `variables` are its parts.

    Raises:
      UserError: the folder holds no run with a checkpoint.
    """
    if which not in ("best", "last"):
        raise UserError(f'which is {which!r}: use "best" or "last"')
    set_up_cpu()  # restoring the weights starts JAX
    source = user_path(str(workdir))
    trained = trained_config(source, "train", None)
    # Runs of earlier versions have no record of their data set.
    described = recorded_dataset(source) or describe_dataset(load_dataset(trained.data))
    return trained_classifier(trained, described, source, which)


def trained_classifier(
    trained: ConfigDict, described: Mapping[str, Any], source: Path, which: str
) -> TrainedClassifier:
    """Restore the classifier of a run, given its config and the record of its data set.

    Raises:
      UserError: no checkpoint can be restored.
    """
    module, restored = restore_module(trained, described, source, which)
    variables = jax.tree.map(jnp.asarray, restored.items["weights"])

    return TrainedClassifier(
        logits_fn=module_logits_fn(module, variables),
        name=_model_name(trained.model),
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        stochastic=is_declared_stochastic(module),
        class_names=tuple(map(str, described["class_names"])),
        noises=noise_models(module, replicate(variables), trained.seed),
        module=module,
        variables=variables,
        source=CheckpointSource(
            workdir=str(source),
            which=which,
            epoch=restored.epoch,
            sha256=restored.sha256["weights"],
        ),
        sha256=restored.sha256,
    )


def _model_name(model: ConfigDict) -> str:
    """Return the name of a model, with that of its defence."""
    defence = model.get("defence", {}).get("name", "none")
    return model.name if defence == "none" else f"{model.name} with {defence}"
