"""Evaluation protocols: how a trained model of the study is evaluated.

The corrected protocol is the evaluation that ends each training: `attack_suites.corrected` in
configs/, the best checkpoint on held-out images, the full test split, random starts, evaluation
mode. The protocols below are further evaluations of a training. `ORIGINAL` is that of the study.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ml_collections import ConfigDict

from jaxadv.study.slides import EPS

_RADII = tuple(float(eps) for eps in EPS)
_PGD40 = {"attack": "pgd", "eps": _RADII, "step_size": 0.01, "num_steps": 40}
_ORIGINAL_PGD40 = {**_PGD40, "random_start": False}


@dataclass(frozen=True)
class Protocol:
    """An evaluation as changes to a config of configs/evaluate.py.

    Attributes:
      suite: attack suite of the config, a key of `config.suites` in configs/study.py.
      attacks: replace those of the suite; None keeps them.
      changes: values of other keys.
    """

    suite: str = "default"
    attacks: Mapping[str, Mapping[str, Any]] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def make_config(self, suites: ConfigDict) -> ConfigDict:
        """Return the config of the evaluation.

        Args:
          suites: `config.suites` of configs/study.py.
        """
        config = suites[self.suite].copy_and_resolve_references()
        if self.attacks is not None:
            config.evaluation.attacks = ConfigDict(self.attacks)
        config.update_from_flattened_dict(self.changes)
        return config


# The last checkpoint on 1,024 held-out train images. PGD-40 starts at the clean image and takes one
# noise sample per step. Some values of the slides have PGD steps of 0.02.
ORIGINAL = Protocol(
    attacks={"pgd40": _ORIGINAL_PGD40, "pgd40_coarse": {**_ORIGINAL_PGD40, "step_size": 0.02}},
    changes={
        "which": "last",
        "evaluation.split": "held_out",
        "evaluation.num_examples": 1024,
        "evaluation.num_passes": 2,
    },
)
# The same, and the attack in training mode: dropout on, batch norm with statistics of the batch.
ORIGINAL_WITH_TRAINING_MODE = replace(
    ORIGINAL,
    attacks={**(ORIGINAL.attacks or {}), "training_mode": {**_ORIGINAL_PGD40, "noise": "training"}},
)
# The same attack in training mode with steps of 0.02.
COARSE_IN_TRAINING_MODE = replace(
    ORIGINAL,
    attacks={
        "training_mode_coarse": {**_ORIGINAL_PGD40, "step_size": 0.02, "noise": "training"},
    },
)
# For random defences: 20 steps at the six radii, gradients averaged over 10 noise samples.
AVERAGED = Protocol(attacks={"eot10": {**_PGD40, "num_steps": 20, "num_noise_samples": 10}})
# Deterministic models, by as many gradients as models with a random defence.
PLAIN = Protocol(suite="plain")
NES = Protocol(suite="study_nes")
AUTOATTACK = Protocol(
    suite="autoattack",
    changes={"evaluation.attacks.pgd40.eps": (0.03,), "evaluation.attacks.autoattack.eps": (0.03,)},
)
AUTOATTACK_1000 = replace(
    AUTOATTACK, changes={**AUTOATTACK.changes, "evaluation.num_examples": 1000}
)
