"""The steps of an epoch, with a progress bar, until they are done or the program is to stop."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from jaxadv import stopping
from jaxadv.processes import any_process, is_first
from jaxadv.types import UserError

_STEPS_BETWEEN_LOOKS = 8  # at the other processes, for which accelerators and host wait
State = TypeVar("State")
Metrics = dict[str, Any]


def run_steps(
    step: Callable[..., tuple[State, Metrics]],
    state: State,
    batches: Iterable[tuple],
    *,
    earlier: Sequence[Metrics],
    num_steps: int,
    num_images: int,
    title: str,
    advice: str,
) -> tuple[State, list[Metrics], bool]:
    """Runs the steps that are left of an epoch, or those before the program is asked to stop.

    Args:
      step: `(state, *batch) -> (state, metrics)`.
      state: to begin with.
      batches: of the steps that are left.
      earlier: metrics of the steps before them, in floats.
      num_steps: of the epoch.
      num_images: of each step.
      title: of the progress bar.
      advice: to a user whose loss is no longer finite.

    Returns:
      The state, the metrics of all steps so far in floats, and whether it was asked to stop.

    Raises:
      UserError: a loss is no longer finite.
    """
    found: list[Metrics] = []
    stopped = False
    with tqdm(
        desc=title,
        total=num_steps * num_images,
        initial=len(earlier) * num_images,
        unit="img",
        leave=False,
        disable=None if is_first() else True,
    ) as bar:
        for batch in batches:
            state, metrics = step(state, *batch)
            found.append(metrics)
            # A step late, so that an accelerator never waits for the host.
            _check_finite(found[-2:-1], f"{title}, step {len(earlier) + len(found) - 1}", advice)
            bar.update(num_images)
            if stopped := _is_to_stop(len(earlier) + len(found)):
                break
    _check_finite(found[-1:], f"{title}, step {len(earlier) + len(found)}", advice)
    host = [{name: float(value) for name, value in m.items()} for m in jax.device_get(found)]
    return state, [*earlier, *host], stopped


def _is_to_stop(step: int) -> bool:
    """Returns whether this process was asked to stop, or another, which is seldom looked for."""
    if jax.process_count() > 1 and step % _STEPS_BETWEEN_LOOKS:
        return False
    return any_process(stopping.asked())


def _check_finite(metrics: Sequence[Metrics], place: str, advice: str) -> None:
    for values in metrics:
        for name, value in values.items():
            if "loss" in name and not math.isfinite(value):
                raise UserError(
                    f"{place}: the {name} is {float(value)}; the last checkpoint is kept. {advice}"
                )
