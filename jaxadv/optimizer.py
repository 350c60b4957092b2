"""Optax chains and learning-rate schedules, from the config."""

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict


def make_schedule(optimizer: ConfigDict, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    "constant" stays at the peak, "cosine" falls from it to 0 at the last step, "piecewise"
    divides it by 10 at one half and at three quarters (Rice et al. 2020). A warm-up rises
    linearly from 0 to the peak before any of them.
    """
    peak = optimizer.learning_rate
    warmup_steps = round(optimizer.warmup_epochs * steps_per_epoch)
    num_steps = num_epochs * steps_per_epoch - warmup_steps
    schedule = SCHEDULES[optimizer.schedule](peak, num_steps)
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def _piecewise(peak: float, num_steps: int) -> optax.Schedule:
    drops = {num_steps // 2: 0.1, num_steps * 3 // 4: 0.1}
    return optax.piecewise_constant_schedule(peak, drops)


SCHEDULES = {
    "constant": lambda peak, num_steps: optax.constant_schedule(peak),
    "cosine": lambda peak, num_steps: optax.cosine_decay_schedule(peak, max(num_steps, 1)),
    "piecewise": _piecewise,
}


def make_optimizer(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the chain named by `optimizer.name`, see configs/default.py."""
    return OPTIMIZERS[optimizer.name](optimizer, schedule)


def moving_average(
    average: PyTree, new: PyTree, decay: float, step: int | Int[Array, ""]
) -> PyTree:
    """Returns the exponential moving average after `step` steps.

    It starts as the mean of the few trees there are, not of the initial one: the decay grows from
    1/11 to its value.
    """
    decay_now = jnp.minimum(decay, step / (step + 10))
    return jax.tree.map(lambda old, new: decay_now * old + (1 - decay_now) * new, average, new)


def _adamw(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=optimizer.weight_decay, mask=_decays)


def _sgd(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    # Decay joins the gradient before the momentum, as torch.optim.SGD does it.
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay, mask=_decays),
        optax.sgd(schedule, momentum=optimizer.momentum),
    )


def _decays(params: PyTree) -> PyTree:
    """Returns for each parameter whether it decays: the scale of a weight's noise does not."""
    return tree_map_with_path(lambda path, _: not keystr(path).endswith("['alpha']"), params)


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}
