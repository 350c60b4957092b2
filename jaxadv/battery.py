"""A battery of attacks on a split: what becomes of each example, and what that amounts to."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks import GRADIENT_FREE, RESUMABLE
from jaxadv.attacks.batches import Ledger, seconds_spent
from jaxadv.classifier import check_images, is_declared_stochastic, make_logits_fn, to_float
from jaxadv.crafting import Attack, check_attacks, expand, num_queries
from jaxadv.export import round_inside
from jaxadv.masking import signs_of_masking
from jaxadv.metrics import proportion
from jaxadv.outcomes import Outcome, attack_examples
from jaxadv.query_budget import accuracy_over_queries, cost_of_success
from jaxadv.types import Batch, UserError

_NUM_SAMPLES = 8  # examples whose adversarial images are kept


def run_battery(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    evaluation: ConfigDict,
    seed: int,
    *,
    progress: bool = True,
    ledger: Ledger | None = None,
    write_images: Callable[[str, dict[str, np.ndarray]], Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the results of all attacks on a split, and what became of each example.

    An example that is misclassified as it stands is broken under every attack and is not
    attacked: its adversary hands in the clean image. A stochastic model may classify it in one
    pass and not in the next, so there every example is attacked. Its accuracy is that of the mean
    softmax of `num_passes` passes, beside it stand single passes and the majority vote.

    Args:
      model: the classifier.
      weights: its variables.
      split: bytes and labels.
      evaluation: `config.evaluation`: the batch size, the passes and the attacks.
      seed: of the random starts and the noise.
      progress: whether to show a bar.
      ledger: where what takes long is kept, and gone on from.
      write_images: `(name, arrays)`, called for each attack that `evaluation.export` names.

    Returns:
      The entries `stochastic`, `num_passes`, `largest_class`, `clean`, `clean_noise`, `attacks`,
      `worst_case`, `aggregated_score` and `warnings` of evaluation.json, and the arrays of
      examples.npz.
    """
    check_images(split.images)
    if write_images and evaluation.export and split.images.dtype != np.uint8:
        raise UserError(
            f"config.evaluation.export needs images as bytes: these are {split.images.dtype}"
        )
    attacks = expand(evaluation.attacks)
    _check_attacks(attacks, model, weights, split)
    labels, n = np.asarray(split.labels), len(split.labels)
    stochastic = is_declared_stochastic(model)
    noises = {"on", *(attack["noise"] for attack in attacks.values())}
    num_passes = dict.fromkeys(noises, 1) | {"on": evaluation.num_passes if stochastic else 1}

    def run(attack: Attack, ids: np.ndarray, split: Batch = split, **options: Any) -> Outcome:
        return attack_examples(
            model, weights, split, attack, ids, evaluation.batch_size, seed, **options
        )

    clean = {
        noise: run({"noise": noise}, np.arange(n), num_passes=num_passes[noise])
        for noise in sorted(noises - {"on"})
    }
    # A model that is said to be deterministic is tried twice.
    clean["on"] = run({"noise": "on"}, np.arange(n), num_passes=max(num_passes["on"], 2))
    correct = {
        noise: np.flatnonzero(outcome.predictions == labels) for noise, outcome in clean.items()
    }
    varying = {"training", "on"} if stochastic else {"training"}
    attacked = correct | dict.fromkeys(varying, np.arange(n))
    sample = correct["on"][:_NUM_SAMPLES]
    examples: dict[str, Any] = {
        "labels": labels,
        "predictions/clean": clean["on"].predictions,
        "margin/clean": clean["on"].margins,
        "sample/ids": sample,
        "sample/images": clean["on"].images[sample],
    }
    results: dict[str, dict] = {}
    total = sum(len(attacked[attack["noise"]]) * num_queries(attack) for attack in attacks.values())
    with progress_bar(total, "Attack", disable=not progress) as bar:
        for name, attack in attacks.items():
            bar.set_postfix_str(name)
            began = time.monotonic() - seconds_spent(ledger, name)
            ids = attacked[attack["noise"]]
            passes = num_passes[attack["noise"]]
            found = run(attack, ids, num_passes=passes, bar=bar, ledger=ledger, name=name)
            whole = _fill_in(clean[attack["noise"]], ids, found)
            examples |= _examples_under(name, attack, whole, labels, sample)
            results[name] = {
                **attack,
                **_accuracies(whole, labels, passes),
                "queries": num_queries(attack),
                "attacked": len(ids),
                "unmoved": int(found.unmoved.sum()),
                "nonfinite_logits": int(whole.nonfinite.sum()),
                "seconds": time.monotonic() - began,
                **found.summary,
            }
            if write_images and name.rsplit("/", 1)[0] in evaluation.export:
                rounded: Any = round_inside(
                    whole.images, np.asarray(split.images), attack["eps"], attack["norm"]
                )
                as_bytes = split._replace(images=rounded)
                again = run({"noise": attack["noise"]}, np.arange(n), as_bytes, num_passes=passes)
                results[name]["uint8"] = _after_rounding(whole, again, labels)
                arrays = {"images": whole.images, "images_uint8": rounded, "labels": labels}
                write_images(name, arrays)
            if attack["attack"] in GRADIENT_FREE:
                results[name] |= _ledger(attack, whole, labels, correct[attack["noise"]])
    evaluated = {
        "stochastic": stochastic,
        "num_passes": num_passes["on"],
        "largest_class": float(np.bincount(labels).max() / n),
        "clean": {
            **_accuracies(clean["on"], labels, num_passes["on"]),
            "varying": int(clean["on"].varies.sum()),
            "nonfinite_logits": int(clean["on"].nonfinite.sum()),
        },
        "clean_noise": {
            noise: _accuracies(outcome, labels, 1)
            for noise, outcome in clean.items()
            if noise != "on"
        },
        "attacks": results,
        "worst_case": _worst_case(results, examples, clean["on"].predictions == labels),
        "aggregated_score": _aggregated_scores(results),
    }
    return {**evaluated, "warnings": signs_of_masking(evaluated)}, examples


def _examples_under(
    name: str, attack: Attack, outcome: Outcome, labels: np.ndarray, sample: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the arrays of examples.npz that tell what an attack made of each example."""
    arrays = {
        "survived": outcome.predictions == labels,
        "margin": outcome.margins,
        "sample/adversarial": outcome.images[sample],
        "sample/predictions": outcome.predictions[sample],
        **outcome.arrays,
    }
    if attack["attack"] in (*RESUMABLE, "autoattack"):
        arrays["queries"] = outcome.queries
    return {f"{array}/{name}": rows for array, rows in arrays.items()}


def _check_attacks(
    attacks: Mapping[str, Attack], model: nn.Module, weights: PyTree, split: Batch
) -> None:
    """Raises a UserError for what an attack would refuse, or the model's number of classes."""
    ids, image = jnp.zeros(1, jnp.int32), to_float(jnp.asarray(split.images[:1]))
    logits_fn = make_logits_fn(model, weights, ids)
    num_classes = jax.eval_shape(logits_fn, jax.random.key(0), image).shape[1]
    check_attacks(attacks, num_classes)


def progress_bar(total: int, title: str, *, disable: bool = False) -> tqdm:
    """Returns a bar over queries of one image each."""
    return tqdm(total=total, desc=title, unit="query", unit_scale=True, disable=disable)


def _fill_in(clean: Outcome, ids: np.ndarray, found: Outcome) -> Outcome:
    """Returns the outcome of all examples: what was found for those attacked, clean elsewhere."""
    if len(ids) == len(clean.predictions):
        return found
    n = len(clean.predictions)

    def fill(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        whole = np.array(old[:, : new.shape[1]] if new.ndim == 2 else old)
        whole[ids] = new
        return whole

    # What was not attacked took 0 steps and queries, and is at distance 0 from a mistake.
    arrays = {name: fill(np.zeros(n, rows.dtype), rows) for name, rows in found.arrays.items()}
    whole: dict[str, Any] = {
        name: fill(getattr(clean, name), rows)
        for name, rows in found._asdict().items()
        if isinstance(rows, np.ndarray)
    }
    return found._replace(**whole, arrays=arrays)


def _accuracies(outcome: Outcome, labels: np.ndarray, num_passes: int) -> dict[str, Any]:
    """Returns the accuracy and, where there are several passes, those of one and of their vote."""
    accuracy = proportion((outcome.predictions == labels).sum(), len(labels))
    if num_passes == 1:
        return accuracy
    single = (outcome.passes == labels[:, None]).mean(axis=0)
    # Passes whose logits are not finite vote for no class, -1.
    classes = np.arange(-1, int(outcome.passes.max()) + 1)
    votes = (outcome.passes[:, :, None] == classes).sum(axis=1)
    majority = classes[votes.argmax(axis=1)]
    return {
        **accuracy,
        "single_pass": {"mean": float(single.mean()), "std": float(single.std(ddof=1))},
        "majority": proportion((majority == labels).sum(), len(labels)),
    }


def _after_rounding(floats: Outcome, rounded: Outcome, labels: np.ndarray) -> dict[str, Any]:
    """Returns the accuracy on the images as bytes, and how many of the broken it gives back."""
    right, lost = rounded.predictions == labels, floats.predictions != labels
    return {**proportion(right.sum(), len(labels)), "lost": int((right & lost).sum())}


def _ledger(
    attack: Attack, outcome: Outcome, labels: np.ndarray, correct: np.ndarray
) -> dict[str, Any]:
    """Returns what the queries of a black-box attack bought, of all examples and of the correct."""
    broken = outcome.predictions != labels
    anytime = attack.get("early_stop", True)
    return {
        **cost_of_success(broken[correct], outcome.queries[correct]),
        "over_queries": accuracy_over_queries(
            broken, outcome.queries, attack["num_queries"], anytime=anytime
        ),
    }


def _worst_case(
    results: dict[str, dict], examples: dict[str, np.ndarray], correct: np.ndarray
) -> dict[str, dict]:
    """Returns, for each norm and eps, the share that survives all attacks at or below eps.

    Handing in the clean image is one of them. Attacks on the model without its noise, or with one
    draw of it, attack another model. What breaks an example at a smaller radius of the norm is
    inside the larger ball too.
    """
    attacks = {name: result for name, result in results.items() if result["noise"] == "on"}
    worst = {}
    for norm, eps in sorted({(result["norm"], result["eps"]) for result in attacks.values()}):
        names = [n for n, r in attacks.items() if r["norm"] == norm and r["eps"] <= eps]
        survived = np.logical_and.reduce(
            [correct, *(examples[f"survived/{name}"] for name in names)]
        )
        worst[f"{norm}/{eps:.4g}"] = {
            **proportion(survived.sum(), len(survived)),
            "norm": norm,
            "eps": eps,
            "attacks": names,
        }
    return worst


def _aggregated_scores(results: dict[str, dict]) -> dict[str, float]:
    """Returns the study's score of each attack with several radii: the sum of its accuracies."""
    by_name: dict[str, list[float]] = {}
    for name, result in results.items():
        by_name.setdefault(name.rsplit("/", 1)[0], []).append(result["accuracy"])
    return {name: sum(values) for name, values in by_name.items() if len(values) > 1}
