"""Output-diversified initialisation of attacks (ODI, Tashiro et al., 2020).

The random starts of an attack differ in their images, but the model's outputs for them are often
much alike. ODI ascends randomly weighted logits before the loss, so that the outputs differ too.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from jaxadv.attacks.apgd_run import Run
from jaxadv.attacks.checks import Arguments
from jaxadv.attacks.eot import Objective
from jaxadv.attacks.threat import Radius, Threat, ascend
from jaxadv.core.logits import at_least_float32
from jaxadv.core.rng import example_keys, uniform
from jaxadv.core.types import Images, Logits, PerExample, PRNGKey


def check_odi(arguments: Arguments) -> None:
    """Raise a ValueError if an attack has steps of ODI in a norm that the paper does not treat."""
    num_odi_steps, norm = arguments.get("num_odi_steps", 0), arguments.get("norm", "linf")
    if num_odi_steps and norm not in ("linf", "l2"):
        raise ValueError(f"num_odi_steps is {num_odi_steps}: it must be 0 in {norm}")


def odi_objective(
    key: PRNGKey,
    example_ids: Int[Array, "batch"],
    num_classes: int,
    objective: Objective,
    diversifies: Bool[Array, ""],
) -> Objective:
    """Return the objective of a step: `objective`, or that of ODI if the step diversifies.

    That of ODI is the sum of the logits, each with a weight from the uniform distribution on
    [-1, 1] (equation 2 of the paper). The weights of an example depend on the key and its id.
    """

    def value(logits: Logits) -> PerExample:
        def weighted_logits() -> PerExample:
            keys = example_keys(key, example_ids)
            weights = jax.vmap(partial(uniform, shape=(num_classes,)))(keys)
            return (weights * at_least_float32(logits)).sum(axis=1)

        return lax.cond(diversifies, weighted_logits, lambda: objective(logits))

    return value


def with_odi(run: Run, threat: Threat, images: Images, eps: Radius, num_odi_steps: int) -> Run:
    """Return a run of APGD whose start is that of ODI: the first iterates take its steps.

    Iterate 0 is the random start. The gradients at iterates 0 to `num_odi_steps` - 1 have to be
    those of `odi_objective`; each leads to the next iterate by a step of length eps. The last of
    these iterates is the start of the given run.
    """

    def move(i: Int[Array, ""], state: PyTree) -> Images:
        return lax.cond(
            i <= num_odi_steps,
            lambda: ascend(threat, images, state.iterate, state.gradient, eps, eps),
            lambda: run.move(i - num_odi_steps, state),
        )

    def update(
        i: Int[Array, ""], state: PyTree, iterate: Images, losses: PerExample, gradient: Images
    ) -> PyTree:
        return run.update(jnp.maximum(i - num_odi_steps, 0), state, iterate, losses, gradient)

    return run._replace(length=run.length + num_odi_steps, move=move, update=update)
