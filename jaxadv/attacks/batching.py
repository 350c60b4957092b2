"""Run an attack on many examples, in batches over all devices, which fooled examples leave."""

import hashlib
import math
import time
from collections.abc import Callable, MutableMapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from tqdm import tqdm

from jaxadv.attacks.black_box import BlackBox, trace_black_box
from jaxadv.attacks.host_calls import run_with_host_calls
from jaxadv.attacks.result import AttackResult, Distances
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.tracing import TracedModel, trace_model
from jaxadv.core.devices import (
    divisible_size,
    padded_batches,
    platform,
    pmap_batches,
    replicate,
)
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey

ResumeCache = MutableMapping[str, dict[str, np.ndarray]]
"""Named arrays that survive the program, so that an interrupted attack resumes from them."""

# Largest batch size of searches on a CPU, as a share of that of the evaluation: smaller batches are
# as fast there, and have fewer idle rows. Fewer examples take multiples of a share of that, because
# idle rows cost more than further compilations; a few take the smallest share.
_SEARCH_SHARE, _STEP_SHARE, _TAIL_SHARE = 16, 4, 8
_SMALL_CALL = 32  # images per call of a model outside of JAX, at least
_SECONDS_BETWEEN_SAVES = 30
# Queries per example after which the fooled examples leave the batch. A model outside of JAX may be
# slow, so its progress is shown more often.
_SEGMENT, _SEGMENT_WITH_GRADIENTS, _SEGMENT_ON_HOST = 500, 25, 25


class Model(NamedTuple):
    """A model for attacks over all devices.

    Attributes:
      make_logits_fn: `(context, example_ids) -> logits_fn`; static: one function object for all
        models that differ only in their context.
      context: arrays that every device gets in full, such as weights; or `Traces`.
      on_host: whether the logits function calls Python, see `host_calls`. Then everything runs on
        one device, and the Python object must stay alive.
    """

    make_logits_fn: Callable[[PyTree, Int[Array, "share"]], LogitsFn]
    context: PyTree
    on_host: bool = False

    def context_for(self, batch_size: int) -> PyTree:
        """Return the context for batches of a size, over all devices together."""
        return self.context[batch_size] if isinstance(self.context, Traces) else self.context


class Examples(NamedTuple):
    """Examples on the host, with the numbers that determine their randomness.

    Attributes:
      images: floats in [0, 1], (n, height, width, channels).
      labels: (n,) classes.
      ids: (n,) distinct numbers.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def rows(self, rows: np.ndarray) -> "Examples":
        """Return some of the examples."""
        return Examples(*(array[rows] for array in self))


class Traces:
    """The traces of a logits function by batch size, each made when it is first used."""

    def __init__(self, trace: Callable[[int], TracedModel], on_host: bool) -> None:
        """Store `trace`, a function of the number of images of a device."""
        self._trace, self._on_host = trace, on_host
        self._traced: dict[tuple[int, str], dict[str, TracedModel]] = {}
        # By the id of an array: the array, and its copies on all devices.
        self._placed: dict[int, tuple[Array, Array]] = {}
        self._by_content: dict[tuple[Any, ...], Array] = {}  # the copies

    def __getitem__(self, batch_size: int) -> dict[str, TracedModel]:
        """Return the traces by precision: that of now, and the highest, which searches use."""
        key = batch_size, str(_precision())
        if key not in self._traced:
            self._traced[key] = self._trace_at_precisions(_share(batch_size, self._on_host))
        return self._traced[key]

    def _trace_at_precisions(self, share: int) -> dict[str, TracedModel]:
        traced = {}
        for precision in {_precision(), "highest"}:
            with jax.default_matmul_precision(precision):
                traced[str(precision)] = self._trace(share)
        return traced if self._on_host else jax.tree.map(self._place, traced)

    def _place(self, array: Array) -> Array:
        """Return an array on all devices, where equal ones of all traces go once.

        A trace makes its own JAX array of each NumPy array.
        """
        if id(array) not in self._placed:
            content: Any = id(array)
            if not jnp.issubdtype(array.dtype, jax.dtypes.extended):
                content = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
            key = array.shape, array.dtype, content
            if key in self._by_content:  # not kept under its id, so that it can be freed
                return self._by_content[key]
            self._by_content[key] = replicate(array)
            self._placed[id(array)] = array, self._by_content[key]
        return self._placed[id(array)][1]


def trace_in_batches(
    logits_fn: LogitsFn | BlackBox,
    key: PRNGKey,
    image_shape: tuple[int, ...],
    dtype: Any,
    *,
    gradients: bool = True,
) -> Model:
    """Return a logits function as a model for attacks over all devices.

    It is traced for each batch size. If it calls Python, it must stay alive as long as the model.

    Args:
      logits_fn: `(key, images) -> logits`, or for black-box attacks a `BlackBox` whose number of
        classes is known.
      key: a key of the type that the function will be called with.
      image_shape: (height, width, channels).
      dtype: of the images.
      gradients: whether the attacks differentiate the model.

    Raises:
      ValueError: it is not such a function; the message says what to write instead.
    """
    if isinstance(logits_fn, BlackBox) and not gradients:
        return Model(_itself, trace_black_box(logits_fn), on_host=True)

    def trace(share: int) -> TracedModel:
        images = jax.ShapeDtypeStruct((share, *image_shape), dtype)
        return trace_model(logits_fn, key, images, gradients=gradients)

    on_host = trace(1).calls_host
    return Model(_traced, Traces(trace, on_host), on_host)


def _traced(context: dict[str, TracedModel], ids: Int[Array, "share"]) -> LogitsFn:
    def logits_fn(key: PRNGKey, images: Images) -> Array:
        # Read when called: a search raises the precision after it was given this function.
        return context[str(_precision())](key, images)

    return logits_fn


def _itself(context: LogitsFn, ids: Int[Array, "share"]) -> LogitsFn:
    return context


def _share(size: int, on_host: bool = False) -> int:
    """Return the part of a batch that one device gets."""
    return size if on_host else size // jax.device_count()


def _precision() -> str | None:
    """Return the precision of matrix products that JAX uses here; "float32" is "highest"."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return "highest" if precision == "float32" else precision


def attack_batch(
    spec: AttackSpec,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    arguments: dict[str, Any],
    resume: AttackResult | None = None,
) -> AttackResult:
    """Run an attack on one batch, whose size divides by the number of devices (not on the host).

    New values of the traced arguments do not compile again.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    traced = {name: value for name, value in given.items() if name in spec.traced}
    static = tuple((name, value) for name, value in given.items() if name not in traced)
    step = _attack_step(spec, model.make_logits_fn, static, model.on_host)
    context = model.context_for(len(examples.labels))
    return step(context, key, traced, *examples, resume)


def attack_in_batches(
    spec: AttackSpec,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    arguments: dict[str, Any],
    *,
    batch_size: int,
    bar: tqdm | None = None,
    cache: ResumeCache | None = None,
    name: str = "attack",
) -> AttackResult:
    """Run an attack of fixed cost on all examples.

    Args:
      spec: of an attack that is not resumable.
      key: of the attack.
      model: the classifier.
      examples: all of them.
      arguments: of the attack.
      batch_size: over all devices together.
      bar: progress bar over gradients.
      cache: where the results so far are saved from time to time and at the end.
      name: of this attack in the cache.

    Returns:
      The result in numpy arrays.
    """
    cost, n = spec.max_queries(arguments), len(examples.labels)
    result, done = _fixed_cost_result(spec, examples, cost, arguments.get("num_steps", 1)), 0
    began = time.monotonic() - seconds_spent(cache, name)
    if cache is not None and name in cache:
        kept = cache[name]
        done = len(kept["images"])
        for field, array in _by_example(result).items():
            array[:done] = kept[field]
        _advance(bar, done * cost)
    saved = time.monotonic()
    for rows, padded in padded_batches(np.arange(done, n), batch_size):
        if not len(rows):
            break
        part = attack_batch(spec, key, model, examples.rows(padded), arguments)
        for field, array in _by_example(part).items():
            _by_example(result)[field][rows] = array[: len(rows)]
        done += len(rows)
        _advance(bar, len(rows) * cost)
        is_due = done == n or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES
        if cache is not None and is_due:
            seconds = np.asarray(time.monotonic() - began)
            rows_done = {field: array[:done] for field, array in _by_example(result).items()}
            cache[name] = {**rows_done, "seconds": seconds}
            saved = time.monotonic()
    return result


def _by_example(result: Any) -> dict[str, np.ndarray]:
    """Return what a fixed-cost attack finds for each example; the other fields are constant."""
    found = {"images": result.images, "nonfinite": result.nonfinite}
    if isinstance(result.extras, Distances):
        found["distance"] = result.extras.distance
    return found


def _fixed_cost_result(spec: AttackSpec, examples: Examples, cost: int, num_steps: int) -> Any:
    """Return the initial result of a fixed-cost attack: clean images, with the cost as queries."""
    n = len(examples.labels)
    no_distance: Any = np.full(n, np.inf, np.float32)
    arrays: dict[str, Any] = {
        "images": examples.images.copy(),
        "success": np.zeros(n, bool),
        "queries": np.full(n, cost),
        "gradients": np.full(n, cost),
        "nonfinite": np.zeros(n, np.int32),
        "margins": np.full(n, -np.inf, np.float32),
        "steps": np.full(n, num_steps),
    }
    return AttackResult(**arrays, extras=Distances(no_distance) if spec.measures_distance else ())


def search_survivors(
    spec: AttackSpec,
    key: PRNGKey,
    model: Model,
    examples: Examples,
    arguments: dict[str, Any],
    *,
    batch_size: int,
    bar: tqdm | None = None,
    cache: ResumeCache | None = None,
    name: str = "search",
    result: Any = None,
) -> Any:
    """Run a resumable attack on all examples, and remove those that are fooled from the batches.

    The attack runs in segments of its query budget. After each segment the fooled examples leave
    and the remaining ones are packed into fewer batches. All take their steps together, so that
    the result of an example does not depend on the others. A batch has `batch_size` examples, or a
    sixteenth of it for a model in JAX on a CPU, and an eighth of that when few examples are left.
    Each size compiles once.

    Args:
      spec: of a resumable attack.
      key: of the attack.
      model: the classifier.
      examples: all of them.
      arguments: of the attack.
      batch_size: over all devices together.
      bar: progress bar over queries, including those that a success saves.
      cache: where the state of the search is saved from time to time.
      name: of this search in the cache.
      result: to continue from, which is updated in place; None: start a new search.

    Returns:
      The `AttackResult` in numpy arrays.
    """
    budget = spec.max_queries(arguments)
    arguments = {name: value for name, value in arguments.items() if name != "num_queries"}
    segment = _segment(spec, arguments, budget, model.on_host)
    limits = [*range(segment, budget, segment), budget]
    began = time.monotonic() - seconds_spent(cache, name)
    if result is None:
        num_classes = count_classes(model, examples, batch_size)
        result = _initial_result(spec, key, num_classes, examples, arguments)
    if cache is not None and name in cache:
        result, reached = _unpack(cache[name], result)
        limits = [limit for limit in limits if limit > reached]
        saved_queries = (budget - result.queries)[result.success].sum()
        _advance(bar, int(result.queries.sum() + saved_queries))
    saved = time.monotonic()
    for limit in limits:
        left = np.flatnonzero(~result.success)
        size = search_size(batch_size, len(left), on_host=model.on_host)
        for rows, padded in padded_batches(left, size):
            if not len(rows):
                break
            batch, state = examples.rows(padded), rows_of(result, padded)
            state.success[len(rows) :] = True  # repeated rows spend no queries
            part = attack_batch(spec, key, model, batch, {**arguments, "num_queries": limit}, state)
            part = rows_of(part, slice(len(rows)))
            spent = part.queries.sum() - result.queries[rows].sum()
            _advance(bar, int(spent + (budget - part.queries)[part.success].sum()))
            write_rows(result, rows, part)
        is_due = limit == budget or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES
        if cache is not None and is_due:
            cache[name] = _pack(result, limit, time.monotonic() - began)
            saved = time.monotonic()
    return result


def _segment(spec: AttackSpec, arguments: dict[str, Any], budget: int, on_host: bool) -> int:
    """Return the queries per example between two removals of fooled examples."""
    if not arguments.get("early_stop", True):
        return max(budget, 1)
    if on_host:  # at least one step
        samples = arguments.get("samples_per_gradient", 0) * arguments.get("label_samples", 1)
        return max(_SEGMENT_ON_HOST, samples + arguments.get("num_noise_samples", 1))
    return _SEGMENT_WITH_GRADIENTS if spec.uses_gradients else _SEGMENT


def seconds_spent(cache: ResumeCache | None, name: str = "") -> float:
    """Return the seconds that the records of a cache took: of all attacks, or of one attack."""
    if cache is None:
        return 0.0
    parts = [kept for kept in cache if not name or f"{kept}/".startswith(f"{name}/")]
    return math.fsum(cache.get(part, {}).get("seconds", 0.0) for part in parts)


def in_batches(step: Callable, model: Model, size: int, key: PRNGKey, examples: Examples) -> Any:
    """Return the output of a compiled step for all examples, in numpy arrays."""
    parts, context = [], model.context_for(size)
    for rows, _ in padded_batches(np.arange(len(examples.labels)), size):
        batch = [np.resize(array[rows], (size, *array.shape[1:])) for array in examples]
        kept = slice(len(rows))
        output = step(context, key, *batch)
        parts.append(jax.tree.map(lambda array, kept=kept: array[kept], output))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _initial_result(
    spec: AttackSpec,
    key: PRNGKey,
    num_classes: int,
    examples: Examples,
    arguments: dict[str, Any],
) -> AttackResult:
    """Return the state before the first query, in numpy arrays; no forward pass is needed."""

    def no_model(key: PRNGKey, images: Images) -> Array:
        return jnp.zeros((len(images), num_classes))

    images, labels, ids = map(jnp.asarray, examples)
    first = spec.run(key, no_model, images, labels, **arguments, example_ids=ids, num_queries=0)
    return jax.tree.map(np.array, first)


def count_classes(model: Model, examples: Examples, batch_size: int) -> int:
    """Return the number of logits of the model."""
    size = search_size(batch_size, on_host=model.on_host)
    share = _share(size, model.on_host)
    images = jax.ShapeDtypeStruct((share, *examples.images.shape[1:]), examples.images.dtype)
    logits_fn: Any = model.make_logits_fn(model.context_for(size), jnp.arange(share))
    if isinstance(logits_fn, BlackBox):
        logits_fn = trace_black_box(logits_fn)
    return jax.eval_shape(logits_fn, jax.random.key(0), images).shape[1]


def search_size(batch_size: int, left: int | None = None, *, on_host: bool = False) -> int:
    """Return the batch size of a search when `left` examples remain."""
    if on_host:
        # Large calls are faster outside of JAX, unless their rows are idle.
        small = min(max(batch_size // _TAIL_SHARE, _SMALL_CALL), batch_size)
        return min(batch_size, small, key=lambda size: -(-(left or batch_size) // size) * size)
    if platform() != "cpu":
        # Large batches are faster, and each size takes about a minute to compile for a TPU.
        shares = (_TAIL_SHARE, 1) if platform() == "tpu" else (_TAIL_SHARE, 4, 2, 1)
        sizes = [divisible_size(batch_size // share) for share in shares]
        return next((size for size in sizes if left and left <= size), sizes[-1])
    largest = divisible_size(batch_size // _SEARCH_SHARE)
    if left is None:
        return largest
    smallest, step = (divisible_size(largest // share) for share in (_TAIL_SHARE, _STEP_SHARE))
    if left <= smallest:
        return smallest
    in_a_batch = -(-left // -(-left // largest))  # with as few batches as possible
    return min(-(-in_a_batch // step) * step, largest)


def write_rows(result: AttackResult, rows: np.ndarray | slice, part: AttackResult) -> None:
    """Write the result of some examples into that of all, in numpy arrays."""
    jax.tree.map(lambda array, new: array.__setitem__(rows, new), result, part)


def rows_of(result: AttackResult, rows: np.ndarray | slice) -> Any:
    """Return the result of some examples."""
    return jax.tree.map(lambda array: array[rows], result)


def _pack(result: AttackResult, limit: int, seconds: float) -> dict[str, np.ndarray]:
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(result))}
    return {"limit": np.asarray(limit), "seconds": np.asarray(seconds), **leaves}


def _unpack(record: dict[str, np.ndarray], like: AttackResult) -> tuple[Any, int]:
    leaves, structure = jax.tree.flatten(like)
    kept = [record[str(i)].copy() for i in range(len(leaves))]  # the search writes into them
    return jax.tree.unflatten(structure, kept), int(record["limit"])


def _advance(bar: tqdm | None, count: int) -> None:
    if bar is not None:
        bar.update(count)


def map_batches(
    step: Callable, on_host: bool, *, num_replicated: int, num_batches: int
) -> Callable:
    """Compile a step over batches: over all devices, or on one for a model on the host.

    Args:
      step: a pure function of replicated arguments and batches; its outputs are batches.
      on_host: whether it calls a `Model` that is on the host.
      num_replicated: number of leading arguments that each device gets whole.
      num_batches: number of following arguments that are split.

    Returns:
      A function of the same arguments with outputs in numpy arrays.
    """
    if not on_host:
        return pmap_batches(
            step, num_replicated=num_replicated, num_batches=num_batches, sharded_output=True
        )
    jitted = jax.jit(step)
    return lambda *args: jax.tree.map(np.asarray, run_with_host_calls(jitted, *args))


@cache
def _attack_step(
    spec: AttackSpec,
    make_logits_fn: Callable,
    static: tuple[tuple[str, Any], ...],
    on_host: bool,
) -> Callable:
    """Return the compiled attack on one batch."""

    def step(
        context: PyTree,
        key: PRNGKey,
        traced: dict[str, Array],
        images: Images,
        labels: Labels,
        ids: Int[Array, "share"],
        resume: AttackResult | None,
    ) -> AttackResult:
        rows: dict[str, Any] = {"example_ids": ids} if spec.takes_example_ids else {}
        if spec.resumable:
            rows["resume"] = resume
        logits_fn = make_logits_fn(context, ids)
        return spec.run(key, logits_fn, images, labels, **traced, **dict(static), **rows)

    return map_batches(step, on_host, num_replicated=3, num_batches=4)
