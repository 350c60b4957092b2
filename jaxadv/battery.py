"""A battery of attacks on a split: what becomes of each example, and what that amounts to."""

import inspect
import time
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks import ATTACKS
from jaxadv.classifier import make_logits_fn, to_float
from jaxadv.losses import margin
from jaxadv.masking import signs_of_masking
from jaxadv.metrics import proportion
from jaxadv.parallel import pmap_batches
from jaxadv.prng import stream
from jaxadv.types import Batch, ByteImages, Labels, UserError

Attack = dict[str, Any]
"""One attack at one eps: `attack` names the function, the other keys are its arguments."""

_TRACED = ("eps", "step_size", "num_steps")
_PER_EXAMPLE = ("targets", "example_ids")
_NUM_SAMPLES = 8  # examples whose adversarial images are kept


class Outcome(NamedTuple):
    """What an attack made of n examples.

    Attributes:
      predictions: (n,) classes predicted for the adversarial images.
      margins: (n,) largest other logit minus the label's; positive is misclassified.
      unmoved: (n,) whether the adversarial image is the clean one.
      images: (k, height, width, channels) adversarial images of the first k examples.
    """

    predictions: np.ndarray | jax.Array
    margins: np.ndarray | jax.Array
    unmoved: np.ndarray | jax.Array
    images: np.ndarray | jax.Array


def expand(attacks: ConfigDict) -> dict[str, Attack]:
    """Returns every attack of the config at every eps, as "name/eps", with all its arguments.

    Raises:
      UserError: an attack has an argument that its function does not know, or lacks one.
    """
    return {
        f"{name}/{eps:.4g}": {**_complete(name, attack), "eps": eps}
        for name, attack in attacks.items()
        for eps in attack.eps
    }


def run_battery(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    evaluation: ConfigDict,
    seed: int,
    *,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the results of all attacks on a split, and what became of each example.

    An example that is misclassified as it stands is broken under every attack and is not
    attacked: its adversary hands in the clean image.

    Args:
      model: the classifier.
      weights: its variables.
      split: bytes and labels.
      evaluation: `config.evaluation`: the batch size and the attacks.
      seed: of the random starts.
      progress: whether to show a bar.

    Returns:
      The entries `clean`, `attacks`, `worst_case`, `aggregated_score` and `warnings` of
      evaluation.json, and the arrays of examples.npz.
    """
    attacks = expand(evaluation.attacks)
    labels, n = split.labels, len(split.labels)
    clean = attack_examples(model, weights, split, None, np.arange(n), evaluation.batch_size, seed)
    standing = np.flatnonzero(clean.predictions == labels)
    sample = standing[:_NUM_SAMPLES]
    examples: dict[str, Any] = {
        "labels": labels,
        "predictions/clean": clean.predictions,
        "margin/clean": clean.margins,
        "sample/ids": sample,
        "sample/images": clean.images[sample],
    }
    results: dict[str, dict] = {}
    total = len(standing) * sum(map(num_gradients, attacks.values()))
    with progress_bar(total, "Attack", disable=not progress) as bar:
        for name, attack in attacks.items():
            bar.set_postfix_str(name)
            began = time.monotonic()
            outcome = attack_examples(
                model, weights, split, attack, standing, evaluation.batch_size, seed, bar
            )
            survived = np.zeros(n, bool)
            survived[standing] = outcome.predictions == labels[standing]
            margins = clean.margins.copy()
            margins[standing] = outcome.margins
            examples[f"survived/{name}"] = survived
            examples[f"margin/{name}"] = margins
            examples[f"sample/adversarial/{name}"] = outcome.images[: len(sample)]
            examples[f"sample/predictions/{name}"] = outcome.predictions[: len(sample)]
            results[name] = {
                **attack,
                **proportion(survived.sum(), n),
                "queries": num_gradients(attack),
                "unmoved": int(outcome.unmoved.sum()),
                "seconds": time.monotonic() - began,
            }
    return {
        "clean": proportion(len(standing), n),
        "attacks": results,
        "worst_case": _worst_case(results, examples),
        "aggregated_score": _aggregated_scores(results),
        "warnings": signs_of_masking(results),
    }, examples


def attack_examples(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    attack: Attack | None,
    ids: np.ndarray,
    batch_size: int,
    seed: int,
    bar: tqdm | None = None,
) -> Outcome:
    """Attacks some examples of a split, in batches over all devices.

    The last batch is filled up with repetitions whose results are dropped. Random starts
    follow from the number of an example, so the batch size does not change them, and the
    noise of the score is not that of the attack.

    Args:
      model: the classifier.
      weights: its variables, replicated or on the host.
      split: bytes and labels.
      attack: complete arguments as of `expand`; None leaves the images clean.
      ids: which examples, and the numbers that their random starts follow from.
      batch_size: over all devices together.
      seed: of the random starts.
      bar: advanced by the gradients taken.
    """
    arguments = attack or {}
    traced = {name: arguments[name] for name in _TRACED if name in arguments}
    static = tuple((k, v) for k, v in arguments.items() if k not in traced)
    step = _attack_step(model, static)
    outcomes = []
    for start in range(0, max(len(ids), 1), batch_size):  # one batch where there is no example
        batch = ids[start : start + batch_size]
        padded = np.resize(batch, batch_size)
        outcome = step(weights, seed, traced, split.images[padded], split.labels[padded], padded)
        outcomes.append(Outcome(*(array[: len(batch)] for array in outcome)))
        if bar is not None:
            bar.update(len(batch) * num_gradients(arguments))
    return Outcome(*map(np.concatenate, zip(*outcomes, strict=True)))


def num_gradients(attack: Attack) -> int:
    """Returns the gradient evaluations that an attack spends on an image."""
    steps = attack.get("num_steps", 1) * attack.get("num_restarts", 1)
    return steps * attack.get("num_noise_samples", 1)


def progress_bar(total: int, title: str, *, disable: bool = False) -> tqdm:
    """Returns a bar over gradient evaluations of one image each."""
    return tqdm(total=total, desc=title, unit="grad", unit_scale=True, disable=disable)


@cache
def _attack_step(model: nn.Module, static: tuple[tuple[str, Any], ...]) -> Callable:
    """Returns the compiled step of one kind of attack; its budget is traced."""
    arguments = dict(static)
    attack_fn = ATTACKS[arguments.pop("attack")] if arguments else None

    def step(
        weights: PyTree,
        seed: Int[jax.Array, ""],
        traced: dict,
        images: ByteImages,
        labels: Labels,
        ids: Int[jax.Array, "share"],
    ) -> Outcome:
        logits_fn = make_logits_fn(model, weights)
        clean = adversarial = to_float(images)
        if attack_fn is not None:
            key = stream(seed, "attack")
            if "example_ids" in inspect.signature(attack_fn).parameters:
                arguments["example_ids"] = ids
            adversarial = attack_fn(key, logits_fn, clean, labels, **traced, **arguments)
        logits = logits_fn(stream(seed, "score"), adversarial)
        return Outcome(
            predictions=logits.argmax(axis=-1),
            margins=margin(logits, labels),
            unmoved=(adversarial == clean).all(axis=(1, 2, 3)),
            images=adversarial,
        )

    return pmap_batches(step, num_replicated=3, num_batches=3, sharded_output=True)


def _complete(name: str, attack: ConfigDict) -> Attack:
    """Returns the arguments of an attack with the defaults of its function filled in."""
    parameters = {
        parameter.name: parameter.default
        for parameter in inspect.signature(ATTACKS[attack.attack]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _PER_EXAMPLE
    }
    given = {key: value for key, value in attack.items() if key != "attack"}
    for key in given:
        if key not in parameters:
            near = get_close_matches(key, parameters, n=1, cutoff=0.0)[0]
            raise UserError(
                f"config.evaluation.attacks.{name}.{key} is no argument of {attack.attack}: "
                f"did you mean {near}?"
            )
    arguments = {"attack": attack.attack, **parameters, **given}
    missing = [key for key, value in arguments.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"config.evaluation.attacks.{name} lacks {', '.join(missing)}")
    return arguments


def _worst_case(results: dict[str, dict], examples: dict[str, np.ndarray]) -> dict[str, dict]:
    """Returns, for each norm and eps, the share that survives all attacks at or below eps.

    What breaks an example at a smaller radius of the norm is inside the larger ball too.
    """
    worst = {}
    for norm, eps in sorted({(result["norm"], result["eps"]) for result in results.values()}):
        names = [n for n, r in results.items() if r["norm"] == norm and r["eps"] <= eps]
        survived = np.logical_and.reduce([examples[f"survived/{name}"] for name in names])
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
