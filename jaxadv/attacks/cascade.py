"""A cascade of attacks: each on the examples that the ones before left standing."""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.batches import (
    Examples,
    Ledger,
    Model,
    in_batches,
    rows_of,
    search_size,
    search_survivors,
    seconds_spent,
    write_rows,
)
from jaxadv.attacks.expectation import Noise, expected_logits
from jaxadv.attacks.threat import THREATS
from jaxadv.losses import margin
from jaxadv.parallel import pmap_batches
from jaxadv.types import Images, Labels, PerExample, PRNGKey

STANDING, CLEAN = -1, 0  # of `broken_by`
_BLOCK = 2  # batches whose searches are in memory at once, and kept in a ledger as one record


class Stage(NamedTuple):
    """One attack of a cascade.

    Attributes:
      attack_fn: a search that counts its queries.
      arguments: of it, but for the ball.
      budget: queries of an example.
      segment: queries after which those leave that are broken.
    """

    attack_fn: Callable
    arguments: dict[str, Any]
    budget: int
    segment: int


class AutoAttacked(NamedTuple):
    """What AutoAttack found; the arrays are numpy's, with one row per example.

    Attributes:
      images: (n, height, width, channels) misclassified images inside of the ball; the clean one
        where none was found.
      broken_by: (n,) position in `attacks` of what broke the example; -1 where it stands.
      steps: (n,) that this attack took.
      margins: (n,) largest other logit minus the label's of `images`, in the last look at them;
        inf where a logit is not finite, which counts as misclassified.
      queries: (n,) forward passes of all attacks, with their own looks but not those that confirm.
      gradients: (n,) gradients of all attacks.
      nonfinite: (n,) of these that were not finite, and counted as zero.
      distances: (n,) from the clean image to the nearest misclassified one that was seen, for
        examples that stand beyond eps; infinite where none was, 0 where the clean one is.
      attacks: "clean", then the names of the attacks.
      unconfirmed: for each attack the successes that a second look did not confirm; it went on.
      seconds: for each attack.
      flags: names of the signs that AutoAttack is not the right judge, each with a sentence.
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
    unconfirmed: dict[str, int]
    seconds: dict[str, float]
    flags: dict[str, str]

    def accuracies(self) -> dict[str, float]:
        """Returns the share that stands after each attack, and before the first."""
        n = max(len(self.broken_by), 1)
        broken = [int((self.broken_by == number).sum()) for number in range(len(self.attacks))]
        left = len(self.broken_by) - np.cumsum(broken)
        return {name: int(count) / n for name, count in zip(self.attacks, left, strict=True)}


def cascade(
    key: PRNGKey,
    model: Model,
    examples: Examples,
    stages: Mapping[str, Stage],
    *,
    eps: float,
    norm: str,
    num_draws: int = 1,
    attack_all: bool = False,
    batch_size: int,
    bar: tqdm | None = None,
    ledger: Ledger | None = None,
    prefix: str = "",
) -> AutoAttacked:
    """Returns what attacks find, one after another.

    Args:
      key: of all that is random.
      model: the classifier.
      examples: all of them.
      stages: the attacks.
      eps: radius of the ball.
      norm: "linf" or "l2".
      num_draws: passes whose mean softmax says whether an example is misclassified.
      attack_all: whether what is misclassified as it stands is attacked too: another pass of a
        random model may be right.
      batch_size: over all devices together.
      bar: advanced by the queries.
      ledger: where finished parts are kept, and gone on from.
      prefix: of their names there.
    """
    look_key, attack_key = jax.random.split(key)
    look = partial(_look, model, num_draws, search_size(batch_size))
    margins = look(look_key, examples)
    wrong = (margins > 0) & (not attack_all)
    found = _nothing_yet(examples, margins, wrong, ("clean", *stages))
    for number, (name, stage) in enumerate(stages.items(), start=1):
        standing = np.flatnonzero(found.broken_by == STANDING)
        if bar is not None:
            bar.set_postfix_str(f"{name}, {len(standing):,} standing")
            bar.update((len(examples.labels) - len(standing)) * stage.budget)
        for start in range(0, len(standing), _BLOCK * batch_size):
            rows = standing[start : start + _BLOCK * batch_size]
            record = _attack_block(
                stage._replace(arguments={"eps": eps, "norm": norm, **stage.arguments}),
                jax.random.fold_in(attack_key, number),
                model,
                examples.rows(rows),
                look=partial(look, jax.random.fold_in(look_key, number)),
                batch_size=batch_size,
                bar=bar,
                ledger={} if ledger is None else ledger,
                name=f"{prefix}{name}/{start}",
            )
            _note(found, number, rows, record)
    return found


def _attack_block(
    stage: Stage,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    *,
    look: Callable[[Examples], np.ndarray],
    batch_size: int,
    bar: tqdm | None,
    ledger: Ledger,
    name: str,
) -> dict[str, np.ndarray]:
    """Returns what an attack made of some examples, from the ledger if it is done already."""
    record = ledger.get(name, {})
    if "nonfinite" in record and np.array_equal(record["ids"], examples.ids):
        if bar is not None:
            bar.update(len(examples.labels) * stage.budget)
        return record
    searching = f"{name}/search"
    began = time.monotonic() - seconds_spent(ledger, searching)
    search = partial(
        search_survivors,
        stage.attack_fn,
        key,
        model,
        arguments=stage.arguments,
        budget=stage.budget,
        segment=stage.segment,
        batch_size=batch_size,
    )
    found: Any = search(examples, bar=bar, ledger=ledger, name=searching)
    margins, unconfirmed = _confirm(found, np.flatnonzero(found.success), examples, look), 0
    while (rows := np.flatnonzero(found.success & (margins <= 0))).size:
        # Chance under noise, or rounding: the search goes on, with what is left of its budget.
        unconfirmed += len(rows)
        found.success[rows], found.margins[rows] = False, margins[rows]
        write_rows(found, rows, search(examples.rows(rows), found=rows_of(found, rows)))
        again = rows[found.success[rows]]
        margins[again] = _confirm(found, again, examples, look)[again]
    broken = found.success
    deltas = jnp.asarray(found.images - examples.images)
    lengths = np.asarray(THREATS[stage.arguments["norm"]].length(deltas)).reshape(-1)
    beyond = getattr(found.memory, "distance", np.full(len(broken), np.inf))
    record = {
        "ids": examples.ids,
        "images": found.images,
        "broken": broken,
        "margins": margins,
        "steps": found.steps,
        "queries": found.queries,
        "gradients": found.gradients,
        "nonfinite": found.nonfinite,
        # In float32 an image on the sphere may measure a little more than eps.
        "distances": np.where(broken, np.minimum(lengths, stage.arguments["eps"]), beyond),
        "unconfirmed": np.asarray(unconfirmed),
        "seconds": np.asarray(time.monotonic() - began),
    }
    ledger[name] = record
    ledger.pop(searching, None)
    return record


def _confirm(
    found: Any, rows: np.ndarray, examples: Examples, look: Callable[[Examples], np.ndarray]
) -> np.ndarray:
    """Returns the margins, of some rows by a second look."""
    margins = found.margins.copy()
    margins[rows] = look(examples.rows(rows)._replace(images=found.images[rows]))
    return margins


def _nothing_yet(
    examples: Examples, margins: np.ndarray, wrong: np.ndarray, attacks: tuple[str, ...]
) -> AutoAttacked:
    """Returns the state before the first attack: what is wrong as it stands is broken."""
    n = len(margins)
    return AutoAttacked(
        images=examples.images.copy(),
        broken_by=np.where(wrong, CLEAN, STANDING),
        steps=np.zeros(n, int),
        margins=margins,
        queries=np.zeros(n, int),
        gradients=np.zeros(n, int),
        nonfinite=np.zeros(n, int),
        distances=np.where(wrong, 0.0, np.inf),
        attacks=attacks,
        unconfirmed=dict.fromkeys(attacks[1:], 0),
        seconds=dict.fromkeys(attacks[1:], 0.0),
        flags={},
    )


def _note(
    found: AutoAttacked, number: int, rows: np.ndarray, record: dict[str, np.ndarray]
) -> None:
    """Writes into the state what an attack made of some of its rows."""
    name, broken = found.attacks[number], record["broken"]
    for array in ("images", "steps", "margins"):
        getattr(found, array)[rows[broken]] = record[array][broken]
    found.broken_by[rows[broken]] = number
    found.queries[rows] += record["queries"]
    found.gradients[rows] += record["gradients"]
    found.nonfinite[rows] += record["nonfinite"]
    found.distances[rows] = np.minimum(found.distances[rows], record["distances"])
    found.unconfirmed[name] += int(record["unconfirmed"])
    found.seconds[name] += float(record["seconds"])


def _look(model: Model, num_draws: int, size: int, key: PRNGKey, examples: Examples) -> np.ndarray:
    step = _look_step(model.make_logits_fn, num_draws)
    return in_batches(step, model, size, key, examples)


@cache
def _look_step(make_logits_fn: Callable, num_draws: int) -> Callable:
    def step(
        context: PyTree, key: PRNGKey, images: Images, labels: Labels, ids: Int[Array, "share"]
    ) -> PerExample:
        noise = Noise(num_draws, 1, "softmax")
        # At full precision: the verdict must not hang on rounding that an attack found.
        with jax.default_matmul_precision("highest"):
            logits = expected_logits(key, make_logits_fn(context, ids), images, noise)
        return margin(logits, labels)

    return pmap_batches(step, num_replicated=2, num_batches=3, sharded_output=True)
