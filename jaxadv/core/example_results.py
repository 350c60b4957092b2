"""Results of each example of a split as objects, and their form in `examples.npz`.

Keys such as "survived/pgd40/0.03" exist in the file only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class AttackedExamples:
    """Results of one attack at one radius, for each example of a split.

    Attributes:
      robust: whether the example is classified correctly under attack.
      margins: largest other logit minus that of the label; positive is misclassified.
      sample_images: adversarial images of the sample.
      sample_predictions: predicted classes of these.
      queries: gradients, or forward passes of a black-box attack; None where all are equal.
      broken_by: position of the attack in AutoAttack that fooled the example, -1 if robust.
      steps: that this attack took.
      gradients: that all attacks of AutoAttack took.
      distances: to the nearest misclassified image that a minimal-norm attack or AutoAttack found.
    """

    robust: Bool[np.ndarray, "n"]
    margins: Float[np.ndarray, "n"] | None = None
    sample_images: Float[np.ndarray, "k height width channels"] | None = None
    sample_predictions: Int[np.ndarray, "k"] | None = None
    queries: Int[np.ndarray, "n"] | None = None
    broken_by: Int[np.ndarray, "n"] | None = None
    steps: Int[np.ndarray, "n"] | None = None
    gradients: Int[np.ndarray, "n"] | None = None
    distances: Float[np.ndarray, "n"] | None = None


_ARRAY_NAMES = {
    "robust": "survived",
    "margins": "margin",
    "sample_images": "sample/adversarial",
    "sample_predictions": "sample/predictions",
    "queries": "queries",
    "broken_by": "broken_by",
    "steps": "steps",
    "gradients": "gradients",
    "distances": "distances",
}


_SPLIT_ARRAY_NAMES = {
    "class_names": "class_names",
    "labels": "labels",
    "predictions": "predictions/clean",
    "margins": "margin/clean",
    "sample_ids": "sample/ids",
    "sample_images": "sample/images",
    "certified_predictions": "certified/predictions",
    "certified_radii": "certified/radii",
}


@dataclass(frozen=True, kw_only=True)
class ExampleResults:
    """Results of each example of a split: the content of `examples.npz`.

    Attributes:
      labels: true classes.
      predictions: predicted classes of the clean images, -1 for NaN or infinite logits.
      margins: margins of the clean images.
      sample_ids: numbers of the examples whose images are stored.
      sample_images: their clean images.
      attacks: results by the key of the entry, such as "pgd40/0.03".
      certified_predictions: classes certified by randomised smoothing, -1 where it abstains.
      certified_radii: certified L2 radii.
      class_names: of the data set.
    """

    labels: Int[np.ndarray, "n"]
    predictions: Int[np.ndarray, "n"]
    margins: Float[np.ndarray, "n"]
    sample_ids: Int[np.ndarray, "k"]
    sample_images: Float[np.ndarray, "k height width channels"]
    attacks: dict[str, AttackedExamples] = field(default_factory=dict)
    certified_predictions: Int[np.ndarray, "m"] | None = None
    certified_radii: Float[np.ndarray, "m"] | None = None
    class_names: np.ndarray | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of `examples.npz`."""
        arrays = {name: getattr(self, one) for one, name in _SPLIT_ARRAY_NAMES.items()}
        for key, attacked in self.attacks.items():
            arrays |= {
                f"{name}/{key}": getattr(attacked, field_name)
                for field_name, name in _ARRAY_NAMES.items()
            }
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return the results in the arrays of an `examples.npz`."""
        split = {one: arrays.get(name) for one, name in _SPLIT_ARRAY_NAMES.items()}
        other_arrays = [key for key in arrays if key not in _SPLIT_ARRAY_NAMES.values()]
        attacked: dict[str, dict[str, np.ndarray]] = {}
        for field_name, name in _ARRAY_NAMES.items():
            for key in other_arrays:
                if key.startswith(f"{name}/"):
                    attacked.setdefault(key.removeprefix(f"{name}/"), {})[field_name] = arrays[key]
        attacks = {
            key: AttackedExamples(**found) for key, found in attacked.items() if "robust" in found
        }
        return cls(**split, attacks=attacks)  # type: ignore[arg-type]
