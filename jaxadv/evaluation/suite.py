"""Run an attack suite on a split of a data set: results of each attack and each example."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from jaxadv.attacks import AttackResult, AutoAttackResult
from jaxadv.attacks.batching import Model, ResumeCache, seconds_spent
from jaxadv.core.example_results import AttackedExamples, ExampleResults
from jaxadv.core.images import check_images, to_float
from jaxadv.core.progress import progress_bar
from jaxadv.core.results import (
    AttackEntry,
    CleanResult,
    NoisyAccuracy,
    QueryCost,
    RoundedResult,
    SinglePass,
    StageResult,
    SuiteResult,
    WorstCase,
)
from jaxadv.core.types import HostBatch, UserError
from jaxadv.evaluation.attack_runner import Scores, run_attack, score_images
from jaxadv.evaluation.attack_suites import ConfiguredAttack
from jaxadv.evaluation.export import round_inside
from jaxadv.evaluation.gradient_masking import gradient_masking_warnings
from jaxadv.evaluation.metrics import accuracy_over_queries, binomial_accuracy, query_cost

_NUM_SAMPLES = 8  # examples whose adversarial images are stored


WriteImages = Callable[[str, dict[str, np.ndarray]], Any]
"""`(key, arrays)`, called with the adversarial images of an attack."""


def run_attack_suite(
    models: Mapping[str, Model],
    split: HostBatch,
    attacks: Sequence[ConfiguredAttack],
    *,
    stochastic: bool = False,
    num_passes: int = 1,
    batch_size: int,
    seed: int,
    progress: bool = True,
    cache: ResumeCache | None = None,
    exported: Collection[str] = (),
    write_images: WriteImages | None = None,
) -> tuple[SuiteResult, ExampleResults]:
    """Run all attacks of a suite on a split.

    Examples that are misclassified without perturbation count as non-robust and are not attacked.
    For a stochastic model, and with the noise of training, every example is attacked, since another
    forward pass may classify it correctly. The accuracy of a stochastic model is that of the mean
    softmax over `num_passes` forward passes. The accuracies of single forward passes and of their
    majority vote are reported too.

    Args:
      models: the classifier with each noise that an attack of the suite names, and with "on".
      split: images, as uint8 or as floats in [0, 1], and labels.
      attacks: the suite; its arguments are checked.
      stochastic: whether forward passes of the classifier differ.
      num_passes: forward passes of a stochastic classifier for each prediction.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      progress: whether to show a progress bar.
      cache: where intermediate results are saved, so that an interrupted evaluation resumes.
      exported: names of the attacks whose images `write_images` gets.
      write_images: see `WriteImages`.

    Raises:
      UserError: the images are invalid.
    """
    check_images(split.images)
    if write_images and exported and split.images.dtype != np.uint8:
        raise UserError(
            f"config.evaluation.export needs images as uint8, these are {split.images.dtype}"
        )
    labels, everything = split.labels, np.arange(len(split.labels))
    noises = {"on", *(attack.noise for attack in attacks)}
    passes = dict.fromkeys(noises, 1) | {"on": num_passes if stochastic else 1}
    # Two forward passes reveal an undeclared random defence.
    clean_passes = passes | {"on": max(passes["on"], 2)}
    work = sum(attack.max_queries + passes[attack.noise] for attack in attacks)
    total = len(labels) * (sum(clean_passes.values()) + work)
    images = np.asarray(to_float(jnp.asarray(split.images)))
    entries: list[AttackEntry] = []
    with query_bar(total, "Attack", disable=not progress) as bar:
        score_batches = partial(score_images, batch_size=batch_size, seed=seed, bar=bar)
        bar.set_postfix_str("clean", refresh=False)
        clean = {
            noise: score_batches(
                models[noise], split, None, everything, num_passes=clean_passes[noise]
            )
            for noise in sorted(noises)
        }
        correct = {
            noise: np.flatnonzero(scores.predictions == labels) for noise, scores in clean.items()
        }
        random_noises = {"training", "on"} if stochastic else {"training"}
        attacked = correct | dict.fromkeys(random_noises, everything)
        for attack in attacks:  # misclassified examples are not attacked
            idle = len(labels) - len(attacked[attack.noise])
            bar.total -= idle * (attack.max_queries + passes[attack.noise])
        sample = correct["on"][:_NUM_SAMPLES]
        examples = ExampleResults(
            labels=labels,
            predictions=clean["on"].predictions,
            margins=clean["on"].margins,
            sample_ids=sample,
            sample_images=images[sample],
        )
        for attack in attacks:
            bar.set_postfix_str(attack.key, refresh=False)
            began = time.monotonic() - seconds_spent(cache, attack.key)
            model, ids = models[attack.noise], attacked[attack.noise]
            score = partial(score_batches, model, num_passes=passes[attack.noise])
            result: Any = run_attack(
                model,
                split,
                attack,
                ids,
                batch_size,
                seed,
                attack_all=stochastic,
                bar=bar,
                cache=cache,
            )
            attacked_scores = score(split, result.images, ids)
            scores = _fill_in(clean[attack.noise], ids, attacked_scores)
            adversarial = images.copy()
            adversarial[ids] = result.images
            examples.attacks[attack.key] = AttackedExamples(
                robust=scores.predictions == labels,
                margins=scores.margins,
                sample_images=adversarial[sample],
                sample_predictions=scores.predictions[sample],
                **_example_arrays(attack, result, ids, len(labels)),
            )
            seconds = time.monotonic() - began
            entry = _entry(
                attack, result, attacked_scores, scores, labels, passes[attack.noise], seconds
            )
            if write_images and attack.name in exported:
                rounded = round_inside(adversarial, split.images, entry.eps, entry.norm)
                write_images(
                    attack.key,
                    {"images": adversarial, "images_uint8": rounded, "labels": labels},
                )
                again = score(HostBatch(rounded, labels), None, everything, bar=None)
                entry = replace(entry, uint8=_accuracy_on_bytes(scores, again, labels))
            if not attack.spec.uses_gradients:
                queries = _scatter(result.queries, ids, len(labels))
                fooled, rows = scores.predictions != labels, correct[attack.noise]
                entry = replace(entry, query_cost=_query_cost(attack, fooled, queries, rows))
            entries.append(entry)
    suite = SuiteResult(
        stochastic=stochastic,
        num_passes=passes["on"],
        largest_class=float(np.bincount(labels).max() / len(labels)),
        clean=CleanResult(
            **vars(_accuracy(clean["on"], labels, passes["on"])),
            varying=int(clean["on"].varies.sum()),
            nonfinite_logits=int(clean["on"].nonfinite.sum()),
        ),
        clean_noise={
            noise: _accuracy(scores, labels, 1) for noise, scores in clean.items() if noise != "on"
        },
        attacks=tuple(entries),
        worst_case=_worst_cases(entries, examples),
        aggregated_score=_aggregated_scores(entries),
    )
    return replace(suite, warnings=tuple(gradient_masking_warnings(suite))), examples


def query_bar(total: int, title: str, *, disable: bool = False) -> tqdm:
    """Return a progress bar over queries of one image each."""
    return progress_bar(total=total, title=title, unit="query", unit_scale=True, disable=disable)


def _fill_in(clean: Scores, ids: Int[np.ndarray, "k"], found: Scores) -> Scores:
    """Return the scores of all examples: under attack for `ids`, clean for the others."""

    def fill(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        whole = np.array(old[:, : new.shape[1]] if new.ndim == 2 else old)
        whole[ids] = new
        return whole

    return Scores(*map(fill, clean, found))


def _scatter(array: np.ndarray, ids: Int[np.ndarray, "k"], n: int) -> np.ndarray:
    """Return the values of all n examples; those that were not attacked have 0."""
    whole = np.zeros(n, array.dtype)
    whole[ids] = array
    return whole


def _entry(
    attack: ConfiguredAttack,
    result: AttackResult,
    attacked_scores: Scores,
    scores: Scores,
    labels: Int[np.ndarray, "n"],
    num_passes: int,
    seconds: float,
) -> AttackEntry:
    """Return the results of an attack, from the scores of the attacked and of all examples."""
    return AttackEntry(
        name=attack.name,
        attack=attack.attack,
        norm=attack.arguments["norm"],
        eps=attack.eps,
        noise=attack.noise,
        arguments={name: v for name, v in attack.arguments.items() if name != "norm"},
        **vars(_accuracy(scores, labels, num_passes)),
        queries=attack.max_queries,
        attacked=len(attacked_scores.predictions),
        unmoved=int(attacked_scores.unmoved.sum()),
        nonfinite_logits=int(scores.nonfinite.sum()),
        seconds=seconds,
        nonfinite_gradients=int(result.nonfinite.sum()),
        nonfinite_gradient_images=int((result.nonfinite > 0).sum()),
        **_ensemble_fields(result),
    )


def _query_cost(
    attack: ConfiguredAttack,
    fooled: Bool[np.ndarray, "n"],
    queries: Int[np.ndarray, "n"],
    correct: Int[np.ndarray, "k"],
) -> QueryCost:
    """Return the accuracy over queries of all examples, and the cost of the correct ones."""
    anytime = attack.arguments.get("early_stop", True)
    over_queries = accuracy_over_queries(fooled, queries, attack.max_queries, anytime=anytime)
    return query_cost(fooled[correct], queries[correct], over_queries)


def _example_arrays(
    attack: ConfiguredAttack, result: AttackResult, ids: Int[np.ndarray, "k"], n: int
) -> dict[str, np.ndarray]:
    """Return the per-example results beyond the scores, as fields of `AttackedExamples`."""
    arrays: dict[str, Any] = {}
    if attack.spec.resumable or attack.spec.is_ensemble:
        arrays["queries"] = result.queries
    if attack.spec.measures_distance:
        arrays["distances"] = result.extras.distance
    if isinstance(result.extras, AutoAttackResult):
        names = ("broken_by", "steps", "gradients", "distances")
        arrays |= {name: getattr(result.extras, name) for name in names}
    return {name: _scatter(array, ids, n) for name, array in arrays.items()}


def _ensemble_fields(result: AttackResult) -> dict[str, Any]:
    """Return the fields of an `AttackEntry` that only AutoAttack has."""
    found = result.extras
    if not isinstance(found, AutoAttackResult):
        return {}
    stages = tuple(
        StageResult(
            name=name,
            broken=int((found.broken_by == number).sum()),
            unconfirmed=found.unconfirmed[name],
            seconds=found.seconds[name],
        )
        for number, name in enumerate(found.attacks[1:], start=1)
    )
    return {"stages": stages, "flags": found.flags}


def _accuracy(scores: Scores, labels: Int[np.ndarray, "n"], num_passes: int) -> NoisyAccuracy:
    """Return the accuracy and, for several forward passes, that of one and of their majority."""
    mean = binomial_accuracy((scores.predictions == labels).sum(), len(labels))
    if num_passes == 1:
        return NoisyAccuracy(**vars(mean))
    single = (scores.pass_predictions == labels[:, None]).mean(axis=0)
    # Forward passes with NaN or infinite logits vote for no class, -1.
    classes = np.arange(-1, int(scores.pass_predictions.max()) + 1)
    votes = (scores.pass_predictions[:, :, None] == classes).sum(axis=1)
    majority = classes[votes.argmax(axis=1)]
    return NoisyAccuracy(
        **vars(mean),
        single_pass=SinglePass(mean=float(single.mean()), std=float(single.std(ddof=1))),
        majority=binomial_accuracy((majority == labels).sum(), len(labels)),
    )


def _accuracy_on_bytes(
    floats: Scores, rounded: Scores, labels: Int[np.ndarray, "n"]
) -> RoundedResult:
    """Return the accuracy on adversarial images as bytes, and how many attacks rounding undoes."""
    correct, fooled = rounded.predictions == labels, floats.predictions != labels
    accuracy = binomial_accuracy(correct.sum(), len(labels))
    return RoundedResult(**vars(accuracy), lost=int((correct & fooled).sum()))


def _worst_cases(entries: list[AttackEntry], examples: ExampleResults) -> tuple[WorstCase, ...]:
    """Return, for each norm and radius, the share of examples robust under all its attacks.

    The clean image counts as one of them, and so do attacks at smaller radii, whose adversarial
    images lie inside the larger ball too. Attacks on the model without its noise, or with a fixed
    noise sample, are attacks on another model and do not count.
    """
    entries = [entry for entry in entries if entry.noise == "on"]
    correct = examples.predictions == examples.labels
    worst = []
    for norm, eps in sorted({(entry.norm, entry.eps) for entry in entries}):
        keys = [entry.key for entry in entries if entry.norm == norm and entry.eps <= eps]
        robust: Bool[np.ndarray, n] = np.logical_and.reduce(
            [correct, *(examples.attacks[key].robust for key in keys)]
        )
        accuracy = binomial_accuracy(robust.sum(), len(robust))
        worst.append(WorstCase(**vars(accuracy), norm=norm, eps=eps, attacks=tuple(keys)))
    return tuple(worst)


def _aggregated_scores(entries: list[AttackEntry]) -> dict[str, float]:
    """Return the study's score of each attack at several radii: the sum of its accuracies."""
    accuracies: dict[str, list[float]] = {}
    for entry in entries:
        accuracies.setdefault(entry.name, []).append(entry.accuracy)
    return {name: sum(values) for name, values in accuracies.items() if len(values) > 1}
