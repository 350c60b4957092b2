"""Accuracies in the records of the study, by training, evaluation and seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxadv.core.results import Accuracy, Evaluation
from jaxadv.evaluation.gradient_masking import is_better_than_guessing
from jaxadv.evaluation.metrics import binomial_accuracy
from jaxadv.study.records import Record, is_evaluation_of
from jaxadv.study.slides import EPS
from jaxadv.study.specification import CORRECTED, ORIGINAL, SCORE, SLIDES, Cell, Experiment

_SEEDS = range(10)


class Measurement(NamedTuple):
    """One accuracy of one model, or its aggregated score: the sum of its accuracies at all radii.

    Attributes:
      accuracy: share of correctly classified images; a score is a sum of shares.
      ci95: its Wilson interval; for a score that of the normal approximation.
      n: number of images.
      robust: which images are correctly classified, in the order of the split; for a score, at how
        many radii. None if not kept.
      training: name of the training without its seed; for the slides, of the study's model.
      source: checksum of the weights and key of the attack.
      predates_study: whether it was measured before the study; its record has a note.
      learned: whether the clean accuracy is significantly above that of a constant guess.
      split: of which the images are the first.
    """

    accuracy: float
    ci95: tuple[float, float]
    n: int
    robust: Bool[np.ndarray, "n"] | Int[np.ndarray, "n"] | None
    training: str
    source: tuple[str, str]
    predates_study: bool = False
    learned: bool = True
    split: str = "test"

    @property
    def images(self) -> tuple[str, int] | None:
        """Return the split and the number of images; None if the results per image are missing."""
        return None if self.robust is None else (self.split, len(self.robust))


Records = Mapping[str, Record]
BySeed = Mapping[int, Measurement]
Measurements = dict[Cell, BySeed]


def measure(experiment: Experiment, records: Records) -> Measurements:
    """Return the measurements of all cells of an experiment, by seed.

    Args:
      experiment: the experiment.
      records: by the name of the run.
    """
    columns = [(CORRECTED, experiment.columns), (ORIGINAL, experiment.original)]
    measurements: Measurements = {
        Cell(label, column, source): find(records, training, keys)
        for label, training in experiment.trainings.items()
        for source, keys_of in columns
        for column, keys in keys_of.items()
    }
    measurements |= _slide_measurements(experiment.slides, experiment.num_slide_images)
    for label, source in dict.fromkeys((cell.label, cell.source) for cell in measurements):
        if source != SLIDES or SCORE in experiment.slides[label]:
            measurements[Cell(label, SCORE, source)] = _scores(measurements, label, source)
    return measurements


def _scores(measurements: Measurements, label: str, source: str) -> BySeed:
    """Return the aggregated score for each seed that has an accuracy at every radius."""
    at_radii = [measurements.get(Cell(label, eps, source), {}) for eps in EPS]
    seeds = set.intersection(*(set(by_seed) for by_seed in at_radii))
    return {seed: _score([by_seed[seed] for by_seed in at_radii]) for seed in sorted(seeds)}


def _score(at_radii: Sequence[Measurement]) -> Measurement:
    """Return the sum of the accuracies of one model at all radii."""
    total, first = sum(one.accuracy for one in at_radii), at_radii[0]
    rows = [one.robust for one in at_radii]
    robust = None if any(row is None for row in rows) else np.array(rows).sum(0)
    if robust is None:  # the widest that it can be: as if all radii erred together
        half = sum((one.ci95[1] - one.ci95[0]) / 2 for one in at_radii)
    else:
        half = 1.96 * float(robust.std()) / math.sqrt(len(robust))
    return first._replace(
        accuracy=total,
        ci95=(total - half, total + half),
        robust=robust,
        source=(first.source[0], SCORE),
    )


def find(records: Records, training: str, keys: Sequence[str]) -> dict[int, Measurement]:
    """Return for each seed the measurement under the first key that the records have.

    Args:
      records: by the name of the run.
      training: its name, with ":last" for its last checkpoint. Evaluations of other checkpoints are
        then left out.
      keys: "clean", "clean/<noise>" or "<attack>/<eps>" in the training's own evaluation, or
        "<kind>:<key>" in another evaluation of it.
    """
    name, _, which = training.partition(":")
    found = {}
    for seed in _SEEDS:
        for key in keys:
            kind, _, attack = key.rpartition(":")
            record = _find_record(records, f"{name}/{seed}", kind, which)
            last = which == "last" and not kind
            if record and (measurement := _measurement(record, name, attack, last)):
                found[seed] = measurement
                break
    return found


def _find_record(records: Records, run: str, kind: str, which: str) -> Record | None:
    """Return the record of a training, or of an evaluation of the requested checkpoint."""
    trained = records.get(run)
    if not kind:
        return trained
    record = records.get(f"{run}/{kind}")
    if which and not (record and trained and is_evaluation_of(record, trained, which)):
        return None
    return record


def _measurement(record: Record, training: str, attack: str, last: bool) -> Measurement | None:
    name, evaluation = "evaluation", record.evaluation
    if last and record.evaluation_last:  # if the last is the best, there is one evaluation of both
        name, evaluation = "evaluation_last", record.evaluation_last
    if evaluation is None or (found := _accuracy(evaluation, attack)) is None:
        return None
    return Measurement(
        found.accuracy,
        found.ci95,
        found.n,
        record.robust.get(f"{name}/{attack}"),
        training,
        (evaluation.source.sha256, attack),
        predates_study=bool(record.note),
        learned=is_better_than_guessing(evaluation),
        split=evaluation.split,
    )


def _accuracy(evaluation: Evaluation, key: str) -> Accuracy | None:
    if key == "clean":
        return evaluation.clean
    if key.startswith("clean/"):
        return evaluation.clean_noise.get(key.removeprefix("clean/"))
    return next((entry for entry in evaluation.attacks if entry.key == key), None)


def _slide_measurements(slides: Mapping[str, Mapping[str, float]], n: int) -> Measurements:
    """Return the values of the slides, in % of n images, as measurements of one seed."""
    measurements: Measurements = {}
    for label, row in slides.items():
        for column, percent in row.items():
            if column != SCORE:
                share, model = (
                    binomial_accuracy(round(percent / 100 * n), n),
                    f"the study's {label}",
                )
                slide = Measurement(share.accuracy, share.ci95, n, None, model, (model, column))
                measurements[Cell(label, column, SLIDES)] = {0: slide}
    return measurements
