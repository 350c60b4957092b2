"""Run attacks of a suite on a trained classifier, and score the adversarial images."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxadv.attacks import ATTACKS, AttackResult, AttackSpec
from jaxadv.attacks.autoattack import run_version
from jaxadv.attacks.batching import (
    Examples,
    Model,
    ResumeCache,
    attack_in_batches,
    count_classes,
    search_survivors,
)
from jaxadv.core.devices import padded_batches, pmap_batches
from jaxadv.core.images import to_float
from jaxadv.core.logits import finite_logits, predicted_class
from jaxadv.core.losses import margin
from jaxadv.core.results import attack_key
from jaxadv.core.rng import stream
from jaxadv.core.types import ByteImages, HostBatch, Images, Labels, LogitsFn, UserError
from jaxadv.models.classifier import (
    is_declared_stochastic,
    make_logits_fn,
    make_training_logits_fn,
    without_noise,
)

NOISES = ("on", "off", "fixed", "training")


@dataclass(frozen=True)
class ConfiguredAttack:
    """One attack of a suite at one radius.

    Attributes:
      name: of the attack in the suite; it is the same at all radii.
      attack: name of the function in `jaxadv.attacks`.
      eps: radius in units of the pixel range.
      noise: noise of the model during attack and scoring, one of `NOISES`.
      arguments: the other arguments of the function, complete.
    """

    name: str
    attack: str
    eps: float
    noise: str = "on"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the name of the attack at this radius in the files: "pgd40/0.03"."""
        return attack_key(self.name, self.eps)

    @property
    def spec(self) -> AttackSpec:
        """Return the specification of the attack's function."""
        return ATTACKS[self.attack]

    @property
    def max_queries(self) -> int:
        """Return the most gradients, or forward passes of a black-box attack, per example."""
        return self.spec.max_queries(self.arguments)


def expand_suite(attacks: ConfigDict) -> list[ConfiguredAttack]:
    """Return every attack of `config.evaluation.attacks` at each of its radii.

    Raises:
      UserError: an attack has an unknown argument or lacks one.
    """
    return [
        ConfiguredAttack(name, attack.attack, float(eps), attack.get("noise", "on"), arguments)
        for name, attack in attacks.items()
        for arguments in (_complete_arguments(name, attack),)
        for eps in attack.eps
    ]


def _complete_arguments(name: str, attack: ConfigDict) -> dict[str, Any]:
    """Return the arguments of an attack except its radius, with defaults filled in."""
    defaults = ATTACKS[attack.attack].defaults
    given = {key: value for key, value in attack.items() if key not in ("attack", "noise")}
    for key in given:
        if key not in defaults:
            near = get_close_matches(key, defaults, n=1, cutoff=0.0)[0]
            raise UserError(
                f"config.evaluation.attacks.{name}.{key} is not an argument of {attack.attack}: "
                f"did you mean {near}?"
            )
    arguments = {**defaults, **given}
    missing = [key for key, value in arguments.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"config.evaluation.attacks.{name} lacks {', '.join(missing)}")
    del arguments["eps"]
    return arguments


def check_suite(attacks: Iterable[ConfiguredAttack], num_classes: int) -> None:
    """Check the arguments of all attacks of a suite.

    Raises:
      UserError: names the key of the config.
    """
    for attack in attacks:
        arguments = {"eps": attack.eps, **attack.arguments}
        check_attack(f"evaluation.attacks.{attack.name}", attack.attack, arguments, num_classes)


def check_attack(key: str, attack: str, arguments: Mapping[str, Any], num_classes: int) -> None:
    """Check the arguments of an attack that a config has under `key`.

    Raises:
      UserError: names the key of the config.
    """
    try:
        ATTACKS[attack].check(dict(arguments), num_classes)
    except ValueError as error:
        raise UserError(f"config.{key}.{error}") from None


def run_attack(
    model: nn.Module,
    weights: PyTree,
    split: HostBatch,
    attack: ConfiguredAttack,
    ids: Int[np.ndarray, "n"],
    batch_size: int,
    seed: int,
    *,
    bar: tqdm | None = None,
    cache: ResumeCache | None = None,
) -> AttackResult:
    """Run an attack on some examples of a split.

    The last batch is padded with repeated examples, whose results are dropped. Random starts and
    the noise of an example follow from its number, so that results do not depend on the batch size.

    Args:
      model: the classifier.
      weights: its variables, replicated or on the host.
      split: images, as uint8 or as floats in [0, 1], and labels.
      attack: the attack.
      ids: positions of the examples in the split.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      bar: progress bar over queries.
      cache: where intermediate results are kept, for an evaluation that is interrupted.

    Returns:
      The result in numpy arrays. That of AutoAttack has an `AutoAttackResult` as its `extras`.
    """
    key = stream(seed, "attack")
    target = Model(_logits_fn_maker(model, attack.noise), (weights, seed))
    examples = Examples(
        np.asarray(to_float(jnp.asarray(split.images[ids]))), split.labels[ids], ids
    )
    arguments = {"eps": attack.eps, **attack.arguments}
    options: dict[str, Any] = {"batch_size": batch_size, "bar": bar, "cache": cache}
    if attack.spec.is_ensemble:
        num_classes = count_classes(target, examples, batch_size)
        attack_all = is_declared_stochastic(model)
        prefix = f"{attack.key}/"
        return run_version(
            key, target, examples, num_classes, **arguments, attack_all=attack_all, prefix=prefix,
            **options,
        ).to_attack_result()  # fmt: skip
    if attack.spec.resumable:
        return search_survivors(
            attack.spec, key, target, examples, arguments, name=attack.key, **options
        )
    return attack_in_batches(
        attack.spec, key, target, examples, arguments, name=attack.key, **options
    )


@cache
def _logits_fn_maker(model: nn.Module, noise: str) -> Callable:
    return lambda context, ids: _noisy_logits_fn(model, context[0], ids, noise, context[1])


def _noisy_logits_fn(
    model: nn.Module,
    weights: PyTree,
    ids: Int[Array, "share"],
    noise: str,
    seed: int | Int[Array, ""],
) -> LogitsFn:
    """Return the model with its noise on, off or fixed, or as it is in training.

    "fixed" is the same noise sample in every forward pass; "training" includes dropout and the
    statistics of the batch.
    """
    if noise == "training":
        return make_training_logits_fn(model, weights, ids)
    if noise == "off":
        model = without_noise(model)
    logits_fn = make_logits_fn(model, weights, ids)
    if noise == "fixed":
        return lambda _, images: logits_fn(stream(seed, "noise"), images)
    return logits_fn


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
    model: nn.Module,
    weights: PyTree,
    split: HostBatch,
    images: Float[np.ndarray, "n height width channels"] | None,
    ids: Int[np.ndarray, "n"],
    batch_size: int,
    seed: int,
    *,
    noise: str = "on",
    num_passes: int = 1,
) -> Scores:
    """Classify images over several forward passes, with noise that no attack has seen.

    Args:
      model: the classifier.
      weights: its variables, replicated or on the host.
      split: clean images, as uint8 or as floats in [0, 1], and labels.
      images: floats in [0, 1], one for each of `ids`; None: the clean images.
      ids: positions of the examples in the split.
      batch_size: over all devices together.
      seed: of the noise.
      noise: noise of the model, one of `NOISES`.
      num_passes: forward passes for each image.
    """
    if images is None:
        images = np.asarray(to_float(jnp.asarray(split.images[ids])))
    step = _score_step(model, noise, num_passes)
    scores = []
    for rows, padded in padded_batches(np.arange(len(ids)), batch_size):
        numbers = np.resize(ids[rows], len(padded))
        batch = np.resize(images[rows], (len(padded), *images.shape[1:]))
        score = step(weights, seed, batch, split.images[numbers], split.labels[numbers], numbers)
        scores.append([array[: len(rows)] for array in score])
    return Scores(*map(np.concatenate, zip(*scores, strict=True)))


@cache
def _score_step(model: nn.Module, noise: str, num_passes: int) -> Callable:
    """Return the compiled computation of `Scores`."""

    def step(
        weights: PyTree,
        seed: Int[Array, ""],
        images: Images,
        clean: ByteImages | Images,
        labels: Labels,
        ids: Int[Array, "share"],
    ) -> tuple[Array, ...]:
        logits_fn = _noisy_logits_fn(model, weights, ids, noise, seed)
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

    return pmap_batches(step, num_replicated=2, num_batches=4, sharded_output=True)


def _logits_of_passes(
    seed: Int[Array, ""], logits_fn: LogitsFn, images: Images, num_passes: int
) -> Float[Array, "passes batch classes"]:
    """Return the logits of each forward pass; those of an image with NaN or inf are all NaN."""

    def one_pass(i: Int[Array, ""]) -> jax.Array:
        return finite_logits(logits_fn(stream(seed, "score", i), images))

    return lax.map(one_pass, jnp.arange(num_passes))
