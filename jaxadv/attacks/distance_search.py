"""Black-box searches for the nearest misclassified image: distances and what ends a search."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxadv.attacks.black_box import QueryFn
from jaxadv.attacks.result import AttackResult
from jaxadv.attacks.search import (
    Decision,
    Proposal,
    SearchMethod,
    SearchProblem,
    forget_unconfirmed,
    run_search,
    select_rows,
)
from jaxadv.attacks.threat import THREATS
from jaxadv.core.types import Images, Logits, PerExample, PRNGKey


def run_distance_search(
    key: PRNGKey,
    query_fn: QueryFn,
    score: Callable[[Logits], PerExample],
    problem: SearchProblem,
    state: AttackResult,
    *,
    propose: Callable[[AttackResult, Bool[Array, "batch"], Int[Array, ""]], Proposal],
    cost: Callable[[AttackResult], Int[Array, "batch"]],
    advance: Callable[[Any, Images, Bool[Array, "batch"]], Any],
    initial_extras: Any,
    norm: str,
    early_stop: bool,
) -> AttackResult:
    """Run a search whose `extras.distance` is the distance to the nearest misclassified image.

    Args:
      key: key of the model's noise in success checks.
      query_fn: forward passes of the model.
      score: `logits -> margins`, above 0 a success.
      problem: clean images and budgets.
      state: the initial state, or the result of an earlier call with a smaller budget.
      propose: of the `SearchMethod`.
      cost: of the `SearchMethod`.
      advance: `(extras, candidates, is_wrong) -> extras` after the success check of a candidate
        other than the clean image. The distance is set afterwards.
      initial_extras: before the first step.
      norm: of the distance.
      early_stop: whether an example ends with its first image within eps, or with its budget.
    """
    images, eps = problem.images, problem.eps

    def accept(state: AttackResult, candidates: Images, margins: PerExample) -> Decision:
        extras, is_wrong, is_clean_image = state.extras, margins > 0, state.steps == 0
        distance = THREATS[norm].length(candidates - images)[:, 0, 0, 0]
        is_nearer = is_wrong & (distance < extras.distance)
        accepted = is_clean_image | (is_nearer & (distance <= eps))
        new = advance(extras, candidates, is_wrong)
        new = new._replace(distance=jnp.where(is_nearer, distance, extras.distance))
        first = extras._replace(distance=jnp.where(is_wrong, 0.0, extras.distance))
        return Decision(
            accepted,
            is_wrong & (is_clean_image | (accepted & early_stop)),
            select_rows(is_clean_image, first, new),
        )

    confirmed = forget_unconfirmed(state, eps)
    # After an unconfirmed success the search begins again: its state led to that image.
    is_lost = jnp.isinf(confirmed.extras.distance) & jnp.isfinite(state.extras.distance)
    extras = select_rows(is_lost, initial_extras, confirmed.extras)
    state = confirmed._replace(extras=extras)
    if not early_stop:  # only misclassified clean images end before their budget is spent
        # Rows without an image that count as a success are padding, which spends no queries.
        is_final = (extras.distance == 0) | jnp.isinf(extras.distance)
        state = state._replace(success=state.success & is_final)
    method = SearchMethod(propose, cost, accept)
    state = run_search(key, query_fn, score, problem, state, method)
    distance = state.extras.distance
    return state._replace(success=jnp.isfinite(distance) & (distance <= eps))
