"""Attacks that count queries: budget, success checks and resumption.

Every forward pass of one image is a query, those of success checks included. The budget is a hard
cap: a step that would exceed it is not started. The result of an example does not depend on the
other examples of its batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxadv.attacks.black_box import (
    BlackBox,
    QueryFn,
    TracedBlackBox,
    query_context,
    trace_black_box,
)
from jaxadv.attacks.checks import Inputs, as_radius, check_inputs, prepare
from jaxadv.attacks.eot import Noise, expected_logits
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.threat import THREATS, Radius, as_column
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.images import is_concrete
from jaxadv.core.losses import margin
from jaxadv.core.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey


class SearchProblem(NamedTuple):
    """The arguments that all black-box attacks share, all traced. Images and eps are float32.

    Attributes:
      num_queries: budget of each example, over all calls.
      num_noise_samples: forward passes that each success check averages over.
    """

    key: PRNGKey
    images: Images
    labels: Labels
    targets: Labels | None
    example_ids: Int[Array, "batch"]
    eps: Radius
    num_queries: Int[Array, ""]
    num_noise_samples: Int[Array, ""]


class Proposal(NamedTuple):
    """A candidate for each example, which a success check follows.

    Attributes:
      images: the candidates.
      extras: the new extras of the state, for active rows.
      nonfinite: differences of outputs that were NaN or infinite and counted as zero.
    """

    images: Images
    extras: PyTree
    nonfinite: Int[Array, "batch"]


class Decision(NamedTuple):
    """What follows from the success check of a candidate; one row per example.

    Attributes:
      accepted: whether the candidate replaces the image of the state.
      success: whether the search of this example ends.
      extras: the new extras of the state.
    """

    accepted: Bool[Array, "batch"]
    success: Bool[Array, "batch"]
    extras: PyTree


class SearchMethod(NamedTuple):
    """A search algorithm. The state is an `AttackResult`; results of inactive rows are ignored.

    Attributes:
      propose: `(state, active, step) -> Proposal`; all active rows are at this step.
      cost: `state -> (batch,)` queries of a proposal, without its success check.
      accept: `(state, candidates, margins) -> Decision`; the state has the extras of the proposal.
    """

    propose: Callable[[AttackResult, Bool[Array, "batch"], Int[Array, ""]], Proposal]
    cost: Callable[[AttackResult], Int[Array, "batch"]]
    accept: Callable[[AttackResult, Images, PerExample], Decision]


def constant_cost(num_queries: int) -> Callable[[AttackResult], Int[Array, "batch"]]:
    """Return a `SearchMethod.cost` that is the same for all proposals."""
    return lambda state: jnp.full_like(state.queries, num_queries)


def accept_larger_margin(state: AttackResult, candidates: Images, margins: PerExample) -> Decision:
    """Accept a candidate if its margin is larger than all before."""
    return Decision(margins > state.margins, margins > 0, state.extras)


def accept_always(state: AttackResult, candidates: Images, margins: PerExample) -> Decision:
    """Accept every candidate."""
    return Decision(jnp.ones_like(state.success), margins > 0, state.extras)


def make_problem(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    targets: Labels | None,
    example_ids: Int[Array, "batch"] | None,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    num_noise_samples: ArrayLike,
    per_value: bool = False,
) -> tuple[TracedModel | TracedBlackBox, SearchProblem]:
    """Check the model and the arrays of a black-box attack, and cast them.

    `per_value`: whether eps may have a radius for each value, see `as_radius`.

    Raises:
      ValueError: an array or the model is invalid, or a `BlackBox` is attacked inside `jit`.
    """
    model: TracedModel | TracedBlackBox
    if isinstance(logits_fn, (BlackBox, TracedBlackBox)):
        inputs = check_inputs(key, images, labels, targets, example_ids)
        model = trace_black_box(logits_fn, inputs.labels, inputs.targets)
    else:
        if getattr(images, "dtype", None) == jnp.float64:
            images = images.astype(jnp.float32)  # searches query in single precision
        with query_context():  # at the precision of the search
            model, inputs = prepare(
                logits_fn, key, images, labels, targets, example_ids, gradients=False
            )
    images = inputs.images.astype(jnp.float32)
    return model, SearchProblem(
        key=inputs.key,
        images=images,
        labels=inputs.labels,
        targets=inputs.targets,
        example_ids=inputs.example_ids,
        eps=as_radius("eps", eps, images, per_value=per_value),
        num_queries=jnp.asarray(num_queries, jnp.int32),
        num_noise_samples=jnp.asarray(num_noise_samples, jnp.int32),
    )


def resume_or_start(
    resume: AttackResult | None, initial: AttackResult, eps: Radius, norm: str
) -> AttackResult:
    """Return the state to continue from: that of an earlier call, or the initial one.

    Raises:
      ValueError: the earlier call was of another attack, of other images or of another ball.
    """
    if resume is None:
        return initial
    if jax.tree.map(jnp.shape, resume) != jax.tree.map(jnp.shape, initial):
        raise ValueError(
            "resume is the result of another attack, of other arguments or of another number of "
            "images: pass the result of a call with the same arguments"
        )
    if is_concrete(resume.images) and is_concrete(initial.images) and is_concrete(eps):
        delta, radius = resume.images - initial.images, as_column(eps)
        distances = jnp.abs(delta) if eps.ndim == 4 else THREATS[norm].length(delta)
        if (distances > radius * (1 + 1e-4) + 1e-6).any():
            raise ValueError(
                f"resume has images farther than eps, at most {radius.max():.4g}, from the given "
                "ones: pass the result of a call with the same images and eps"
            )
    return resume


def is_zero_budget(num_queries: ArrayLike | None) -> bool:
    """Return whether a budget is known to be 0: then the initial state is the result.

    This way the initial state of many examples needs no compilation.
    """
    return num_queries is not None and is_concrete(num_queries) and not num_queries


def run_search(
    key: PRNGKey,
    query_fn: QueryFn,
    score: Callable[[Logits], PerExample],
    problem: SearchProblem,
    state: AttackResult,
    method: SearchMethod,
    *,
    early_stop: bool = True,
) -> AttackResult:
    """Run a search until each example succeeds or its budget is spent.

    With `early_stop` a success check follows every candidate, the clean image first, and an example
    ends with its first success. Without it, a single success check follows the last step.

    Args:
      key: key of the model's noise in success checks.
      query_fn: forward passes of the model.
      score: `logits -> margins`, above 0 a success.
      problem: clean images and budgets.
      state: the initial state, or the result of an earlier call with a smaller budget.
      method: the search algorithm.
      early_stop: whether to check every candidate.
    """
    check_cost = problem.num_noise_samples

    def cost(state: AttackResult) -> Int[Array, "batch"]:
        is_clean_image = (state.steps == 0) & early_stop
        return jnp.where(is_clean_image, 0, method.cost(state)) + check_cost

    def active(state: AttackResult) -> Bool[Array, "batch"]:
        return ~state.success & (state.queries + cost(state) <= problem.num_queries)

    def margins_of(images: Images, step: Int[Array, ""], rows: Bool[Array, "batch"]) -> PerExample:
        step_key = jax.random.fold_in(key, step)
        return score(_mean_logits(step_key, query_fn, images, rows, check_cost))

    def advance(state: AttackResult) -> AttackResult:
        # Rows that waited for a larger budget catch up first, so that none skips a step.
        affordable = active(state)
        step = earliest_step(state, affordable)
        rows = affordable & (state.steps == step)
        if not early_stop:
            proposal = method.propose(state, rows, step)
            moved = _count(state, method.cost(state), proposal)._replace(images=proposal.images)
            return select_rows(rows, moved, state)
        proposal = lax.cond(
            step == 0,
            lambda: Proposal(problem.images, state.extras, jnp.zeros_like(state.nonfinite)),
            lambda: method.propose(state, rows, step),
        )
        margins = margins_of(proposal.images, step, rows)
        moved = _count(state, cost(state), proposal)
        decision = method.accept(state._replace(extras=proposal.extras), proposal.images, margins)
        rejected = moved._replace(success=decision.success, extras=decision.extras)
        accepted = rejected._replace(images=proposal.images, margins=margins)
        return select_rows(rows, select_rows(decision.accepted, accepted, rejected), state)

    state = lax.while_loop(lambda state: active(state).any(), advance, state)
    if early_stop:
        return lax.stop_gradient(state)
    rows = state.queries + check_cost <= problem.num_queries
    step = state.steps.max(initial=0)
    margins = lax.cond(
        rows.any(), lambda: margins_of(state.images, step, rows), lambda: state.margins
    )
    checked = state._replace(
        margins=margins, success=margins > 0, queries=state.queries + check_cost
    )
    return lax.stop_gradient(select_rows(rows, checked, state))


def forget_unconfirmed(result: AttackResult, eps: Float[Array, ""] | PerExample) -> AttackResult:
    """Reset the distances within eps of examples that do not count as successes.

    A second success check did not confirm these. Without the reset no farther image would count.
    """
    distance = result.extras.distance
    distance = jnp.where(~result.success & (distance <= eps), jnp.inf, distance)
    return result._replace(extras=result.extras._replace(distance=distance))


def earliest_step(state: AttackResult, rows: Bool[Array, "batch"]) -> Int[Array, ""]:
    """Return the least number of steps among the given rows."""
    largest = jnp.iinfo(jnp.int32).max
    return jnp.where(rows, state.steps, largest).min(initial=largest)


def _count(state: AttackResult, cost: Int[Array, "batch"], proposal: Proposal) -> AttackResult:
    return state._replace(
        queries=state.queries + cost,
        nonfinite=state.nonfinite + proposal.nonfinite,
        steps=state.steps + 1,
        extras=proposal.extras,
    )


def select_rows(rows: Bool[Array, "batch"], one: Any, other: Any) -> Any:
    """Return a tree of arrays with the given rows of `one` and the remaining rows of `other`."""

    def select_leaf(one: Array, other: Array) -> Array:
        return jnp.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(select_leaf, one, other)


def _mean_logits(
    key: PRNGKey,
    query_fn: QueryFn,
    images: Images,
    active: Bool[Array, "batch"],
    num_samples: Int[Array, ""],
) -> Float[Array, "batch classes"]:
    """Return the logarithm of the mean softmax over noise samples, up to a constant."""

    def log_softmax(i: int | Int[Array, ""]) -> Float[Array, "batch classes"]:
        sample_key = jax.random.fold_in(key, i)
        return jax.nn.log_softmax(query_fn(sample_key[None], images[None], active)[0])

    return lax.fori_loop(
        1, num_samples, lambda i, total: jnp.logaddexp(total, log_softmax(i)), log_softmax(0)
    )


def rank_target_classes(
    state: AttackResult,
    key: PRNGKey,
    model: TracedModel,
    inputs: Inputs,
    noise: Noise,
    num_queries: Int[Array, ""],
) -> AttackResult:
    """Fill in `extras.targets`, the most likely other classes, for rows without queries.

    The forward pass that ranks the classes also shows which clean images are misclassified. These
    become successes, and only their query counts include the forward pass.
    """
    is_new = state.queries == 0

    def rank() -> AttackResult:
        logits = expected_logits(key, model, inputs.images, noise)
        margins = margin(logits, inputs.labels).astype(state.margins.dtype)
        num_targets = state.extras.targets.shape[1]
        targets = _likeliest_others(logits, inputs.labels, num_targets)
        ranked = state._replace(extras=state.extras._replace(targets=targets))
        misclassified = ranked._replace(
            success=jnp.ones_like(state.success),
            queries=jnp.zeros_like(state.queries) + noise.num_samples,
            margins=margins,
        )
        is_success = (margins > 0) & (num_queries >= noise.num_samples)
        return select_rows(is_new, select_rows(is_success, misclassified, ranked), state)

    return lax.cond(is_new.any(), rank, lambda: state)


def _likeliest_others(
    logits: Logits, labels: Labels, num_targets: int
) -> Int[Array, "batch targets"]:
    """Return the classes with the largest logits except the label, the largest first."""
    is_label = jnp.arange(logits.shape[1], dtype=labels.dtype) == labels[:, None]
    return lax.top_k(jnp.where(is_label, -jnp.inf, logits), num_targets)[1].astype(jnp.int32)
