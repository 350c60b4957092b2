"""Run attacks one after another, each on the examples that the previous ones left robust."""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.batching import (
    Examples,
    Model,
    ResumeCache,
    in_batches,
    map_batches,
    rows_of,
    search_size,
    search_survivors,
    seconds_spent,
    write_rows,
)
from jaxadv.attacks.eot import Noise, expected_logits
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS
from jaxadv.core.losses import margin
from jaxadv.core.types import Images, Labels, PerExample, PRNGKey

ROBUST, CLEAN = -1, 0  # values of `broken_by`
_BLOCK = 2  # batches that are searched together, and saved in a cache as one record


class Stage(NamedTuple):
    """One attack of an ensemble.

    Attributes:
      spec: of a resumable attack.
      arguments: of the attack, with the norm and without the radius.
    """

    spec: AttackSpec
    arguments: dict[str, Any]

    @property
    def max_queries(self) -> int:
        """Return the most queries per example."""
        return self.spec.max_queries(self.arguments)


class AutoAttackResult(NamedTuple):
    """Result of AutoAttack; its arrays are numpy arrays with one row per example.

    Attributes:
      images: (n, height, width, channels) misclassified images inside the ball; the clean image
        where none was found.
      broken_by: (n,) position in `attacks` of the attack that fooled the example; -1 where the
        example is robust.
      steps: (n,) steps that this attack took.
      margins: (n,) largest other logit minus that of the label, at the last success check of
        `images`; inf where a logit is NaN or infinite, which counts as misclassified.
      queries: (n,) forward passes of all attacks, including their success checks, but not the
        second success checks that confirm a success.
      gradients: (n,) gradients of all attacks.
      nonfinite: (n,) gradients among them that were NaN or infinite and counted as zero.
      distances: (n,) distances from the clean image to the nearest misclassified image that was
        found, also beyond eps. They are inf where none was found, and 0 where the clean image is
        misclassified.
      attacks: "clean", then the names of the attacks.
      fooled: for each attack (n,) whether it fooled the example, among those that it attacked.
      individual: whether each attack attacked all examples, not only the robust ones.
      unconfirmed: for each attack its successes that a second success check did not confirm; the
        attack continued on these examples.
      seconds: for each attack.
      flags: diagnostics: reasons why AutoAttack may overestimate robustness here, a sentence for
        each name.
    """

    images: np.ndarray
    broken_by: np.ndarray
    steps: np.ndarray
    margins: np.ndarray
    queries: np.ndarray
    gradients: np.ndarray
    nonfinite: np.ndarray
    distances: np.ndarray
    attacks: tuple[str, ...]
    fooled: dict[str, np.ndarray]
    individual: bool
    unconfirmed: dict[str, int]
    seconds: dict[str, float]
    flags: dict[str, str]

    def accuracies(self) -> dict[str, float]:
        """Return the share of robust examples before the first attack and after each attack."""
        n = max(len(self.broken_by), 1)
        fooled = [int((self.broken_by == number).sum()) for number in range(len(self.attacks))]
        robust = len(self.broken_by) - np.cumsum(fooled)
        return {name: int(count) / n for name, count in zip(self.attacks, robust, strict=True)}

    def individual_accuracies(self) -> dict[str, float]:
        """Return the share of examples that are robust under each attack alone.

        Raises:
          ValueError: the attacks did not run with `individual=True`.
        """
        if not self.individual:
            raise ValueError("each attack saw the robust examples only: run with individual=True")
        is_clean = self.broken_by != CLEAN
        n = max(len(is_clean), 1)
        return {name: int((is_clean & ~found).sum()) / n for name, found in self.fooled.items()}

    def to_attack_result(self) -> AttackResult:
        """Return the fields that all attacks share, with this result as `extras`."""
        success: Any = self.broken_by != ROBUST
        names = ("images", "queries", "gradients", "nonfinite", "margins", "steps")
        shared = {name: getattr(self, name) for name in names}
        return AttackResult(**shared, success=success, extras=self)


def run_ensemble(
    key: PRNGKey,
    model: Model,
    examples: Examples,
    stages: Mapping[str, Stage],
    *,
    eps: float,
    norm: str,
    num_noise_samples: int = 1,
    attack_all: bool = False,
    individual: bool = False,
    batch_size: int,
    bar: tqdm | None = None,
    cache: ResumeCache | None = None,
    prefix: str = "",
) -> AutoAttackResult:
    """Run attacks one after another, each on the examples that are still robust.

    An example counts as fooled when a second success check, with new noise, confirms it.

    Args:
      key: randomness of the attacks and of the success checks.
      model: the classifier.
      examples: all examples, including those that are misclassified without perturbation.
      stages: attacks by name, in the order in which they run.
      eps: radius of the ball.
      norm: "linf", "l2", "l1" or "l0".
      num_noise_samples: forward passes whose mean softmax decides whether an example is
        misclassified.
      attack_all: whether to attack misclassified clean images too; another forward pass of a random
        model may classify them correctly.
      individual: whether each attack also sees the examples that earlier attacks fooled.
      batch_size: over all devices together.
      bar: progress bar over queries.
      cache: where finished parts are saved.
      prefix: of their names in the cache.
    """
    check_key, attack_key = jax.random.split(key)
    stages = {
        name: stage._replace(arguments={"eps": eps, "norm": norm, **stage.arguments})
        for name, stage in stages.items()
    }
    size = search_size(batch_size, on_host=model.on_host)
    check = partial(_check_success, model, num_noise_samples, size)
    margins = check(check_key, examples)
    wrong = (margins > 0) & (not attack_all)
    result = _initial_result(examples, margins, wrong, ("clean", *stages), individual)
    for number, (name, stage) in enumerate(stages.items(), start=1):
        is_robust = result.broken_by == ROBUST
        attacked = np.flatnonzero(result.broken_by != CLEAN if individual else is_robust)
        if bar is not None:
            bar.set_postfix_str(f"{name}, {is_robust.sum():,} robust", refresh=False)
            bar.update((len(examples.labels) - len(attacked)) * stage.max_queries)
        for start in range(0, len(attacked), _BLOCK * batch_size):
            rows = attacked[start : start + _BLOCK * batch_size]
            record = _attack_block(
                stage,
                jax.random.fold_in(attack_key, number),
                model,
                examples.rows(rows),
                check=partial(check, jax.random.fold_in(check_key, number)),
                batch_size=batch_size,
                bar=bar,
                cache={} if cache is None else cache,
                name=f"{prefix}{name}/{start}",
            )
            _add_record(result, number, rows, record)
    return result


def _attack_block(
    stage: Stage,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    *,
    check: Callable[[Examples], np.ndarray],
    batch_size: int,
    bar: tqdm | None,
    cache: ResumeCache,
    name: str,
) -> dict[str, np.ndarray]:
    """Run one attack on some examples, or return its record from the cache."""
    record = cache.get(name, {})
    if "nonfinite" in record and np.array_equal(record["ids"], examples.ids):
        if bar is not None:
            bar.update(len(examples.labels) * stage.max_queries)
        return record
    search_name = f"{name}/search"
    began = time.monotonic() - seconds_spent(cache, search_name)
    search = partial(
        search_survivors,
        stage.spec,
        key,
        model,
        arguments=stage.arguments,
        batch_size=batch_size,
    )
    found: Any = search(examples, bar=bar, cache=cache, name=search_name)
    margins, unconfirmed = _confirm(found, np.flatnonzero(found.success), examples, check), 0
    while (rows := np.flatnonzero(found.success & (margins <= 0))).size:
        # Chance under noise, or rounding: the search continues with the rest of its budget.
        unconfirmed += len(rows)
        found.success[rows], found.margins[rows] = False, margins[rows]
        write_rows(found, rows, search(examples.rows(rows), result=rows_of(found, rows)))
        again = rows[found.success[rows]]
        margins[again] = _confirm(found, again, examples, check)[again]
    success = found.success
    deltas = jnp.asarray(found.images - examples.images)
    lengths = np.asarray(THREATS[stage.arguments["norm"]].length(deltas)).reshape(-1)
    beyond = np.full(len(success), np.inf)
    if stage.spec.measures_distance:
        beyond = found.extras.distance
    record = {
        "ids": examples.ids,
        "images": found.images,
        "broken": success,
        "margins": margins,
        "steps": found.steps,
        "queries": found.queries,
        "gradients": found.gradients,
        "nonfinite": found.nonfinite,
        # In float32 an image on the sphere may measure slightly more than eps.
        "distances": np.where(success, np.minimum(lengths, stage.arguments["eps"]), beyond),
        "unconfirmed": np.asarray(unconfirmed),
        "seconds": np.asarray(time.monotonic() - began),
    }
    cache[name] = record
    cache.pop(search_name, None)
    return record


def _confirm(
    found: Any, rows: np.ndarray, examples: Examples, check: Callable[[Examples], np.ndarray]
) -> np.ndarray:
    """Return the margins, those of some rows by a second success check."""
    margins = found.margins.copy()
    margins[rows] = check(examples.rows(rows)._replace(images=found.images[rows]))
    return margins


def _initial_result(
    examples: Examples,
    margins: np.ndarray,
    wrong: np.ndarray,
    attacks: tuple[str, ...],
    individual: bool,
) -> AutoAttackResult:
    n = len(margins)
    return AutoAttackResult(
        images=examples.images.copy(),
        broken_by=np.where(wrong, CLEAN, ROBUST),
        steps=np.zeros(n, int),
        margins=margins,
        queries=np.zeros(n, int),
        gradients=np.zeros(n, int),
        nonfinite=np.zeros(n, int),
        distances=np.where(wrong, 0.0, np.inf),
        attacks=attacks,
        fooled={name: np.zeros(n, bool) for name in attacks[1:]},
        individual=individual,
        unconfirmed=dict.fromkeys(attacks[1:], 0),
        seconds=dict.fromkeys(attacks[1:], 0.0),
        flags={},
    )


def _add_record(
    result: AutoAttackResult, number: int, rows: np.ndarray, record: dict[str, np.ndarray]
) -> None:
    """Add the record of an attack on some rows to the result, in place."""
    name = result.attacks[number]
    result.fooled[name][rows[record["broken"]]] = True
    first = record["broken"] & (result.broken_by[rows] == ROBUST)
    for array in ("images", "steps", "margins"):
        getattr(result, array)[rows[first]] = record[array][first]
    result.broken_by[rows[first]] = number
    result.queries[rows] += record["queries"]
    result.gradients[rows] += record["gradients"]
    result.nonfinite[rows] += record["nonfinite"]
    result.distances[rows] = np.minimum(result.distances[rows], record["distances"])
    result.unconfirmed[name] += int(record["unconfirmed"])
    result.seconds[name] += float(record["seconds"])


def _check_success(
    model: Model, num_noise_samples: int, size: int, key: PRNGKey, examples: Examples
) -> np.ndarray:
    """Return the margins of the examples; positive is misclassified."""
    step = _success_check_step(model.make_logits_fn, num_noise_samples, model.on_host)
    return in_batches(step, model, size, key, examples)


@cache
def _success_check_step(
    make_logits_fn: Callable, num_noise_samples: int, on_host: bool
) -> Callable:
    def step(
        context: PyTree, key: PRNGKey, images: Images, labels: Labels, ids: Int[Array, "share"]
    ) -> PerExample:
        noise = Noise(num_noise_samples, 1, "softmax")
        # At full precision: an attack may find rounding errors, which must not decide.
        with jax.default_matmul_precision("highest"):
            logits = expected_logits(key, make_logits_fn(context, ids), images, noise)
        return margin(logits, labels)

    return map_batches(step, on_host, num_replicated=2, num_batches=3)
