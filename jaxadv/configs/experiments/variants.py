"""Variants of a training config that differ in a few keys."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxadv.configs import attack_suites, study_curriculum


def get_variant(
    variants: Mapping[str, Mapping[str, Any]],
    name: str,
    base: Callable[[], ConfigDict] = study_curriculum.get_config,
) -> ConfigDict:
    """Return the config of a variant, evaluated by the suite `attack_suites.corrected`.

    Args:
      variants: for each variant the keys in which it differs from the base.
      name: of the variant.
      base: returns the base config.
    """
    if name not in variants:
        raise ValueError(f"unknown variant {name!r}: use one of {', '.join(variants)}")
    config = base()
    config.update_from_flattened_dict(variants[name])
    return evaluate_corrected(config)


def evaluate_corrected(config: ConfigDict) -> ConfigDict:
    """Set the attacks of the final evaluation to the suite `attack_suites.corrected`."""
    config.evaluation.attacks = attack_suites.corrected(config.model.defence.name)
    return config
