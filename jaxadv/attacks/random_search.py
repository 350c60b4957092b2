"""Random search: the baseline that every black-box attack should beat."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int

from jaxadv.attacks.black_box import BlackBox, TracedBlackBox, make_query_fn, query_context
from jaxadv.attacks.checks import check_arguments
from jaxadv.attacks.host_calls import jit_kernel
from jaxadv.attacks.result import AttackResult, initial_result
from jaxadv.attacks.search import (
    Proposal,
    SearchMethod,
    SearchProblem,
    accept_larger_margin,
    constant_cost,
    is_zero_budget,
    make_problem,
    resume_or_start,
    run_search,
)
from jaxadv.attacks.spec import AttackSpec
from jaxadv.attacks.threat import THREATS, perturb, random_perturbation
from jaxadv.attacks.tracing import TracedModel
from jaxadv.core.losses import make_objective
from jaxadv.core.types import Images, Labels, LogitsFn, PRNGKey


def random_search(
    key: PRNGKey,
    logits_fn: LogitsFn | BlackBox,
    images: Images,
    labels: Labels,
    *,
    eps: ArrayLike,
    num_queries: ArrayLike,
    norm: str = "linf",
    num_noise_samples: ArrayLike = 1,
    targets: Labels | None = None,
    example_ids: Int[Array, "batch"] | None = None,
    resume: AttackResult | None = None,
) -> AttackResult:
    """Sample uniformly from the ball around each image until a sample is misclassified.

    The first success check is that of the clean image. The result has the largest margin seen.
    The arguments and errors are those of `jaxadv.attacks.nes`: `norm` is static; `eps`,
    `num_queries` and `num_noise_samples` are traced.

    >>> logits_fn = lambda key, x: x.sum((1, 2)) @ jnp.array([[1.0, -1.0]]) + jnp.array([-3.9, 0])
    >>> x, y = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> random_search(jax.random.key(0), logits_fn, x, y, eps=0.1, num_queries=10).success
    Array([ True], dtype=bool)
    """
    check_arguments({
        "eps": eps, "num_queries": num_queries, "norm": norm,
        "num_noise_samples": num_noise_samples,
    })  # fmt: skip
    model, problem = make_problem(
        key, logits_fn, images, labels, targets, example_ids, eps=eps, num_queries=num_queries,
        num_noise_samples=num_noise_samples, per_value=norm == "linf",
    )  # fmt: skip
    state = resume_or_start(resume, initial_result(problem.images), problem.eps, norm)
    if is_zero_budget(num_queries):
        return state
    with query_context():
        return _random_search(model, problem, state, norm=norm)


@partial(jit_kernel, static_argnames="norm")
def _random_search(
    model: TracedModel | TracedBlackBox, problem: SearchProblem, state: AttackResult, *, norm: str
) -> AttackResult:
    threat = THREATS[norm]
    sample_key, check_key = jax.random.split(problem.key)

    def propose(
        state: AttackResult, active: Bool[Array, "batch"], step: Int[Array, ""]
    ) -> Proposal:
        step_key = jax.random.fold_in(sample_key, step)
        delta = random_perturbation(
            threat, step_key, problem.example_ids, problem.images, problem.eps
        )
        candidates = perturb(threat, problem.images, delta, problem.eps)
        return Proposal(candidates, (), jnp.zeros_like(state.nonfinite))

    return run_search(
        check_key,
        make_query_fn(model),
        make_objective("margin", problem.labels, problem.targets),
        problem,
        state,
        SearchMethod(propose, constant_cost(0), accept_larger_margin),
    )


RANDOM_SEARCH = AttackSpec(
    attack_fn=random_search,
    run=random_search,
    traced=("eps", "num_queries", "num_noise_samples"),
    uses_gradients=False,
    max_queries=lambda arguments: arguments["num_queries"],
    resumable=True,
)
