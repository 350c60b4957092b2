"""Run attacks of a suite on a classifier, and score the adversarial images."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks import AttackResult
from jaxadv.attacks.autoattack import run_version
from jaxadv.attacks.batching import (
    Examples,
    Model,
    ResumeCache,
    attack_in_batches,
    count_classes,
    map_batches,
    search_survivors,
)
from jaxadv.attacks.black_box import TracedBlackBox
from jaxadv.core.devices import padded_batches, platform, whole_batch
from jaxadv.core.images import to_float
from jaxadv.core.logits import finite_logits, predicted_class
from jaxadv.core.losses import margin
from jaxadv.core.rng import stream
from jaxadv.core.types import ByteImages, HostBatch, Images, Labels, LogitsFn
from jaxadv.evaluation.attack_suites import ConfiguredAttack


def run_attack(
    model: Model,
    split: HostBatch,
    attack: ConfiguredAttack,
    ids: Int[np.ndarray, "n"],
    batch_size: int,
    seed: int,
    *,
    attack_all: bool = False,
    bar: tqdm | None = None,
    cache: ResumeCache | None = None,
) -> AttackResult:
    """Run an attack on some examples of a split.

    The last batch is padded with repeated examples, whose results are dropped. Random starts and
    the noise of an example follow from its number, so that results do not depend on the batch size.

    Args:
      model: the classifier, with the noise of the attack.
      split: images, as uint8 or as floats in [0, 1], and labels.
      attack: the attack.
      ids: positions of the examples in the split.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      attack_all: whether AutoAttack also attacks examples that one forward pass misclassifies, as
        it should if the model is stochastic.
      bar: progress bar over queries.
      cache: where intermediate results are kept, for an evaluation that is interrupted.

    Returns:
      The result in numpy arrays. That of AutoAttack has an `AutoAttackResult` as its `extras`.
    """
    key = stream(seed, "attack")
    examples = Examples(_float_images(split, ids, batch_size), split.labels[ids], ids)
    arguments = {"eps": attack.eps, **attack.arguments}
    size = whole_batch(batch_size, len(split.labels))
    if platform() != "cpu":  # where searches take whole batches
        batch_size = size
    options: dict[str, Any] = {"batch_size": batch_size, "bar": bar, "cache": cache}
    if attack.spec.is_ensemble:
        num_classes = count_classes(model, examples, batch_size)
        prefix = f"{attack.key}/"
        return run_version(
            key, model, examples, num_classes, **arguments, attack_all=attack_all, prefix=prefix,
            **options,
        ).to_attack_result()  # fmt: skip
    if attack.spec.resumable:
        return search_survivors(
            attack.spec, key, model, examples, arguments, name=attack.key, **options
        )
    options["batch_size"] = size
    return attack_in_batches(
        attack.spec, key, model, examples, arguments, name=attack.key, **options
    )


class Scores(NamedTuple):
    """Predictions for n images over several forward passes of the model.

    Each forward pass has its own noise sample; a deterministic model needs one forward pass.

    Attributes:
      predictions: classes predicted by the mean softmax over all forward passes; -1 where logits
        of one of them are NaN or infinite, which counts as misclassified.
      margins: largest other logit minus that of the label, of the logarithm of that mean; positive
        is misclassified.
      pass_predictions: classes predicted by each forward pass, or -1.
      nonfinite: whether the logits of a forward pass are NaN or infinite.
      varies: whether the margin differs between forward passes.
      unmoved: whether the image equals the clean one.
    """

    predictions: Int[np.ndarray, "n"]
    margins: Float[np.ndarray, "n"]
    pass_predictions: Int[np.ndarray, "n passes"]
    nonfinite: Bool[np.ndarray, "n"]
    varies: Bool[np.ndarray, "n"]
    unmoved: Bool[np.ndarray, "n"]


def score_images(
    model: Model,
    split: HostBatch,
    images: Float[np.ndarray, "n height width channels"] | None,
    ids: Int[np.ndarray, "n"],
    batch_size: int,
    seed: int,
    *,
    num_passes: int = 1,
    bar: tqdm | None = None,
) -> Scores:
    """Classify images over several forward passes, with noise that no attack has seen.

    Args:
      model: the classifier, with one of its noises.
      split: clean images, as uint8 or as floats in [0, 1], and labels.
      images: floats in [0, 1], one for each of `ids`; None: the clean images.
      ids: positions of the examples in the split.
      batch_size: over all devices together.
      seed: of the noise.
      num_passes: forward passes for each image.
      bar: progress bar over forward passes.
    """
    if images is None:
        images = _float_images(split, ids, batch_size)
    step = _score_step(model.make_logits_fn, num_passes, model.on_host)
    size = whole_batch(batch_size, len(split.labels))
    scores = []
    for rows, padded in padded_batches(np.arange(len(ids)), size):
        if isinstance(model.context, TracedBlackBox):
            padded = rows  # each image is a query
        numbers = np.resize(ids[rows], len(padded))
        batch = np.resize(images[rows], (len(padded), *images.shape[1:]))
        score = step(
            model.context_for(len(padded)),
            seed,
            batch,
            split.images[numbers],
            split.labels[numbers],
            numbers,
        )
        scores.append([array[: len(rows)] for array in score])
        if bar is not None:
            bar.update(len(rows) * num_passes)
    return Scores(*map(np.concatenate, zip(*scores, strict=True)))


def _float_images(
    split: HostBatch, ids: Int[np.ndarray, "n"], batch_size: int
) -> Float[np.ndarray, "n height width channels"]:
    """Convert images of a split to floats in [0, 1], in batches of one shape.

    JAX compiles each operation for each shape and keeps it in memory. In training, the number of
    correctly classified images differs from epoch to epoch.
    """
    size = whole_batch(batch_size, len(split.labels))
    return np.concatenate(
        [
            np.asarray(to_float(jnp.asarray(split.images[padded])))[: len(rows)]
            for rows, padded in padded_batches(ids, size)
        ]
    )


@cache
def _score_step(make_logits_fn: Callable, num_passes: int, on_host: bool) -> Callable:
    """Return the compiled computation of `Scores`."""

    def step(
        context: PyTree,
        seed: Int[Array, ""],
        images: Images,
        clean: ByteImages | Images,
        labels: Labels,
        ids: Int[Array, "share"],
    ) -> tuple[Array, ...]:
        logits_fn = make_logits_fn(context, ids)
        # At full precision, like the success checks of searches.
        with jax.default_matmul_precision("highest"):
            logits = _logits_of_passes(seed, logits_fn, images, num_passes)
        mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0)
        pass_margins = jax.vmap(margin, in_axes=(0, None))(logits, labels)
        return (
            predicted_class(mean),
            margin(mean, labels),
            predicted_class(logits).T,
            jnp.isnan(mean).any(axis=-1),
            (pass_margins != pass_margins[0]).any(axis=0),
            (images == to_float(clean)).all(axis=(1, 2, 3)),
        )

    return map_batches(step, on_host, num_replicated=2, num_batches=4)


def _logits_of_passes(
    seed: Int[Array, ""], logits_fn: LogitsFn, images: Images, num_passes: int
) -> Float[Array, "passes batch classes"]:
    """Return the logits of each forward pass; those of an image with NaN or inf are all NaN."""

    def one_pass(i: Int[Array, ""]) -> jax.Array:
        return finite_logits(logits_fn(stream(seed, "score", i), images))

    return lax.map(one_pass, jnp.arange(num_passes))
