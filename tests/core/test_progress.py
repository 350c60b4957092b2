import io
import sys

import pytest

from jaxadv.core.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def replace_stderr(monkeypatch, kind):
    """Replace stderr for the rest of a test; pytest undoes this between a fixture and its test."""
    monkeypatch.setattr(sys, "stderr", kind())
    return sys.stderr


@pytest.mark.parametrize(("kind", "seconds"), [(Terminal, 0.1), (io.StringIO, 30)])
def test_a_log_file_gets_few_lines(monkeypatch, kind, seconds):
    stream = replace_stderr(monkeypatch, kind)
    bar = progress_bar(range(1000), title="Attack")
    assert bar.mininterval == seconds
    assert list(bar) == list(range(1000))
    assert "Attack: 100%" in stream.getvalue()


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_the_variable_of_quiet_disables_all_bars(monkeypatch, kind):
    stream = replace_stderr(monkeypatch, kind)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(progress_bar(range(3), title="Attack")) == [0, 1, 2]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_bar_may_be_for_terminals_only(monkeypatch, kind):
    stream = replace_stderr(monkeypatch, kind)
    progress_bar(range(3), disable=None).close()
    assert bool(stream.getvalue()) == (kind is Terminal)
