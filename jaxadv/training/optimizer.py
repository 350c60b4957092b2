"""Optimizers, learning-rate schedules and averages of the weights."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_map_with_path
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

SCHEDULES = {
    "constant": lambda peak, num_steps: optax.constant_schedule(peak),
    "cosine": lambda peak, num_steps: optax.cosine_decay_schedule(peak, max(num_steps, 1)),
    "linear": lambda peak, num_steps: optax.linear_schedule(peak, 0.0, max(num_steps, 1)),
}
AverageFn = Callable[[PyTree, PyTree, Int[Array, ""]], PyTree]
"""`(average, new, step) -> average` after `step` steps, of a tree of weights."""


def make_schedule(optimizer: ConfigDict, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    The learning rate rises linearly from 0 to its peak during the warm-up. Then "constant" keeps
    the peak, and "cosine" and "linear" decay to 0 at the last step. A warm-up with "linear" is the
    one-cycle schedule.
    """
    peak = optimizer.learning_rate
    warmup_steps = round(optimizer.warmup_epochs * steps_per_epoch)
    num_steps = num_epochs * steps_per_epoch - warmup_steps
    schedule = SCHEDULES[optimizer.schedule](peak, num_steps)
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def make_optimizer(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the optax chain that `optimizer.name` names; see configs/default.py."""
    return OPTIMIZERS[optimizer.name](optimizer, schedule)


def _adamw(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=optimizer.weight_decay, mask=_decay_mask)


def _sgd(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    # Weight decay is added to the gradient before the momentum, as in torch.optim.SGD.
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay, mask=_decay_mask),
        optax.sgd(schedule, momentum=optimizer.momentum, nesterov=optimizer.nesterov),
    )


def _muon(optimizer: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Make the momentum of kernels orthogonal (Jordan 2024, "Muon"); AdamW updates the others.

    The momentum is Nesterov's, 0.95. Updates of kernels are scaled to the size of those of AdamW
    (Liu et al. 2025, equation 4), so that both take the same learning rate and weight decay.
    """
    of_kernels = optax.contrib.muon(
        schedule,
        weight_decay=optimizer.weight_decay,
        muon_weight_dimension_numbers=partial(jax.tree.map, _as_matrix),
        consistent_rms=0.2,
    )
    others = _adamw(optimizer, schedule)
    return optax.partition({"kernel": of_kernels, "other": others}, _label_kernels)


def _label_kernels(params: PyTree) -> PyTree:
    """Label the kernels of dense layers and of two-dimensional convolutions, by Flax's name."""

    def label(path: tuple, param: Array) -> str:
        is_kernel = "kernel" in keystr(path[-1:]) and param.ndim in (2, 4)
        return "kernel" if is_kernel else "other"

    return tree_map_with_path(label, params)


def _as_matrix(kernel: Array) -> optax.contrib.MuonDimensionNumbers:
    """Return the axes of a kernel as a matrix: all that an output sums, and the outputs."""
    *inputs, outputs = range(kernel.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), (outputs,))


def _decay_mask(params: PyTree) -> PyTree:
    """Return for each parameter whether it decays: all except the alpha of PNI.

    `WeightNoise` of `jaxadv.models.defences` has that parameter.
    """
    alpha = re.compile(r"\['WeightNoise_\d+'\]\['alpha'\]$")
    return tree_map_with_path(lambda path, _: not alpha.search(keystr(path)), params)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "sgd": _sgd}


def make_average(train: ConfigDict, steps_per_epoch: int) -> AverageFn | None:
    """Return the average of the weights that `config.train` names; None without one.

    Args:
      train: `config.train` of configs/default.py.
      steps_per_epoch: of the training.
    """
    if train.swa_start is not None:
        first_step = round(train.swa_start * steps_per_epoch)
        return partial(stochastic_average, first_step=first_step)
    return partial(moving_average, decay=train.ema_decay) if train.ema_decay else None


def moving_average(
    average: PyTree, new: PyTree, step: int | Int[Array, ""], decay: float
) -> PyTree:
    """Return the exponential moving average after `step` steps; integers are not averaged.

    The decay grows from 1/11 in the first step to its value, so that the first averages depend
    little on the initial tree.
    """
    return _interpolate(average, new, jnp.minimum(decay, step / (step + 10)))


def stochastic_average(
    average: PyTree, new: PyTree, step: int | Int[Array, ""], first_step: int
) -> PyTree:
    """Return the mean over the steps after `first_step` (SWA; Izmailov et al., 2018).

    Until then it is the new tree. Integers are not averaged. The paper averages once per epoch, and
    computes the statistics of batch norm again for the mean weights; here both are averaged in each
    step.
    """
    return _interpolate(average, new, 1 - 1 / jnp.maximum(step - first_step, 1))


def _interpolate(old: PyTree, new: PyTree, weight: Array) -> PyTree:
    """Return weight * old + (1 - weight) * new."""

    def of_leaf(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return weight * old + (1 - weight) * new

    return jax.tree.map(of_leaf, old, new)
