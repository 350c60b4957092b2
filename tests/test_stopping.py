import os
import signal

import pytest

from jaxadv import stopping


class Ended(Exception):  # noqa: N818
    """Stands for the end of the program."""


def end(stopped):
    raise Ended(stopped.signum, str(stopped))


@pytest.fixture
def heeded(monkeypatch):
    """The handlers of a program, put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(stopping._Request, "signum", None)
    stopping.heed_signals(end)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_request_ends_the_program_where_nothing_waits(heeded, signum):
    with pytest.raises(Ended) as ended:
        os.kill(os.getpid(), signum)
    assert ended.value.args == (signum, signum.name)


def test_where_a_request_waits_it_can_be_looked_for(heeded):
    waited = False
    with pytest.raises(stopping.Stopped), stopping.stop_waits():  # noqa: PT012
        assert not stopping.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked()
        waited = True
    assert waited
    with pytest.raises(Ended):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_ctrl_c_ends_the_program_at_once(heeded):
    with pytest.raises(stopping.Stopped), stopping.stop_waits():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
