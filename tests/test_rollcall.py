import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxadv.rollcall import call_the_roll
from jaxadv.types import UserError


@pytest.fixture
def coordinator():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def outcomes(coordinator, num_processes, come, seconds):
    """What becomes of the processes that come: None, or their error."""

    def one(process_id):
        try:
            return call_the_roll(coordinator, num_processes, process_id, seconds)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(come)) as pool:
        return list(pool.map(one, come))


def test_all_go_on_when_all_are_here(coordinator):
    assert outcomes(coordinator, 3, (2, 0, 1), 10.0) == [None] * 3


def test_who_does_not_come_is_named_by_all_who_did(coordinator):
    told = outcomes(coordinator, 4, (2, 0), 1.0)
    assert all(f"process 1, 3 of 4 did not come within 1 s to {coordinator}" in t for t in told)


def test_a_first_process_that_does_not_come_is_named(coordinator):
    (told,) = outcomes(coordinator, 2, (1,), 1.0)
    assert "process 0 of 2 did not come" in told


@pytest.mark.parametrize(
    ("where", "process_id", "message"),
    [
        ("nowhere", 0, "must be HOST:PORT"),
        ("localhost:x", 0, "must be HOST:PORT"),
        ("localhost:1234", 2, "--process_id is 2: it must be from 0 to 1"),
    ],
)
def test_what_cannot_be_meant_is_told(where, process_id, message):
    with pytest.raises(UserError, match=message):
        call_the_roll(where, 2, process_id, 1.0)


def test_a_port_that_is_taken_is_told(coordinator):
    with (
        socket.create_server(("", int(coordinator.split(":")[1]))),
        pytest.raises(UserError, match="cannot be listened on"),
    ):
        call_the_roll(coordinator, 2, 0, 1.0)
