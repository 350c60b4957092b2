import os
import signal

import pytest

from jaxadv.runs import signals


class Ended(Exception):  # noqa: N818
    """Raised instead of ending the program."""


def end(stopped):
    raise Ended(stopped.signum, str(stopped))


@pytest.fixture
def handlers(monkeypatch):
    """Install the handlers of signals, and restore the previous ones afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(signals._Request, "signum", None)
    signals.install_handlers(end)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_outside_of_defer_stop(handlers, signum):
    with pytest.raises(Ended) as ended:
        os.kill(os.getpid(), signum)
    assert ended.value.args == (signum, signum.name)


def test_inside_defer_stop_a_signal_sets_stop_requested(handlers):
    deferred = False
    with pytest.raises(signals.Stopped), signals.defer_stop():  # noqa: PT012
        assert not signals.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop_requested()
        deferred = True
    assert deferred
    with pytest.raises(Ended):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_ctrl_c_ends_the_program_at_once(handlers):
    with pytest.raises(signals.Stopped), signals.defer_stop():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
