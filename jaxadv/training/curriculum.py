"""The linear curriculum of the attack budget, and the cost of the epochs of a training."""

from typing import NamedTuple

from ml_collections import ConfigDict

from jaxadv.training.losses import make_loss


class Budget(NamedTuple):
    """Budget of the training attack: radius, step size and steps, all traced."""

    eps: float
    step_size: float
    num_steps: int


def linear_budget(attack: ConfigDict, epoch: int, num_epochs: int) -> Budget:
    """Return the budget of an epoch under the linear curriculum of the study.

    eps(t) = eps_start (1 - t) + eps_end t and num_steps(t) = int(num_steps_start (1 - t) +
    num_steps_end t) with t = epoch / num_epochs. `epoch` counts the finished epochs, so t
    never reaches 1. An equal start and end give a fixed budget.

    Args:
      attack: `config.attack`; see configs/default.py.
      epoch: number of finished epochs, from 0 to num_epochs - 1.
      num_epochs: number of epochs of the training.
    """
    t = epoch / num_epochs

    def ramp(start: int | float, end: int | float) -> int | float:
        return start + (end - start) * t  # exactly `start` where both are equal

    return Budget(
        eps=ramp(attack.eps_start, attack.eps_end),
        step_size=attack.step_size,
        # The small term undoes float rounding just below an integer.
        num_steps=int(ramp(attack.num_steps_start, attack.num_steps_end) + 1e-9),
    )


def gradient_evaluations(config: ConfigDict) -> list[float]:
    """Return the gradient evaluations per training image in each epoch.

    The update takes one for each image. Losses of both versions of the attacked images, such as
    TRADES, take another one for each of these. Gradient alignment takes four: the two input
    gradients, and twice the second for its derivative. AWP doubles the update. Forward passes
    without a gradient, which give TRADES the predictions to attack, are not counted.

    Args:
      config: of configs/default.py.
    """
    attack, train = config.attack, config.train
    budgets = [linear_budget(attack, epoch, train.num_epochs) for epoch in range(train.num_epochs)]
    update = 1 + attack.fraction * make_loss(train).needs_clean
    update += 4 * attack.fraction * bool(train.gradient_alignment)
    update *= 2 if train.awp_gamma else 1
    return [update + attack.fraction * budget.num_steps for budget in budgets]


def durations(config: ConfigDict) -> list[float]:
    """Return the time per training image in each epoch, in units of an attack's gradient.

    An update takes about two gradients longer than its own gradient evaluations: for the gradients
    of the kernels, which AWP computes twice, and for the optimizer.

    Args:
      config: of configs/default.py.
    """
    kernels = 4 if config.train.awp_gamma else 2
    return [gradients + kernels for gradients in gradient_evaluations(config)]
