"""What becomes of examples under one attack: the compiled step, and its batches over devices."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks import ATTACKS
from jaxadv.classifier import make_logits_fn, to_float, without_noise
from jaxadv.losses import margin
from jaxadv.parallel import padded_batches, pmap_batches
from jaxadv.prng import stream
from jaxadv.types import Batch, ByteImages, Images, Labels, LogitsFn

Attack = dict[str, Any]
"""One attack at one eps: `attack` names the function, `noise` the noise of the model while it is
attacked and scored, and the other keys are arguments of the function."""

NOISES = ("on", "off", "fixed")

_TRACED = ("eps", "step_size", "num_steps", "num_noise_samples", "num_queries")


class Outcome(NamedTuple):
    """What an attack made of n examples, seen in a number of passes of the model.

    A pass is the model with one draw of its noise; a deterministic model needs one.

    Attributes:
      predictions: (n,) classes predicted by the mean softmax of all passes.
      margins: (n,) largest other logit minus the label's, of the logarithm of that mean; positive
        is misclassified.
      passes: (n, num_passes) classes predicted by each pass.
      varies: (n,) whether the margin differs between passes at all.
      unmoved: (n,) whether the adversarial image is the clean one.
      images: (n, height, width, channels) adversarial images.
    """

    predictions: np.ndarray | jax.Array
    margins: np.ndarray | jax.Array
    passes: np.ndarray | jax.Array
    varies: np.ndarray | jax.Array
    unmoved: np.ndarray | jax.Array
    images: np.ndarray | jax.Array


def attack_examples(
    model: nn.Module,
    weights: PyTree,
    split: Batch,
    attack: Attack,
    ids: np.ndarray,
    batch_size: int,
    seed: int,
    *,
    num_passes: int = 1,
    bar: tqdm | None = None,
) -> Outcome:
    """Attacks some examples of a split, in batches over all devices.

    The last batch is filled up with repetitions whose results are dropped. Random starts and
    the noise of an example follow from its number, so the batch size changes neither, and the
    noise of the passes is not that of the attack.

    Args:
      model: the classifier.
      weights: its variables, replicated or on the host.
      split: bytes and labels.
      attack: complete arguments as of `battery.expand`; without the key `attack` the images stay
        clean.
      ids: which examples, and the numbers that their random starts follow from.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      num_passes: of the model over each adversarial image.
      bar: advanced by the gradients taken.
    """
    traced = {name: attack[name] for name in _TRACED if name in attack}
    static = tuple((k, v) for k, v in attack.items() if k not in traced)
    step = _attack_step(model, static, num_passes)
    outcomes = []
    for batch, padded in padded_batches(ids, batch_size):
        outcome = step(weights, seed, traced, split.images[padded], split.labels[padded], padded)
        outcomes.append(Outcome(*(array[: len(batch)] for array in outcome)))
        if bar is not None:
            bar.update(len(batch) * num_queries(attack))
    return Outcome(*map(np.concatenate, zip(*outcomes, strict=True)))


def num_queries(attack: Attack) -> int:
    """Returns what an attack spends on an image: gradients, or passes where it takes none."""
    steps = attack.get("num_queries", attack.get("num_steps", 1))
    return steps * attack.get("num_restarts", 1) * attack.get("num_noise_samples", 1)


@cache
def _attack_step(
    model: nn.Module, static: tuple[tuple[str, Any], ...], num_passes: int
) -> Callable:
    """Returns the compiled step of one kind of attack; its budget is traced."""
    arguments = dict(static)
    noise = arguments.pop("noise", "on")
    attack_fn = ATTACKS[arguments.pop("attack")] if "attack" in arguments else None

    def step(
        weights: PyTree,
        seed: Int[Array, ""],
        traced: dict,
        images: ByteImages,
        labels: Labels,
        ids: Int[Array, "share"],
    ) -> Outcome:
        logits_fn = _noisy_logits_fn(model, weights, ids, noise, seed)
        clean = adversarial = to_float(images)
        if attack_fn is not None:
            takes_ids = "example_ids" in inspect.signature(attack_fn).parameters
            numbers = {"example_ids": ids} if takes_ids else {}
            key = stream(seed, "attack")
            adversarial = attack_fn(key, logits_fn, clean, labels, **traced, **arguments, **numbers)
        logits = _logits_of_passes(seed, logits_fn, adversarial, num_passes)
        mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0)
        of_passes = jax.vmap(margin, in_axes=(0, None))(logits, labels)
        return Outcome(
            predictions=mean.argmax(axis=-1),
            margins=margin(mean, labels),
            passes=logits.argmax(axis=-1).T,
            varies=(of_passes != of_passes[0]).any(axis=0),
            unmoved=(adversarial == clean).all(axis=(1, 2, 3)),
            images=adversarial,
        )

    return pmap_batches(step, num_replicated=3, num_batches=3, sharded_output=True)


def _noisy_logits_fn(
    model: nn.Module, weights: PyTree, ids: Int[Array, "share"], noise: str, seed: Int[Array, ""]
) -> LogitsFn:
    """Returns the model with its noise on, off, or fixed: the same draw at every pass."""
    if noise == "off":
        model = without_noise(model)
    logits_fn = make_logits_fn(model, weights, ids)
    if noise == "fixed":
        return lambda _, images: logits_fn(stream(seed, "noise"), images)
    return logits_fn


def _logits_of_passes(
    seed: Int[Array, ""], logits_fn: LogitsFn, images: Images, num_passes: int
) -> jax.Array:
    """Returns the logits (num_passes, batch, classes), each pass under noise of its own."""
    return lax.map(lambda i: logits_fn(stream(seed, "score", i), images), jnp.arange(num_passes))
