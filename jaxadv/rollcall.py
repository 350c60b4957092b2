"""A roll call of processes before JAX starts, which would abort where one of them does not come."""

import re
import socket
import time
from contextlib import ExitStack

from jaxadv.types import UserError

_HERE = "here"


def call_the_roll(coordinator: str, num_processes: int, process_id: int, seconds: float) -> None:
    """Returns when all processes of a run have said that they are here.

    The first listens where JAX's coordination service will; the others tell it who they are, and
    wait for its word.

    Args:
      coordinator: HOST:PORT of the first process.
      num_processes: of the run.
      process_id: of this one.
      seconds: that there are to come.

    Raises:
      UserError: names who did not come.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator is {coordinator!r}: it must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id is {process_id}: it must be from 0 to {num_processes - 1}")
    deadline = time.monotonic() + seconds
    if process_id == 0:
        absent = _listen(int(port), num_processes, deadline)
    else:
        absent = _answer(host, int(port), process_id, deadline)
    if absent:
        raise UserError(
            f"process {absent} of {num_processes} did not come within {seconds:.0f} s to "
            f"{coordinator}: is it running, with the same --coordinator and --num_processes, and "
            "can it reach that port?"
        )


def _listen(port: int, num_processes: int, deadline: float) -> str:
    """Returns who did not come, and tells the others."""
    absent = set(range(1, num_processes))
    with ExitStack() as stack:
        server = stack.enter_context(_server(port, deadline))
        present = []
        while absent:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                said = connection.recv(16).decode(errors="replace")
            except OSError:
                if time.monotonic() >= deadline:
                    break
                continue
            if said.isdigit() and int(said) in absent:
                absent.discard(int(said))
                present.append(connection)
        names = ", ".join(map(str, sorted(absent)))
        for connection in present:
            connection.sendall((names or _HERE).encode())
    return names


def _server(port: int, deadline: float) -> socket.socket:
    """Returns a listening socket, once a run that is just ending has left the port."""
    while True:
        try:
            return socket.create_server(("", port))
        except OSError as error:
            if time.monotonic() >= deadline:
                reason = error.strerror
                raise UserError(f"port {port} cannot be listened on ({reason})") from None
            time.sleep(0.2)


def _answer(host: str, port: int, process_id: int, deadline: float) -> str:
    """Says that this process is here; returns who is not."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(process_id).encode())
                # The first process waits as long as this one has, and then says who is absent.
                connection.settimeout(left + 5)
                said = connection.recv(4096).decode(errors="replace")
        except OSError:
            said = ""
        if said == _HERE:
            return ""
        if re.fullmatch(r"\d+(, \d+)*", said):
            return said
        time.sleep(min(0.2, left))  # nobody listens yet, or a run that is just ending
    return "0"
