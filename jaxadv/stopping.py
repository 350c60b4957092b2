"""A request to stop, as a cluster (SIGTERM) or a user (Ctrl-C) sends it, and where it is heeded."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """The program was asked to stop; no error, so that nothing takes it for one."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class _Request:
    signum: int | None = None
    waits = False


def heed_signals(end: Callable[[Stopped], Any]) -> None:
    """From now on a request to stop ends the program, or waits where that is said.

    Args:
      end: ends the program at once, wherever the signal comes: an exception could be lost there.
    """

    def ask(signum: int, _: FrameType | None) -> None:
        _Request.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait
        if not _Request.waits:
            end(Stopped(signum))

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, ask)


@contextmanager
def stop_waits() -> Iterator[None]:
    """In this block a request to stop waits, to be looked for with `asked`, at most to its end."""
    _Request.waits = True
    try:
        yield
    finally:
        _Request.waits = False
    if asked():
        stop()


def asked() -> bool:
    """Returns whether this process was asked to stop."""
    return _Request.signum is not None


def stop() -> None:
    """Raises `Stopped`, in a process too that others have asked."""
    raise Stopped(_Request.signum or signal.SIGTERM)
