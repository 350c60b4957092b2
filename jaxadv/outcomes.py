"""What becomes of examples under one attack, seen in many passes of the model."""

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

from jaxadv.attacks.batches import Ledger
from jaxadv.classifier import to_float
from jaxadv.crafting import Attack, Crafted, craft, noisy_logits_fn
from jaxadv.logits import finite_logits, predicted_class
from jaxadv.losses import margin
from jaxadv.parallel import padded_batches, pmap_batches
from jaxadv.prng import stream
from jaxadv.types import Batch, ByteImages, Images, Labels, LogitsFn


class Outcome(NamedTuple):
    """What an attack made of n examples, seen in a number of passes of the model.

    A pass is the model with one draw of its noise; a deterministic model needs one.

    Attributes:
      predictions: (n,) classes predicted by the mean softmax of all passes; -1 where the logits of
        one of them are not finite, which counts as misclassified.
      margins: (n,) largest other logit minus the label's, of the logarithm of that mean; positive
        is misclassified.
      passes: (n, num_passes) classes predicted by each pass, or -1.
      nonfinite: (n,) whether the logits of a pass are not finite.
      varies: (n,) whether the margin differs between passes at all.
      unmoved: (n,) whether the adversarial image is the clean one.
      images: (n, height, width, channels) adversarial images.
      queries: (n,) gradients that the attack took, or passes where it counts them.
      arrays: what else the attack knows of each example, arrays of n rows.
      summary: what else it knows of itself.
    """

    predictions: np.ndarray
    margins: np.ndarray
    passes: np.ndarray
    nonfinite: np.ndarray
    varies: np.ndarray
    unmoved: np.ndarray
    images: np.ndarray
    queries: np.ndarray
    arrays: dict[str, np.ndarray]
    summary: dict[str, Any]


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
    ledger: Ledger | None = None,
    name: str = "",
) -> Outcome:
    """Attacks some examples of a split and scores what comes of it.

    The noise of the passes is not that of the attack.

    Args:
      model: the classifier.
      weights: its variables, replicated or on the host.
      split: bytes and labels.
      attack: complete arguments as of `crafting.expand`; without the key `attack` the images stay
        clean.
      ids: which examples, and the numbers that their randomness follows from.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      num_passes: of the model over each adversarial image.
      bar: advanced by the queries taken.
      ledger: where what takes long is kept, and gone on from.
      name: of the attack in the ledger.
    """
    if "attack" in attack:
        crafted = craft(model, weights, split, attack, ids, batch_size, seed, bar, ledger, name)
    else:
        images = np.asarray(to_float(jnp.asarray(split.images[ids])))
        crafted = Crafted(images, np.zeros(len(ids), int), {}, {})
    step = _score_step(model, attack.get("noise", "on"), num_passes)
    scores = []
    for rows, padded in padded_batches(np.arange(len(ids)), batch_size):
        numbers = np.resize(ids[rows], len(padded))
        shown = np.resize(crafted.images[rows], (len(padded), *crafted.images.shape[1:]))
        score = step(weights, seed, shown, split.images[numbers], split.labels[numbers], numbers)
        scores.append([array[: len(rows)] for array in score])
    seen: Any = map(np.concatenate, zip(*scores, strict=True))
    return Outcome(*seen, **crafted._asdict())


@cache
def _score_step(model: nn.Module, noise: str, num_passes: int) -> Callable:
    """Returns the compiled scoring of images: the first six attributes of an `Outcome`."""

    def step(
        weights: PyTree,
        seed: Int[Array, ""],
        images: Images,
        clean: ByteImages | Images,
        labels: Labels,
        ids: Int[Array, "share"],
    ) -> tuple[Array, ...]:
        logits_fn = noisy_logits_fn(model, weights, ids, noise, seed)
        # At full precision, as searches look at their candidates.
        with jax.default_matmul_precision("highest"):
            logits = _logits_of_passes(seed, logits_fn, images, num_passes)
        mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0)
        of_passes = jax.vmap(margin, in_axes=(0, None))(logits, labels)
        return (
            predicted_class(mean),
            margin(mean, labels),
            predicted_class(logits).T,
            jnp.isnan(mean).any(axis=-1),
            (of_passes != of_passes[0]).any(axis=0),
            (images == to_float(clean)).all(axis=(1, 2, 3)),
        )

    return pmap_batches(step, num_replicated=2, num_batches=4, sharded_output=True)


def _logits_of_passes(
    seed: Int[Array, ""], logits_fn: LogitsFn, images: Images, num_passes: int
) -> jax.Array:
    """Returns the logits (num_passes, batch, classes), each pass under noise of its own.

    Those of an image that are not finite are NaN.
    """

    def one_pass(i: Int[Array, ""]) -> jax.Array:
        return finite_logits(logits_fn(stream(seed, "score", i), images))

    return lax.map(one_pass, jnp.arange(num_passes))
