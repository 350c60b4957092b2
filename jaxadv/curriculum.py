"""The adversary's budget over the epochs of training."""

from typing import NamedTuple

from ml_collections import ConfigDict


class Budget(NamedTuple):
    """What the adversary may spend on an image: all traced by the attack."""

    eps: float
    step_size: float
    num_steps: int


def linear_budget(attack: ConfigDict, epoch: int, num_epochs: int) -> Budget:
    """Returns the budget of one epoch under the linear curriculum of the study.

    eps(t) = eps_start (1 - t) + eps_end t and num_steps(t) = int(num_steps_start (1 - t) +
    num_steps_end t) with t = epoch / num_epochs. `epoch` counts the finished epochs, so t
    never reaches 1. Equal start and end give a fixed budget.

    Args:
      attack: `config.attack`; see configs/default.py.
      epoch: finished epochs, from 0 to num_epochs - 1.
      num_epochs: epochs in all.
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
    """Returns the gradients that each epoch of a training spends on each of its images.

    The update is one for each image; that of TRADES also one for each image attacked, since it sees
    both. What it costs to find the prediction that TRADES attacks, without a gradient, is left out.

    Args:
      config: of configs/default.py.
    """
    attack, num_epochs = config.attack, config.train.num_epochs
    steps = [linear_budget(attack, epoch, num_epochs).num_steps for epoch in range(num_epochs)]
    update = 1 + attack.fraction * (config.train.loss == "trades")
    return [update + attack.fraction * num_steps for num_steps in steps]


def durations(config: ConfigDict) -> list[float]:
    """Returns the time that each epoch takes an image, in that of a gradient of an attack.

    An update takes about two gradients more than it has: the kernels have theirs, and are moved.

    Args:
      config: of configs/default.py.
    """
    return [gradients + 2 for gradients in gradient_evaluations(config)]
