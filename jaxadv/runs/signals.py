"""Signals that ask a run to stop: SIGTERM of a cluster (preemption) and Ctrl-C of a user."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """The program was asked to stop. `except Exception` does not catch it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class _Request:
    signum: int | None = None
    deferred = False


def install_handlers(end: Callable[[Stopped], Any]) -> None:
    """Install handlers of SIGTERM and SIGINT that end the program, except inside `defer_stop`.

    Args:
      end: ends the program at once, wherever the signal arrives. An exception could be lost there.
    """

    def handle(signum: int, _: FrameType | None) -> None:
        _Request.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the program at once
        if not _Request.deferred:
            end(Stopped(signum))

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, handle)


@contextmanager
def defer_stop() -> Iterator[None]:
    """Defer stop requests to the end of the block. Inside, poll `stop_requested`.

    Raises:
      Stopped: at the end of the block, if a stop was requested inside.
    """
    _Request.deferred = True
    try:
        yield
    finally:
        _Request.deferred = False
    if stop_requested():
        raise_stopped()


def stop_requested() -> bool:
    """Return whether this process was asked to stop."""
    return _Request.signum is not None


def raise_stopped() -> None:
    """Raise `Stopped`, also where only another process of the run was asked to stop."""
    raise Stopped(_Request.signum or signal.SIGTERM)
