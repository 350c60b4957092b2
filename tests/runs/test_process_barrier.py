import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxadv.core.types import UserError
from jaxadv.runs.distributed import wait_for_processes


@pytest.fixture
def coordinator():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run_barrier(coordinator, num_processes, started, seconds):
    """Return the error message, or None, of each process that starts."""

    def run_process(process_id):
        try:
            return wait_for_processes(coordinator, num_processes, process_id, seconds)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(started)) as pool:
        return list(pool.map(run_process, started))


def test_the_barrier_opens_when_all_processes_have_started(coordinator):
    assert run_barrier(coordinator, 3, (2, 0, 1), 10.0) == [None] * 3


def test_all_processes_name_the_missing_ones(coordinator):
    messages = run_barrier(coordinator, 4, (2, 0), 1.0)
    expected = f"process 1, 3 of 4 did not connect to {coordinator} within 1 s"
    assert all(expected in message for message in messages)


def test_a_missing_first_process_is_named(coordinator):
    (message,) = run_barrier(coordinator, 2, (1,), 1.0)
    assert "process 0 of 2 did not connect" in message


@pytest.mark.parametrize(
    ("coordinator", "process_id", "message"),
    [
        ("nowhere", 0, "must be HOST:PORT"),
        ("localhost:x", 0, "must be HOST:PORT"),
        ("localhost:1234", 2, "--process_id is 2: it must be from 0 to 1"),
    ],
)
def test_invalid_arguments_are_reported(coordinator, process_id, message):
    with pytest.raises(UserError, match=message):
        wait_for_processes(coordinator, 2, process_id, 1.0)


def test_a_port_in_use_is_reported(coordinator):
    with (
        socket.create_server(("", int(coordinator.split(":")[1]))),
        pytest.raises(UserError, match="cannot listen on port"),
    ):
        wait_for_processes(coordinator, 2, 0, 1.0)
