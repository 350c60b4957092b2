"""Quality of generated samples as objects, and their form in `gan.json` and manifests.

The keys of the files are those of earlier versions, in which the sample evaluator was the "judge".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from jaxadv.core.results import Record

_JSON_KEYS = {
    "accuracy": "judge_accuracy",
    "accuracy_by_class": "judge_accuracy_by_class",
    "frechet_distance": "judge_frechet_distance",
    "kernel_distance": "judge_kernel_distance",
    "kernel_distance_sd": "judge_kernel_distance_sd",
    "precision": "judge_precision",
    "recall": "judge_recall",
    "evaluator_accuracy": "judge_accuracy_on_test",
}


class _RenamedRecord(Record):
    """A record whose fields have the keys of `_JSON_KEYS` in JSON."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the record with the content of a JSON object."""
        renamed = {name: content[key] for name, key in _JSON_KEYS.items() if key in content}
        return super().from_json({**content, **renamed})

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON object."""
        return {_JSON_KEYS.get(name, name): value for name, value in super().to_json().items()}


@dataclass(frozen=True, kw_only=True)
class SampleQuality(_RenamedRecord):
    """Quality of generated samples, by a classifier and its features.

    The distances, precision and recall use the features of the sample evaluator, not those of the
    Inception network: values of different evaluators are not comparable. See `jaxadv.gan.metrics`.

    Attributes:
      accuracy: share of samples that the evaluator assigns to their class.
      accuracy_by_class: the same for each class; None for a class without samples.
      frechet_distance: Fréchet distance to the real images.
      kernel_distance: squared MMD to the real images.
      kernel_distance_sd: its standard deviation over subsets.
      precision: share of samples in the manifold of the real images.
      recall: share of real images in the manifold of the samples.
      duplicates: share of samples within 4/255 root mean square of an earlier sample.
      copies: share of samples within 4/255 root mean square of a real image.
    """

    accuracy: float
    accuracy_by_class: tuple[float | None, ...]
    frechet_distance: float
    kernel_distance: float
    kernel_distance_sd: float
    precision: float
    recall: float
    duplicates: float
    copies: float


@dataclass(frozen=True, kw_only=True)
class SampleEvaluation(_RenamedRecord):
    """Evaluation of samples against the test split.

    Attributes:
      num_images: number of samples.
      evaluator_accuracy: share of the test images that the evaluator classifies correctly.
      samples: quality of the samples.
    """

    num_images: int
    evaluator_accuracy: float
    samples: SampleQuality


@dataclass(frozen=True, kw_only=True)
class GanResult(SampleEvaluation):
    """Evaluation of the best checkpoint of a GAN: the content of `gan.json`.

    Attributes:
      dataset: name of the data set.
      class_names: of the data set.
      round: number of the checkpoint.
      provenance: command, commit, device, date and duration.
    """

    dataset: str
    class_names: tuple[str, ...]
    round: int
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `gan.json`, beginning with what was evaluated."""
        content = super().to_json()
        names = ("dataset", "class_names", "round")
        return {**{name: content.pop(name) for name in names}, **content}
