"""The ledger of a black-box attack: what a search proposes, looks at, keeps, and has spent.

Every forward pass of one image is a query, the look at a candidate as well as the passes that led
to it. The budget is a hard cap: what would exceed it is not begun. An example's rows depend on no
other example of its batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxadv.attacks.arguments import known
from jaxadv.attacks.inputs import check_inputs, prepare
from jaxadv.attacks.passes import BlackBox, Passes
from jaxadv.attacks.threat import THREATS
from jaxadv.attacks.tracing import TracedModel
from jaxadv.types import Images, Labels, Logits, LogitsFn, PerExample, PRNGKey


class Task(NamedTuple):
    """What every black-box attack is asked: the arguments they share, all of them traced.

    The images and eps are float32.
    """

    key: PRNGKey
    images: Images
    labels: Labels
    targets: Labels | None
    example_ids: Int[Array, "batch"]
    eps: Float[Array, ""]
    num_queries: Int[Array, ""]
    num_noise_samples: Int[Array, ""]


class Queried(NamedTuple):
    """What a black-box attack found, and what it spent; every array has one row per example.

    Attributes:
      images: adversarial images, (batch, height, width, channels).
      success: whether the image was seen misclassified, or as its target, inside of the ball.
      queries: forward passes spent.
      gradients: gradients among them, of the one or the other class of an image; 0 in a search that
        sees outputs only.
      nonfinite: gradients, or differences of outputs, that were not finite and counted as zero.
      margins: largest other logit minus the label's at the last look that was kept, or minus the
        same for the target; above 0 is a success, -inf where nothing was looked at. Where a logit
        was not finite it is inf, a success, or with targets -inf, none.
      steps: candidates proposed.
      memory: what else the search goes on from.
    """

    images: Images
    success: Bool[Array, "batch"]
    queries: Int[Array, "batch"]
    gradients: Int[Array, "batch"]
    nonfinite: Int[Array, "batch"]
    margins: PerExample
    steps: Int[Array, "batch"]
    memory: PyTree


class Verdict(NamedTuple):
    """What comes of a look at a candidate; each has one row per example.

    Attributes:
      kept: whether the candidate takes the place of what was found.
      success: whether it ends the search.
      memory: of the search.
    """

    kept: Bool[Array, "batch"]
    success: Bool[Array, "batch"]
    memory: PyTree


class Proposal(NamedTuple):
    """A candidate of each example, which is looked at next.

    Attributes:
      images: the candidates.
      memory: of the search.
      nonfinite: differences of outputs that were not finite, and counted as zero.
    """

    images: Images
    memory: PyTree
    nonfinite: Int[Array, "batch"]


class Search(NamedTuple):
    """A way to search; only the rows that are active count.

    Attributes:
      propose: `(found, active, step) -> Proposal`; the step is that of all active rows.
      cost: `found -> (batch,)` passes that the proposal takes, without the look at it.
      judge: `(found, candidates, margins) -> Verdict`; `found` has the memory of the proposal.
    """

    propose: Callable[[Queried, Bool[Array, "batch"], Int[Array, ""]], Proposal]
    cost: Callable[[Queried], Int[Array, "batch"]]
    judge: Callable[[Queried, Images, PerExample], Verdict]


def always(count: int) -> Callable[[Queried], Int[Array, "batch"]]:
    """Returns the cost of proposals that all take as many passes."""
    return lambda found: jnp.full_like(found.queries, count)


def keep_larger(found: Queried, candidates: Images, margins: PerExample) -> Verdict:
    """Keeps a candidate where its margin is larger than any before."""
    kept = margins > found.margins
    return Verdict(kept, margins > 0, found.memory)


def keep_latest(found: Queried, candidates: Images, margins: PerExample) -> Verdict:
    """Keeps every candidate."""
    return Verdict(jnp.ones_like(found.success), margins > 0, found.memory)


def make_task(
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
) -> tuple[TracedModel | BlackBox, Task]:
    """Returns the model and the arrays that all black-box attacks share, once they are checked."""
    model: TracedModel | BlackBox
    if isinstance(logits_fn, BlackBox):
        model, inputs = logits_fn, check_inputs(key, images, labels, targets, example_ids)
        if not all(map(known, jax.tree.leaves(inputs))):
            raise ValueError("a BlackBox cannot be attacked inside of jit: Python calls it")
    else:
        # As it will run, see `passes.reaching`.
        with jax.default_matmul_precision("highest"):
            model, inputs = prepare(
                logits_fn, key, images, labels, targets, example_ids, gradients=False
            )
    key, floats, labels, targets, ids = inputs
    return model, Task(
        key=key,
        images=floats.astype(jnp.float32),
        labels=labels,
        targets=targets,
        example_ids=ids,
        eps=jnp.asarray(eps, jnp.float32),
        num_queries=jnp.asarray(num_queries, jnp.int32),
        num_noise_samples=jnp.asarray(num_noise_samples, jnp.int32),
    )


def go_on(resume: Queried | None, first: Queried, eps: Float[Array, ""], norm: str) -> Queried:
    """Returns where a search begins, or where an earlier call stopped.

    Raises:
      ValueError: that call was of another attack, on other images or in another ball.
    """
    if resume is None:
        return first
    if jax.tree.map(jnp.shape, resume) != jax.tree.map(jnp.shape, first):
        raise ValueError("resume is not of this attack, these arguments and as many images")
    if known(resume.images) and known(first.images) and known(eps):
        lengths = THREATS[norm].length(resume.images - first.images)
        if (lengths > eps * (1 + 1e-4) + 1e-6).any():
            raise ValueError(f"resume has images farther than {eps:.4g} from those given")
    return resume


def buys_nothing(num_queries: ArrayLike | None) -> bool:
    """Returns whether a budget is known to be 0: what a search begins with is then its result.

    So a search over many examples gets its first state without a compilation.
    """
    return num_queries is not None and known(num_queries) and not num_queries


def begin(images: Images, memory: PyTree = ()) -> Queried:
    """Returns the state before the first query."""
    # Of the images, so that all vary over the axes of a mesh as they do.
    zeros = jnp.zeros_like(images[:, 0, 0, 0])
    none = zeros.astype(jnp.int32)
    return Queried(
        images=images,
        success=none > 0,
        queries=none,
        gradients=none,
        nonfinite=none,
        margins=zeros - jnp.inf,
        steps=none,
        memory=memory,
    )


def search(
    key: PRNGKey,
    passes: Passes,
    score: Callable[[Logits], PerExample],
    task: Task,
    found: Queried,
    how: Search,
    *,
    early_stop: bool = True,
) -> Queried:
    """Returns what the search found within the budget, from where it stands.

    With `early_stop` every candidate is looked at, the clean image first, and an example is done
    with the first success. Without it there is one look, at the very end.

    Args:
      key: of the noise under which candidates are looked at.
      passes: the model.
      score: margin of the logits, above 0 a success.
      task: the clean images, the budget of each example over all calls, and the passes averaged
        in each look.
      found: of `begin`, or of an earlier call with a smaller budget.
      how: the search.
      early_stop: whether to look at every candidate.
    """
    look_cost = task.num_noise_samples

    def cost(found: Queried) -> Int[Array, "batch"]:
        first = (found.steps == 0) & early_stop
        return jnp.where(first, 0, how.cost(found)) + look_cost

    def active(found: Queried) -> Bool[Array, "batch"]:
        return ~found.success & (found.queries + cost(found) <= task.num_queries)

    def look(images: Images, step: Int[Array, ""], active: Bool[Array, "batch"]) -> PerExample:
        return score(_mean_logits(jax.random.fold_in(key, step), passes, images, active, look_cost))

    def advance(found: Queried) -> Queried:
        # Rows that waited for a larger budget first catch up, so that none skips a step.
        ready = active(found)
        step = earliest_step(found, ready)
        rows = ready & (found.steps == step)
        if not early_stop:
            proposal = how.propose(found, rows, step)
            moved = _spend(found, how.cost(found), proposal)._replace(images=proposal.images)
            return select(rows, moved, found)
        proposal = lax.cond(
            step == 0,
            lambda: Proposal(task.images, found.memory, jnp.zeros_like(found.nonfinite)),
            lambda: how.propose(found, rows, step),
        )
        margins = look(proposal.images, step, rows)
        moved = _spend(found, cost(found), proposal)
        kept, success, memory = how.judge(
            found._replace(memory=proposal.memory), proposal.images, margins
        )
        moved = moved._replace(success=success, memory=memory)
        looked = moved._replace(images=proposal.images, margins=margins)
        return select(rows, select(kept, looked, moved), found)

    found = lax.while_loop(lambda found: active(found).any(), advance, found)
    if early_stop:
        return lax.stop_gradient(found)
    rows = found.queries + look_cost <= task.num_queries
    step = found.steps.max(initial=0)
    margins = lax.cond(rows.any(), lambda: look(found.images, step, rows), lambda: found.margins)
    looked = found._replace(margins=margins, success=margins > 0, queries=found.queries + look_cost)
    return lax.stop_gradient(select(rows, looked, found))


def earliest_step(found: Queried, rows: Bool[Array, "batch"]) -> Int[Array, ""]:
    """Returns the step of those among the rows that are furthest behind."""
    last = jnp.iinfo(jnp.int32).max
    return jnp.where(rows, found.steps, last).min(initial=last)


def _spend(found: Queried, cost: Int[Array, "batch"], proposal: Proposal) -> Queried:
    return found._replace(
        queries=found.queries + cost,
        nonfinite=found.nonfinite + proposal.nonfinite,
        steps=found.steps + 1,
        memory=proposal.memory,
    )


def select(rows: Bool[Array, "batch"], one: Any, other: Any) -> Any:
    """Returns a tree with some rows of one and the rest of the other."""

    def of_leaf(one: Array, other: Array) -> Array:
        return jnp.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(of_leaf, one, other)


def _mean_logits(
    key: PRNGKey,
    passes: Passes,
    images: Images,
    active: Bool[Array, "batch"],
    num_samples: Int[Array, ""],
) -> Float[Array, "batch classes"]:
    """Returns the logarithm of the mean softmax over passes, up to what is equal for all."""

    def one(i: int | Int[Array, ""]) -> Float[Array, "batch classes"]:
        return jax.nn.log_softmax(passes(jax.random.fold_in(key, i)[None], images[None], active)[0])

    return lax.fori_loop(1, num_samples, lambda i, total: jnp.logaddexp(total, one(i)), one(0))
