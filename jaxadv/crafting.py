"""Attacks over all devices: each kind is compiled once for a size of batch."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks import ATTACKS, GRADIENT_FREE, RESUMABLE, Queried
from jaxadv.classifier import make_logits_fn, to_float, without_noise
from jaxadv.parallel import padded_batches, pmap_batches
from jaxadv.prng import stream
from jaxadv.types import Batch, ByteImages, Images, Labels, LogitsFn, UserError

Attack = dict[str, Any]
"""One attack at one eps: `attack` names the function, `noise` the noise of the model while it is
attacked and scored, and the other keys are arguments of the function."""

_PER_EXAMPLE = ("targets", "starts", "example_ids", "resume")
NOISES = ("on", "off", "fixed")

_TRACED = (
    "eps", "step_size", "num_steps", "num_noise_samples", "num_queries", "sigma", "momentum",
    "min_step_size", "share", "label_radius",
)  # fmt: skip
_SCHEDULED = ("apgd", "fab")  # with a compilation for each number of steps
# Queries of each image before those that are fooled leave.
_SEGMENT, _SEGMENT_WITH_GRADIENTS = 500, 25


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


def craft(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    attack: Attack,
    ids: np.ndarray,
    batch_size: int,
    seed: int,
    bar: tqdm | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns adversarial images (n, height, width, channels) and the queries (n,) they took.

    The last batch is filled up with repetitions whose results are dropped. Random starts and
    the noise of an example follow from its number, so the batch size changes neither.

    Args:
      model: the classifier.
      weights: its variables, replicated or on the host.
      split: bytes and labels.
      attack: complete arguments as of `expand`.
      ids: which examples, and the numbers that their random starts follow from.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      bar: advanced by the queries.
    """
    names = set(_TRACED) - {"num_steps"} if attack["attack"] in _SCHEDULED else _TRACED
    traced = {name: attack[name] for name in names if attack.get(name) is not None}
    static = tuple((k, v) for k, v in attack.items() if k not in names)
    step = _attack_step(model, static)

    def run(budget: dict, numbers: np.ndarray, resume: Queried | None) -> Any:
        examples = split.images[numbers], split.labels[numbers], numbers
        return step(weights, seed, {**traced, **budget}, *examples, resume)

    if attack["attack"] in RESUMABLE:
        found = _query_survivors(run, attack, ids, batch_size, bar)
        return np.asarray(found.images), np.asarray(found.queries)
    images = []
    for batch, padded in padded_batches(ids, batch_size):
        images.append(run({}, padded, None)[: len(batch)])
        _advance(bar, len(batch) * num_queries(attack))
    return np.concatenate(images), np.full(len(ids), num_queries(attack))


def num_queries(attack: Attack) -> int:
    """Returns what an attack may spend on an image: gradients, or passes where it takes none."""
    if attack.get("num_queries") is not None:
        return attack["num_queries"]
    passes = attack.get("num_steps", 1)
    if attack["attack"] == "apgd":
        passes += 1  # at the start
    if attack["attack"] == "fab":
        passes *= 2  # a gradient and a look
    attempts = attack.get("num_restarts", 1) * max(attack.get("num_targets", 0), 1)
    return passes * attempts * attack.get("num_noise_samples", 1)


def noisy_logits_fn(
    model: nn.Module, weights: PyTree, ids: Int[Array, "share"], noise: str, seed: Int[Array, ""]
) -> LogitsFn:
    """Returns the model with its noise on, off, or fixed: the same draw at every pass."""
    if noise == "off":
        model = without_noise(model)
    logits_fn = make_logits_fn(model, weights, ids)
    if noise == "fixed":
        return lambda _, images: logits_fn(stream(seed, "noise"), images)
    return logits_fn


def _complete(name: str, attack: ConfigDict) -> Attack:
    """Returns the arguments of an attack with the defaults of its function filled in."""
    parameters = {
        parameter.name: parameter.default
        for parameter in inspect.signature(ATTACKS[attack.attack]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _PER_EXAMPLE
    }
    given = {key: value for key, value in attack.items() if key != "attack"}
    for key in given:
        if key not in (*parameters, "noise"):
            near = get_close_matches(key, parameters, n=1, cutoff=0.0)[0]
            raise UserError(
                f"config.evaluation.attacks.{name}.{key} is no argument of {attack.attack}: "
                f"did you mean {near}?"
            )
    arguments = {"attack": attack.attack, "noise": "on", **parameters, **given}
    missing = [key for key, value in arguments.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"config.evaluation.attacks.{name} lacks {', '.join(missing)}")
    return arguments


def _query_survivors(
    run: Callable, attack: Attack, ids: np.ndarray, batch_size: int, bar: tqdm | None
) -> Queried:
    """Returns what a search finds, in segments after which the survivors close ranks.

    All examples take their steps together, so that no batch waits for another's stragglers and
    what an example meets does not depend on who was fooled before.
    """
    budget = num_queries(attack)
    segment = _SEGMENT if attack["attack"] in GRADIENT_FREE else _SEGMENT_WITH_GRADIENTS
    if not attack.get("early_stop", True):
        segment = max(budget, 1)
    found: Any = None
    left = np.arange(len(ids))
    for limit in [*range(segment, budget, segment), budget]:
        parts = []
        for rows, padded in padded_batches(left, batch_size, halve=True):
            numbers = np.resize(ids[rows], len(padded))
            resume = None if found is None else _rows(found, padded)
            parts.append(_rows(run({"num_queries": limit}, numbers, resume), slice(len(rows))))
        part = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        before = 0 if found is None else found.queries[left].sum()
        saved = (budget - part.queries)[part.success].sum()
        _advance(bar, int(part.queries.sum() - before + saved))
        found = part if found is None else _put(found, left, part)
        left = np.flatnonzero(~found.success)
        if not len(left):
            break
    return found


def _rows(found: Queried, rows: np.ndarray | slice) -> Queried:
    return jax.tree.map(lambda array: array[rows], found)


def _put(found: Queried, rows: np.ndarray, part: Queried) -> Queried:
    jax.tree.map(lambda array, new: array.__setitem__(rows, new), found, part)
    return found


def _advance(bar: tqdm | None, count: int) -> None:
    if bar is not None:
        bar.update(count)


@cache
def _attack_step(model: nn.Module, static: tuple[tuple[str, Any], ...]) -> Callable:
    """Returns the compiled step of one kind of attack; its budget is traced."""
    arguments = dict(static)
    noise, attack_fn = arguments.pop("noise", "on"), ATTACKS[arguments.pop("attack")]
    known = inspect.signature(attack_fn).parameters

    def step(
        weights: PyTree,
        seed: Int[Array, ""],
        traced: dict,
        images: ByteImages,
        labels: Labels,
        ids: Int[Array, "share"],
        resume: Queried | None,
    ) -> Images | Queried:
        logits_fn = noisy_logits_fn(model, weights, ids, noise, seed)
        rows = {"example_ids": ids, "resume": resume}
        return attack_fn(
            stream(seed, "attack"),
            logits_fn,
            to_float(images),
            labels,
            **traced,
            **arguments,
            **{name: value for name, value in rows.items() if name in known},
        )

    return pmap_batches(step, num_replicated=3, num_batches=4, sharded_output=True)
