"""An attack on many examples: in batches over all devices, which those that are fooled leave."""

import inspect
import math
import time
from collections.abc import Callable, MutableMapping
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.gradient import Ascent
from jaxadv.attacks.queries import Queried
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.parallel import divisible, padded_batches, pmap_batches, replicate
from jaxadv.types import Images, Labels, LogitsFn, PRNGKey

Ledger = MutableMapping[str, dict[str, np.ndarray]]
"""Named arrays, kept where a program that is killed finds them again."""

Found = TypeVar("Found", Ascent, Queried)

# Of a batch, which searches take at a time: few rows are idle, and a CPU is as fast. When few
# examples are left it is a share of that.
_SEARCH_SHARE, _TAIL_SHARE = 16, 8
_SECONDS_BETWEEN_SAVES = 30


class Model(NamedTuple):
    """A model as attacks over all devices reach it.

    Attributes:
      make_logits_fn: `(context, example_ids) -> logits_fn`; static, one function object for all
        models that differ in their context alone.
      context: arrays that every device gets whole: weights.
    """

    make_logits_fn: Callable[[PyTree, Int[Array, "share"]], LogitsFn]
    context: PyTree


class Examples(NamedTuple):
    """Examples on the host, with the numbers that their randomness follows from.

    Attributes:
      images: floats in [0, 1], (n, height, width, channels).
      labels: (n,) classes.
      ids: (n,) distinct numbers.
    """

    images: Any  # np.ndarray, that functions of JAX take too
    labels: np.ndarray
    ids: np.ndarray

    def rows(self, rows: np.ndarray) -> "Examples":
        """Returns some of them."""
        return Examples(*(array[rows] for array in self))


def traced_for_searches(
    logits_fn: LogitsFn, key: PRNGKey, image_shape: tuple[int, ...], dtype: Any, batch_size: int
) -> Model:
    """Returns a function of JAX as searches over all devices reach it.

    It is traced for each size that `search_survivors` takes, and at full precision too, at which
    some attacks look at their candidates.
    """
    sizes = {search_size(batch_size), search_size(batch_size, left=0)}
    traced: dict[tuple[int, str], TracedModel] = {}
    for share in sorted(size // jax.device_count() for size in sizes):
        images = jax.ShapeDtypeStruct((share, *image_shape), dtype)
        for precision in {_precision(), "highest"}:
            with jax.default_matmul_precision(precision):
                traced[share, str(precision)] = trace_model(logits_fn, key, images)
    # The same arrays stand in all of them, and go to each device once.
    leaves, structure = jax.tree.flatten(traced)
    placed = {id(leaf): replicate(leaf) for leaf in leaves}
    context = jax.tree.unflatten(structure, [placed[id(leaf)] for leaf in leaves])
    return Model(_traced_for_share, context)


def _traced_for_share(
    context: dict[tuple[int, str], TracedModel], ids: Int[Array, "share"]
) -> LogitsFn:
    def logits_fn(key: PRNGKey, images: Images) -> Array:
        # When it is called: a search asks for full precision after it was given this function.
        return context[len(ids), str(_precision())](key, images)

    return logits_fn


def _precision() -> str | None:
    """Returns the precision of matrix products that JAX is asked for here."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def attack_batch(
    attack_fn: Callable,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    arguments: dict[str, Any],
    resume: Queried | None = None,
) -> Any:
    """Returns what an attack finds for a batch that divides among the devices.

    What the attack takes as an `ArrayLike` is traced: another value compiles nothing anew.
    """
    traced = {k: v for k, v in arguments.items() if k in _traced(attack_fn) and v is not None}
    static = tuple((k, v) for k, v in arguments.items() if k not in traced and v is not None)
    step = _attack_step(attack_fn, model.make_logits_fn, static)
    return step(model.context, key, traced, *examples, resume)


def attack_in_batches(
    attack_fn: Callable,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    arguments: dict[str, Any],
    *,
    queries: int,
    batch_size: int,
    bar: tqdm | None = None,
    ledger: Ledger | None = None,
    name: str = "attack",
) -> Ascent:
    """Returns what an attack of a fixed cost makes of all examples, in numpy arrays.

    Args:
      attack_fn: one of `ATTACKS` that is not in `RESUMABLE`.
      key: of the attack.
      model: the classifier.
      examples: all of them.
      arguments: of the attack.
      queries: what it takes of each example, by which the bar advances.
      batch_size: over all devices together.
      bar: advanced by the queries.
      ledger: where the images are kept from time to time and at the end, and gone on from.
      name: of this attack in the ledger.
    """
    counting_fn = attack_fn.__wrapped__  # type: ignore[attr-defined]
    none: Any = np.zeros(len(examples.labels), np.int32)
    found, done = Ascent(examples.images.copy(), none), 0
    began = time.monotonic() - seconds_spent(ledger, name)
    if ledger is not None and name in ledger:
        record: Any = ledger[name]
        kept = Ascent(*(record[field] for field in Ascent._fields))
        done = len(kept.images)
        write_rows(found, slice(done), kept)
        _advance(bar, done * queries)
    saved = time.monotonic()
    for rows, padded in padded_batches(np.arange(done, len(examples.labels)), batch_size):
        if not len(rows):
            break
        part = attack_batch(counting_fn, key, model, examples.rows(padded), arguments)
        write_rows(found, rows, rows_of(part, slice(len(rows))))
        done += len(rows)
        _advance(bar, len(rows) * queries)
        is_due = done == len(examples.labels) or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES
        if ledger is not None and is_due:
            seconds = np.asarray(time.monotonic() - began)
            ledger[name] = {**rows_of(found, slice(done))._asdict(), "seconds": seconds}
            saved = time.monotonic()
    return found


def search_survivors(
    attack_fn: Callable,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    arguments: dict[str, Any],
    *,
    budget: int,
    segment: int,
    batch_size: int,
    bar: tqdm | None = None,
    ledger: Ledger | None = None,
    name: str = "search",
    found: Queried | None = None,
) -> Queried:
    """Returns what a search that counts its queries finds for all examples, in numpy arrays.

    It runs in segments of the budget, after which those that are done leave and the others close
    ranks. All take their steps together, so that what an example meets does not depend on who was
    fooled before. A batch is a sixteenth of `batch_size`, and when few are left an eighth of that:
    each size is a compilation.

    Args:
      attack_fn: one of `RESUMABLE`.
      key: of the attack.
      model: the classifier.
      examples: all of them.
      arguments: of the attack, but for the budget.
      budget: queries of each example.
      segment: queries between two departures.
      batch_size: over all devices together.
      bar: advanced by the queries, those that a success saved among them.
      ledger: where the state of the search is kept from time to time, and gone on from.
      name: of this search in the ledger.
      found: where it goes on from, and what it is written to; None: it begins.
    """
    limits = [*range(segment, budget, segment), budget]
    began = time.monotonic() - seconds_spent(ledger, name)
    if found is None:
        num_classes = count_classes(model, examples, batch_size)
        found = _first(attack_fn, key, num_classes, examples, arguments)
    if ledger is not None and name in ledger:
        found, reached = _unpack(ledger[name], found)
        limits = [limit for limit in limits if limit > reached]
        _advance(bar, int(found.queries.sum() + (budget - found.queries)[found.success].sum()))
    saved = time.monotonic()
    for limit in limits:
        left = np.flatnonzero(~found.success)
        for rows, padded in padded_batches(left, search_size(batch_size, len(left))):
            if not len(rows):
                break
            state = rows_of(found, padded)
            part = attack_batch(
                attack_fn,
                key,
                model,
                examples.rows(padded),
                {**arguments, "num_queries": limit},
                state,
            )
            part = rows_of(part, slice(len(rows)))
            spent = part.queries.sum() - found.queries[rows].sum()
            _advance(bar, int(spent + (budget - part.queries)[part.success].sum()))
            write_rows(found, rows, part)
        if ledger is not None and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            ledger[name] = _pack(found, limit, time.monotonic() - began)
            saved = time.monotonic()
    return found


def seconds_spent(ledger: Ledger | None, name: str = "") -> float:
    """Returns the time that went into what a ledger keeps: of all attacks, or of one's parts."""
    if ledger is None:
        return 0.0
    parts = [kept for kept in ledger if not name or f"{kept}/".startswith(f"{name}/")]
    return math.fsum(ledger.get(part, {}).get("seconds", 0.0) for part in parts)


def in_batches(step: Callable, model: Model, size: int, key: PRNGKey, examples: Examples) -> Any:
    """Returns the output of a compiled step for all examples, in numpy arrays."""
    parts = []
    for rows, _ in padded_batches(np.arange(len(examples.labels)), size):
        batch = [np.resize(array[rows], (size, *array.shape[1:])) for array in examples]
        kept = slice(len(rows))
        output = step(model.context, key, *batch)
        parts.append(jax.tree.map(lambda array, kept=kept: array[kept], output))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _first(
    attack_fn: Callable,
    key: PRNGKey,
    num_classes: int,
    examples: Examples,
    arguments: dict[str, Any],
) -> Queried:
    """Returns where a search begins, on the host; it asks nothing of the model but its classes."""

    def no_model(key: PRNGKey, images: Images) -> Array:
        return jnp.zeros((len(images), num_classes))

    images, labels, ids = map(jnp.asarray, examples)
    first = attack_fn(key, no_model, images, labels, **arguments, example_ids=ids, num_queries=0)
    return jax.tree.map(np.array, first)


def count_classes(model: Model, examples: Examples, batch_size: int) -> int:
    """Returns how many logits the model has."""
    share = search_size(batch_size) // jax.device_count()
    images = jax.ShapeDtypeStruct((share, *examples.images.shape[1:]), examples.images.dtype)
    logits_fn = model.make_logits_fn(model.context, jnp.arange(share))
    return jax.eval_shape(logits_fn, jax.random.key(0), images).shape[1]


def search_size(batch_size: int, left: int | None = None) -> int:
    """Returns how many examples a search takes at a time, when so many are left."""
    size = divisible(batch_size // _SEARCH_SHARE)
    return divisible(size // _TAIL_SHARE) if left is not None and left <= size // 2 else size


def write_rows(found: Found, rows: np.ndarray | slice, part: Found) -> None:
    """Writes what was found for some of the examples, in numpy arrays."""
    jax.tree.map(lambda array, new: array.__setitem__(rows, new), found, part)


def rows_of(found: Found, rows: np.ndarray | slice) -> Found:
    """Returns what was found for some of the examples."""
    return jax.tree.map(lambda array: array[rows], found)


def _pack(found: Queried, limit: int, seconds: float) -> dict[str, np.ndarray]:
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(found))}
    return {"limit": np.asarray(limit), "seconds": np.asarray(seconds), **leaves}


def _unpack(record: dict[str, np.ndarray], like: Queried) -> tuple[Queried, int]:
    leaves, structure = jax.tree.flatten(like)
    kept = [record[str(i)] for i in range(len(leaves))]
    return jax.tree.unflatten(structure, kept), int(record["limit"])


def _advance(bar: tqdm | None, count: int) -> None:
    if bar is not None:
        bar.update(count)


@cache
def _traced(attack_fn: Callable) -> frozenset[str]:
    """Returns the names of the arguments that may be arrays."""
    parameters = inspect.signature(attack_fn).parameters
    kinds = {name: get_args(parameter.annotation) for name, parameter in parameters.items()}
    return frozenset(
        name for name, kind in kinds.items() if all(one in kind for one in get_args(ArrayLike))
    )


@cache
def _attack_step(
    attack_fn: Callable, make_logits_fn: Callable, static: tuple[tuple[str, Any], ...]
) -> Callable:
    """Returns the compiled step of one kind of attack."""
    known = inspect.signature(attack_fn).parameters

    def step(
        context: PyTree,
        key: PRNGKey,
        traced: dict,
        images: Images,
        labels: Labels,
        ids: Int[Array, "share"],
        resume: Queried | None,
    ) -> Ascent | Queried:
        rows = {"example_ids": ids, "resume": resume}
        return attack_fn(
            key,
            make_logits_fn(context, ids),
            images,
            labels,
            **traced,
            **dict(static),
            **{name: value for name, value in rows.items() if name in known},
        )

    return pmap_batches(step, num_replicated=3, num_batches=4, sharded_output=True)
