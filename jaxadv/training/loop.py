"""The steps of an epoch: with a progress bar, a check of the losses and a way to stop early."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax

from jaxadv.core.progress import progress_bar
from jaxadv.core.types import UserError
from jaxadv.runs import signals
from jaxadv.runs.distributed import any_process, is_first

_STEPS_BETWEEN_STOP_CHECKS = 8  # with several processes: a check synchronises them
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
    """Run the remaining steps of an epoch, or fewer if the program is asked to stop.

    Args:
      step: `(state, *batch) -> (state, metrics)`.
      state: before the first of these steps.
      batches: of the remaining steps.
      earlier: metrics of the finished steps of the epoch, as floats.
      num_steps: steps of the whole epoch.
      num_images: images per step.
      title: of the progress bar.
      advice: what a user may do when a loss is not finite.

    Returns:
      The state, the metrics of all steps of the epoch so far as floats, and whether the program was
      asked to stop.

    Raises:
      UserError: a loss is not finite.
    """
    new_metrics: list[Metrics] = []
    stopped = False
    with progress_bar(
        title=title,
        total=num_steps * num_images,
        initial=len(earlier) * num_images,
        unit="img",
        leave=False,
        disable=None if is_first() else True,
    ) as bar:
        for batch in batches:
            state, metrics = step(state, *batch)
            new_metrics.append(metrics)
            num_done = len(earlier) + len(new_metrics)
            # Checks the previous step, so that an accelerator never waits for the host.
            _check_finite(new_metrics[-2:-1], f"{title}, step {num_done - 1}", advice)
            bar.update(num_images)
            if stopped := _must_stop(num_done):
                break
    _check_finite(new_metrics[-1:], f"{title}, step {len(earlier) + len(new_metrics)}", advice)
    on_host = jax.device_get(new_metrics)
    floats = [{name: float(value) for name, value in metrics.items()} for metrics in on_host]
    return state, [*earlier, *floats], stopped


def _must_stop(step: int) -> bool:
    """Return whether any process was asked to stop; several processes check at some steps only."""
    if jax.process_count() > 1 and step % _STEPS_BETWEEN_STOP_CHECKS:
        return False
    return any_process(signals.stop_requested())


def _check_finite(metrics: Sequence[Metrics], place: str, advice: str) -> None:
    for values in metrics:
        for name, value in values.items():
            if "loss" in name and not math.isfinite(value):
                raise UserError(
                    f"{place}: the {name} is {float(value)}; the last checkpoint is kept. {advice}"
                )
