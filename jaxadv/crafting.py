"""Attacks of a config on a trained model."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks import ATTACKS, CHECKS, RESUMABLE, AutoAttacked, budgets
from jaxadv.attacks.autoattack import most_queries, run_version
from jaxadv.attacks.batches import (
    Examples,
    Ledger,
    Model,
    attack_in_batches,
    count_classes,
    search_survivors,
)
from jaxadv.attacks.budgets import segment
from jaxadv.classifier import (
    is_declared_stochastic,
    make_logits_fn,
    make_training_logits_fn,
    to_float,
    without_noise,
)
from jaxadv.prng import stream
from jaxadv.types import Batch, LogitsFn, UserError

Attack = dict[str, Any]
"""One attack at one eps: `attack` names the function, `noise` the noise of the model while it is
attacked and scored, and the other keys are arguments of the function."""

# Arguments that an evaluation gives itself.
_ITS_OWN = (
    "targets", "starts", "example_ids", "resume", "batch_size", "progress", "ledger",
)  # fmt: skip
NOISES = ("on", "off", "fixed", "training")


class Crafted(NamedTuple):
    """What an attack made of n examples.

    Attributes:
      images: (n, height, width, channels) adversarial images.
      queries: (n,) gradients that it took, or passes where it counts them.
      arrays: what else is known of each example, arrays of n rows.
      summary: what else is known of the attack.
    """

    images: np.ndarray
    queries: np.ndarray
    arrays: dict[str, np.ndarray]
    summary: dict[str, Any]


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


def check_attacks(attacks: Mapping[str, Attack], num_classes: int) -> None:
    """Raises a UserError that names the key of the first attack that would be refused.

    Args:
      attacks: as of `expand`.
      num_classes: of the model.
    """
    for name, attack in attacks.items():
        key = f"evaluation.attacks.{name.rsplit('/', 1)[0]}"
        check_attack(key, attack["attack"], attack, num_classes)


def check_attack(key: str, attack: str, arguments: Mapping[str, Any], num_classes: int) -> None:
    """Raises a UserError that names a key of the config for what the attack itself would refuse."""
    try:
        CHECKS[attack](dict(arguments), num_classes)
    except ValueError as error:
        raise UserError(f"config.{key}.{error}") from None


def craft(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    attack: Attack,
    ids: np.ndarray,
    batch_size: int,
    seed: int,
    bar: tqdm | None = None,
    ledger: Ledger | None = None,
    name: str = "",
) -> Crafted:
    """Returns the adversarial images of some examples of a split, and what they took.

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
      ledger: where what takes long is kept, and gone on from.
      name: of the attack in the ledger.
    """
    arguments = dict(attack)
    attack_fn = ATTACKS[arguments.pop("attack")]
    key = stream(seed, "attack")
    victim = Model(_logits_fn_maker(model, arguments.pop("noise", "on")), (weights, seed))
    examples = Examples(
        np.asarray(to_float(jnp.asarray(split.images[ids]))), np.asarray(split.labels)[ids], ids
    )
    if attack["attack"] == "autoattack":
        num_classes = count_classes(victim, examples, batch_size)
        return _from_autoattack(
            run_version(
                key, victim, examples, num_classes, **arguments, batch_size=batch_size, bar=bar,
                ledger=ledger, prefix=f"{name}/", attack_all=is_declared_stochastic(model),
            )
        )  # fmt: skip
    if attack["attack"] in RESUMABLE:
        arguments.pop("num_queries", None)
        found: Any = search_survivors(
            attack_fn,
            key,
            victim,
            examples,
            arguments,
            budget=num_queries(attack),
            segment=segment(attack["attack"], attack),
            batch_size=batch_size,
            bar=bar,
            ledger=ledger,
            name=name,
        )
        arrays = {"distances": found.memory.distance} if attack["attack"] == "fab" else {}
        return Crafted(found.images, found.queries, arrays, _count_nonfinite(found))
    ascent: Any = attack_in_batches(
        attack_fn,
        key,
        victim,
        examples,
        arguments,
        queries=num_queries(attack),
        batch_size=batch_size,
        bar=bar,
        ledger=ledger,
        name=name,
    )
    queries = np.full(len(ids), num_queries(attack))
    return Crafted(ascent.images, queries, {}, _count_nonfinite(ascent))


def _count_nonfinite(found: Any) -> dict[str, int]:
    """Returns how many gradients were not finite, and of how many images."""
    return {
        "nonfinite_gradients": int(found.nonfinite.sum()),
        "nonfinite_gradient_images": int((found.nonfinite > 0).sum()),
    }


def num_queries(attack: Attack) -> int:
    """Returns what an attack may spend on an image: gradients, or passes where it counts them."""
    if attack["attack"] == "autoattack":
        return most_queries(attack["version"])
    return budgets.num_queries(attack["attack"], attack)


@cache
def _logits_fn_maker(model: nn.Module, noise: str) -> Callable:
    """Returns how the logits of a model follow from weights, a seed and numbers of examples."""
    return lambda context, ids: noisy_logits_fn(model, context[0], ids, noise, context[1])


def _from_autoattack(found: AutoAttacked) -> Crafted:
    stages = [
        {
            "name": name,
            "broken": int((found.broken_by == number).sum()),
            "unconfirmed": found.unconfirmed[name],
            "seconds": found.seconds[name],
        }
        for number, name in enumerate(found.attacks[1:], start=1)
    ]
    arrays = {
        name: getattr(found, name) for name in ("broken_by", "steps", "gradients", "distances")
    }
    summary = {"stages": stages, "flags": found.flags, **_count_nonfinite(found)}
    return Crafted(found.images, found.queries, arrays, summary)


def noisy_logits_fn(
    model: nn.Module,
    weights: PyTree,
    ids: Int[Array, "share"],
    noise: str,
    seed: int | Int[Array, ""],
) -> LogitsFn:
    """Returns the model with its noise on, off, or fixed: the same draw at every pass.

    With "training" it is the model as in training, dropout and batch statistics included.
    """
    if noise == "training":
        return make_training_logits_fn(model, weights, ids)
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
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _ITS_OWN
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
