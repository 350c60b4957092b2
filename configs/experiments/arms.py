"""An arm of an experiment: the study's curriculum, or another config, with a few keys changed."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import presets, study_curriculum


def get_config(
    arms: Mapping[str, Mapping[str, Any]],
    arm: str,
    base: Callable[[], ConfigDict] = study_curriculum.get_config,
) -> ConfigDict:
    """Returns the config of an arm, judged as `presets.corrected`.

    Args:
      arms: for each name the keys that differ from the base.
      arm: name of one of them.
      base: returns what they differ from.
    """
    if arm not in arms:
        raise ValueError(f"no arm {arm!r}: use one of {', '.join(arms)}")
    config = base()
    config.update_from_flattened_dict(arms[arm])
    return presets.corrected(config)
