"""`jaxadv.evaluate`: run an attack suite on any classifier and any images."""

import hashlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from jaxadv.adapters.checks import (
    check_classifier,
    check_examples,
    outputs_of,
    runs_outside_of_jax,
    user_errors,
)
from jaxadv.adapters.classifier import Classifier
from jaxadv.adapters.conversion import make_conversion
from jaxadv.adapters.wrap import wrap
from jaxadv.attacks.batching import Model, ResumeCache, seconds_spent, trace_in_batches
from jaxadv.attacks.black_box import BlackBox
from jaxadv.attacks.checks import check_arguments
from jaxadv.core.devices import divisible_size, num_cores, set_up_cpu
from jaxadv.core.files import user_path
from jaxadv.core.results import CheckpointSource, Evaluation
from jaxadv.core.types import HostBatch, UserError
from jaxadv.evaluation.attack_suites import (
    ConfiguredAttack,
    Suite,
    check_radii,
    check_suite,
    expand_suite,
    named_suite,
)
from jaxadv.evaluation.result import EvaluationResult
from jaxadv.evaluation.suite import WriteImages, run_attack_suite
from jaxadv.runs.classifier import TrainedClassifier
from jaxadv.runs.resume_cache import DiskCache
from jaxadv.runs.workdir import locked, provenance, source_version

_NUM_PASSES = 50  # of a stochastic model, for each prediction
_MODEL = "model"  # record of the resume cache that identifies the model
_NUM_COMPARED = 256  # images whose outputs identify it


def evaluate(
    model: Any,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    attacks: str | Suite = "standard",
    eps: ArrayLike | Sequence[ArrayLike] | None = None,
    norm: str = "linf",
    bounds: tuple[int | float, int | float] = (0.0, 1.0),
    stochastic: bool = False,
    class_names: Sequence[str] | np.ndarray | None = None,
    dataset: str = "",
    batch_size: int = 512,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Evaluate the robustness of a classifier: run a suite of attacks, and check their results.

    Examples that are misclassified without perturbation count as non-robust and are not attacked.
    The worst case counts an example as robust only if it withstands all attacks. Gradient-masking
    diagnostics warn when a result may not measure the model's robustness. With
    `stochastic=True`, predictions are the mean softmax over 50 forward passes, and every example is
    attacked.

    Args:
      model: a function `(images) -> logits` or `(key, images) -> logits` in JAX, a model from
        `jaxadv.wrap` or `jaxadv.load_classifier`, or a `jaxadv.BlackBox`, on which only attacks
        without gradients run.
      images: shape (n, height, width, channels); uint8, or floats in `bounds`.
      labels: class of each image, shape (n,).
      attacks: "standard", "autoattack" or "black_box", see `jaxadv.evaluation.attack_suites`. Or a
        mapping from names to attacks, such as
        `{"pgd10": {"attack": "pgd", "step_size": 0.01, "num_steps": 10}}`. An attack's "eps" and
        "norm" take precedence over the arguments `eps` and `norm`.
      eps: radius, or several radii, as a share of the range of pixel values: 8/255 also if `bounds`
        are (0, 255). In L-inf it is at most 1.
      norm: "linf", "l2" or "l1".
      bounds: smallest and largest value of float images. A function or a `BlackBox` gets its images
        in these bounds as well. Models from `jaxadv.wrap` have bounds already.
      stochastic: whether two forward passes of the model differ, as with a random defence.
      class_names: shown in the report.
      dataset: name of the data, shown in the report.
      batch_size: images at a time, over all devices together; NES asks a `BlackBox` for up to 2048
        at a time. Results do not depend on it, provided
        that the logits of an image do not depend on the other images and the model is
        deterministic.
      seed: of the random starts and of the model's noise.
      cache: folder for intermediate results, from which an interrupted evaluation resumes. It stays
        when the evaluation is complete: delete it then. Other images, attacks or seeds, another
        version of this package, or a model of other outputs on the first 256 images empty it. A
        model that differs elsewhere, such as in its gradients alone, needs another folder.
      progress: whether to show a progress bar.

    Returns:
      The result; `print` shows its table, `save("report.html")` writes a page.

    Raises:
      UserError: an argument or the model is invalid; the message is one line that says what to
        write instead.

    >>> images = jnp.linspace(0, 1, 20 * 12).reshape(20, 2, 2, 3)
    >>> logits_fn = lambda images: (images.mean((1, 2)) - 0.5) @ jnp.array([[1, -1]] * 3)
    >>> labels = logits_fn(images).argmax(axis=1)
    >>> attacks = {"pgd": {"attack": "pgd", "step_size": 0.1, "num_steps": 3}}
    >>> result = evaluate(logits_fn, images, labels, attacks=attacks, eps=0.1, progress=False)
    >>> result.robust_accuracy
    0.8
    """
    source_version()  # of the start, since the checkout may change
    set_up_cpu()
    make_conversion(None, None, bounds, None)  # checks the bounds
    with user_errors():
        check_arguments({"batch_size": batch_size, "norm": norm})
    split = check_examples(images, labels, bounds)
    if not isinstance(model, Classifier):
        model = wrap(model, bounds=bounds, stochastic=stochastic)
    elif split.images.dtype == np.uint8 and tuple(bounds) != (0, 1):
        raise UserError(
            f"the images are uint8 and the model is wrapped, so bounds={bounds} has no effect: "
            "pass bounds to the jaxadv.wrap that made the model, if it expects such pixels"
        )
    classifier = replace(model, stochastic=model.stochastic or stochastic)
    num_classes, notes = check_classifier(classifier, split)
    if isinstance(classifier.logits_fn, BlackBox):
        known = BlackBox(classifier.logits_fn.predict, num_classes)
        classifier = replace(classifier, logits_fn=known)
    names = classifier.class_names if class_names is None else [str(name) for name in class_names]
    if names is not None and len(names) != num_classes:
        raise UserError(
            f"class_names has {len(names)} names, but the model has {num_classes} classes"
        )
    suite = _choose_attacks(attacks, eps, norm, classifier)
    if isinstance(classifier.logits_fn, BlackBox):
        suite, skipped = _without_gradients(suite)
        notes = [*notes, *skipped]
    check_suite(suite, num_classes, "attacks")
    size = divisible_size(batch_size)
    with _resume_cache(cache, classifier, split, suite, num_classes, size, seed) as records:
        return run_evaluation(
            classifier,
            split,
            suite,
            class_names=names,
            dataset=dataset,
            batch_size=size,
            seed=seed,
            progress=progress,
            cache=records,
            source=classifier.source if isinstance(classifier, TrainedClassifier) else None,
            notes=notes,
        )


def run_evaluation(
    classifier: Classifier,
    split: HostBatch,
    attacks: Sequence[ConfiguredAttack],
    *,
    class_names: Sequence[str] | None,
    dataset: str,
    split_name: str = "given",
    num_passes: int = _NUM_PASSES,
    batch_size: int,
    seed: int,
    precision: str = "float32",
    progress: bool = True,
    cache: ResumeCache | None = None,
    source: CheckpointSource | None = None,
    exported: Sequence[str] = (),
    write_images: WriteImages | None = None,
    notes: Sequence[str] = (),
) -> EvaluationResult:
    """Run a suite whose arguments are checked; see `evaluate` and `run_attack_suite`.

    Args:
      classifier: the model.
      split: images, as uint8 or as floats in [0, 1], and labels.
      attacks: the suite.
      class_names: names of the classes.
      dataset: name of the data.
      split_name: "test", "held_out" or "given".
      num_passes: forward passes of a stochastic model for each prediction.
      batch_size: over all devices together.
      seed: of the random starts and the noise.
      precision: of matrix products in attacks with gradients.
      progress: whether to show a progress bar.
      cache: where intermediate results are saved.
      source: the checkpoint, if the model is that of a run.
      exported: names of the attacks whose images `write_images` gets.
      write_images: called with them.
      notes: warnings that precede those of the diagnostics.
    """
    began = time.monotonic() - seconds_spent(cache)
    with jax.default_matmul_precision(precision):
        results, examples = run_attack_suite(
            models_of(classifier, split),
            split,
            attacks,
            stochastic=classifier.stochastic,
            num_passes=num_passes,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
            cache=cache,
            exported=exported,
            write_images=write_images,
        )
    results = replace(results, warnings=(*notes, *results.warnings))
    evaluation = Evaluation(
        **vars(results),
        checkpoint=source,
        model=classifier.name,
        num_parameters=classifier.num_parameters,
        dataset=dataset,
        split=split_name,
        n=len(split.labels),
        provenance=provenance(time.monotonic() - began),
    )
    if class_names is not None:
        examples = replace(examples, class_names=np.array(class_names))
    return EvaluationResult(evaluation, examples)


def models_of(classifier: Classifier, split: HostBatch) -> Mapping[str, Model]:
    """Return a classifier as an attack suite takes it, by noise."""
    if classifier.noises is not None:
        return classifier.noises
    model = trace_in_batches(
        classifier.logits_fn,
        jax.random.key(0),
        split.images.shape[1:],
        jnp.float32,
        gradients=not isinstance(classifier.logits_fn, BlackBox),
    )
    if not model.on_host:
        _warn_of_idle_cores()
    return {"on": model}


def _warn_of_idle_cores() -> None:
    """Warn if JAX had started before `set_up_cpu`, and uses fewer devices than there are cores."""
    is_late = not set_up_cpu()
    if is_late and jax.default_backend() == "cpu" and jax.device_count() < num_cores():
        warnings.warn(
            f"JAX has started with {jax.device_count()} CPU device(s) on {num_cores()} cores: to "
            "use all cores, call jaxadv.set_up_cpu() before anything else uses JAX",
            stacklevel=5,
        )


def _choose_attacks(
    attacks: Any,
    eps: Any,
    norm: str,
    classifier: Classifier,
) -> list[ConfiguredAttack]:
    """Return the attacks of a suite that is given by its name or as a mapping."""
    defaults: dict[str, Any] = {"norm": norm}
    if eps is not None:
        defaults["eps"] = check_radii("eps", _to_python(eps, as_tuple=True), norm)
    if isinstance(attacks, str):
        if eps is None:
            raise UserError(f"the suite {attacks!r} needs a radius: pass eps, such as eps=8/255")
        return named_suite(attacks, defaults["eps"], norm, classifier.stochastic)
    is_suite = isinstance(attacks, Mapping)
    if not is_suite or not all(isinstance(attack, Mapping) for attack in attacks.values()):
        raise UserError(
            f"attacks is {attacks!r}: pass the name of a suite, or a mapping from names to "
            "attacks, such as {'pgd10': {'attack': 'pgd', 'step_size': 0.01, 'num_steps': 10}}"
        )
    given = {
        name: {key: _to_python(value, as_tuple=key == "eps") for key, value in attack.items()}
        for name, attack in attacks.items()
    }
    suite = expand_suite(
        {name: {**defaults, **attack} for name, attack in given.items()}, "attacks"
    )
    if not suite:
        raise UserError("attacks is empty: pass at least one attack, or the name of a suite")
    for attack in suite:
        noises = classifier.noises or ("on",)
        if attack.noise not in noises:
            raise UserError(
                f"attacks.{attack.name}.noise is {attack.noise!r}: {classifier.name} has "
                f"{', '.join(map(repr, noises))}; only models of jaxadv.load_classifier have other "
                "noises than 'on'"
            )
    return suite


def _to_python(value: Any, *, as_tuple: bool = False) -> Any:
    """Return NumPy numbers and arrays as Python values; a single one as a tuple if asked."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        value = type(value)(map(_to_python, value))
    if as_tuple and isinstance(value, int | float):
        return (value,)
    return tuple(value) if as_tuple and isinstance(value, list) else value


def _without_gradients(
    attacks: Sequence[ConfiguredAttack],
) -> tuple[list[ConfiguredAttack], list[str]]:
    """Return the attacks that a black box allows, and a warning that names the others, if any."""
    possible = [attack for attack in attacks if not attack.spec.uses_gradients]
    if len(possible) == len(attacks):
        return possible, []
    others = ", ".join(dict.fromkeys(attack.name for attack in attacks if attack not in possible))
    if not possible:
        raise UserError(
            f"the model is a BlackBox, which has no gradients, and all attacks need them ({others})"
            ': pass attacks="black_box"'
        )
    return possible, [
        f"The model is a black box, so the attacks that need gradients did not run: {others}. "
        "Attacks without gradients are weaker, so the robust accuracy may be too high."
    ]


@contextmanager
def _resume_cache(
    folder: str | os.PathLike | None,
    classifier: Classifier,
    split: HostBatch,
    attacks: Sequence[ConfiguredAttack],
    num_classes: int,
    batch_size: int,
    seed: int,
) -> Iterator[ResumeCache | None]:
    """Open the resume cache of an evaluation, and lock its folder.

    Records of other arguments, of another version of this package, or of a model with other outputs
    are deleted.
    """
    if folder is None:
        yield None
        return
    folder = user_path(os.fspath(folder))
    digest = hashlib.sha256()
    for array in (split.images, split.labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    described = [[one.key, one.eps, one.attack, one.noise, dict(one.arguments)] for one in attacks]
    model = [classifier.name, num_classes, classifier.stochastic]
    task = [digest.hexdigest(), described, model, seed, version("jaxadv"), source_version()]
    with locked(folder, "cache"):
        records = DiskCache(folder, task)
        outputs = _first_outputs(classifier, split.images, batch_size)
        kept = records.get(_MODEL, {}).get("outputs")
        is_same = kept is not None and np.allclose(outputs, kept, rtol=1e-3, atol=1e-4)
        if len(records) and not is_same:
            warnings.warn(
                f"{folder} holds results of another model; they are deleted and computed again",
                stacklevel=5,
            )
            records.close()
            records = DiskCache(folder, task)
        records[_MODEL] = {"outputs": outputs}
        yield records


def _first_outputs(
    classifier: Classifier, images: np.ndarray, batch_size: int
) -> Float[np.ndarray, "k classes"]:
    """Return the outputs for the first images, which identify a model.

    Those of a stochastic model outside of JAX are others in each call: none are returned.
    """
    first = images[:_NUM_COMPARED]
    if classifier.stochastic and runs_outside_of_jax(classifier, first[:1]):
        first = first[:0]
    parts = [first[i : i + batch_size] for i in range(0, len(first), batch_size)]
    outputs = [np.asarray(outputs_of(classifier, 0, part)) for part in parts]
    # NaN in the outputs of a model is no difference.
    return np.nan_to_num(np.concatenate(outputs)) if outputs else np.zeros((0, 0), np.float32)
