"""Multi-process runs: start-up, communication and exit.

All processes run the same host code on the same values. Only the first process reads and writes the
workdir, and broadcasts what it reads.
"""

import itertools
import json
import operator
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils

from jaxadv.core.types import UserError

T = TypeVar("T")

_START_SECONDS = 60.0  # for all processes to start
_HEARTBEAT_SECONDS = 10  # a dead process ends the others within about twice this time
_EXIT_SECONDS = 3  # for the other processes to receive an exit message before the first exits
_POLL_MILLISECONDS = 1000
_DAY_MILLISECONDS = 86_400_000
_PART_BYTES = 1 << 29  # of a broadcast: the size of an array is an int32
_EXIT_KEY = "jaxadv/end"


def _private(module: str, name: str) -> Any:
    """Return an object of a private module of JAX, or None if this version of JAX lacks it.

    JAX has no public API for its cluster detection, nor for the key-value store of its coordination
    service. Nothing else uses `jax._src`.
    """
    try:
        return operator.attrgetter(name)(import_module(f"jax._src.{module}"))
    except (ImportError, AttributeError):
        return None


def _coordination_client() -> Any:
    """Return the client of JAX's coordination service, or None if there is none."""
    return _private("distributed", "global_state.client")


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connect the processes of a run. Call it before JAX starts.

    The standard output of all processes but the first is discarded.

    Args:
      coordinator: HOST:PORT of the first process; None: detected from the cluster, as are the other
        arguments.
      num_processes: number of processes of the run.
      process_id: index of this process, from 0.

    Raises:
      UserError: no cluster is detected, or a process does not start.
    """
    _silence_collectives()
    # The preemption service would replace the handler of SIGTERM in `signals`.
    jax.config.update("jax_enable_preemption_service", False)
    local_device_ids = None
    if coordinator is None or num_processes is None or process_id is None:
        coordinator, num_processes, process_id, local_device_ids = _detect_cluster(
            coordinator, num_processes, process_id
        )
    wait_for_processes(coordinator, num_processes, process_id, _START_SECONDS)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
    if _coordination_client():
        _listener.start()
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _detect_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int, Sequence[int] | None]:
    """Replace each argument that is None by the value that JAX detects from the cluster."""
    remedy = "pass --coordinator=HOST:PORT, --num_processes and --process_id"
    detect = _private("clusters", "ClusterEnv.auto_detect_unset_distributed_params")
    try:
        coordinator, num_processes, process_id, devices = detect(
            coordinator, num_processes, process_id, None, None, int(_START_SECONDS)
        )
    except TypeError:  # `detect` is None, or has other parameters
        raise UserError(
            f"this version of JAX does not let jaxadv detect the cluster: {remedy}"
        ) from None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(f"no cluster such as Slurm, Open MPI or a TPU pod was detected: {remedy}")
    return coordinator, num_processes, process_id, devices


def _silence_collectives() -> None:
    """Hide the messages that the library of CPU collectives writes to file descriptor 1."""
    stdout = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout = stdout


def shutdown() -> None:
    """Disconnect from the other processes when the work is complete."""
    if jax.distributed.is_initialized():
        _shutting_down.set()
        if _listener.is_alive():
            _listener.join()
        jax.distributed.shutdown()


def is_first() -> bool:
    """Return whether this is the first process, which reads and writes the workdir."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """Call a function in the first process only, and broadcast its result to all processes.

    The other processes wait without a timeout. Arrays in a broadcast result are read-only.

    Args:
      make: returns None, a number, a string, a numpy array, or a list or dict of these.
    """
    if jax.process_count() == 1:
        return make()
    made = serialization.msgpack_serialize(make()) if is_first() else b""
    _wait_for_all()
    num_parts = multihost_utils.broadcast_one_to_all(np.int32(-(-len(made) // _PART_BYTES)))
    parts = [_broadcast_part(made[k * _PART_BYTES :][:_PART_BYTES]) for k in range(int(num_parts))]
    return serialization.msgpack_restore(b"".join(parts))


def _broadcast_part(part: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(part))))
    sent = np.frombuffer(part, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def first_process_first(make: Callable[[], T]) -> T:
    """Call a function in all processes: first in the first process, then in the others."""
    if jax.process_count() == 1:
        return make()
    if is_first():
        made = make()
    _wait_for_all()
    return made if is_first() else make()


def _wait_for_all() -> None:
    """Wait for all processes. Without the private API it uses a collective.

    The first collective of a run times out after 30 s on CPUs, where it connects the processes;
    `check_processes` runs it at once.
    """
    name = f"jaxadv/{next(_barrier_numbers)}"
    if client := _coordination_client():
        client.wait_at_barrier(name, _DAY_MILLISECONDS)
    else:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Return in all processes whether the flag is set in any of them."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def exit_all(code: int, text: str) -> NoReturn:
    """Print a message and exit, in all processes of the run with the message of this one.

    If JAX lacks the private API, the other processes exit without the message, once they miss the
    heartbeats of this one.

    Args:
      code: exit code.
      text: message for stderr.
    """
    client = _coordination_client()
    if client is None:
        _exit(code, text)
    # Raised if another process has already written the message, or the first process is gone.
    with suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(_EXIT_KEY, json.dumps([jax.process_index(), code, text]))
    time.sleep(3 * _EXIT_SECONDS)
    _exit(code, text)


def _exit_with_others() -> None:
    """Exit when another process calls `exit_all`. Runs in a thread."""
    client = _coordination_client()
    while not _shutting_down.is_set():
        began = time.monotonic()
        try:
            message = client.blocking_key_value_get(_EXIT_KEY, _POLL_MILLISECONDS)
        except jax.errors.JaxRuntimeError:  # no message yet, or the first process is gone
            time.sleep(max(0, _POLL_MILLISECONDS / 1000 - (time.monotonic() - began)))
            continue
        index, code, text = json.loads(message)
        if is_first():
            time.sleep(_EXIT_SECONDS)
        _exit(code, f"process {index} of {jax.process_count()}: {text}")


_shutting_down = threading.Event()
_barrier_numbers = itertools.count()
_listener = threading.Thread(target=_exit_with_others, daemon=True)


def _exit(code: int, text: str) -> NoReturn:
    """Exit without cleanup.

    A process that waits in a collective cannot exit otherwise, and one that computes may end in a
    segmentation fault.
    """
    # `print` would fail in a signal handler that interrupts another `print`.
    try:
        with suppress(RuntimeError, OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)


# The process barrier. `jax.distributed.initialize` aborts with a stack trace, and without the index
# of the missing process, if a process does not start in time. This barrier runs before it.

_ALL_STARTED = "here"


def wait_for_processes(
    coordinator: str, num_processes: int, process_id: int, seconds: float
) -> None:
    """Wait until all processes of a run have started.

    The first process listens on the port that JAX's coordination service will use. The others send
    their index and wait for its answer.

    Args:
      coordinator: HOST:PORT of the first process.
      num_processes: number of processes of the run.
      process_id: index of this process.
      seconds: timeout.

    Raises:
      UserError: names the processes that did not start in time.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator is {coordinator!r}: it must be HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id is {process_id}: it must be from 0 to {num_processes - 1}")
    deadline = time.monotonic() + seconds
    if process_id == 0:
        missing = _accept_all(int(port), num_processes, deadline)
    else:
        missing = _report_to_first(host, int(port), process_id, deadline)
    if missing:
        raise UserError(
            f"process {missing} of {num_processes} did not connect to {coordinator} within "
            f"{seconds:.0f} s: check that it runs with the same --coordinator and "
            "--num_processes, and that it can reach that port"
        )


def _accept_all(port: int, num_processes: int, deadline: float) -> str:
    """Accept connections from the other processes; send and return the missing indices."""
    missing = set(range(1, num_processes))
    with ExitStack() as stack:
        server = stack.enter_context(_listen(port, deadline))
        connections = []
        while missing:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                message = connection.recv(16).decode(errors="replace")
            except OSError:
                if time.monotonic() >= deadline:
                    break
                continue
            if message.isdigit() and int(message) in missing:
                missing.discard(int(message))
                connections.append(connection)
        names = ", ".join(map(str, sorted(missing)))
        for connection in connections:
            connection.sendall((names or _ALL_STARTED).encode())
    return names


def _listen(port: int, deadline: float) -> socket.socket:
    """Listen on a port; retry while an earlier run that is exiting occupies it."""
    while True:
        try:
            return socket.create_server(("", port))
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"cannot listen on port {port} ({error.strerror}): pass a free port in "
                    "--coordinator"
                ) from None
            time.sleep(0.2)


def _report_to_first(host: str, port: int, process_id: int, deadline: float) -> str:
    """Send the index of this process to the first; return which processes are missing."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(process_id).encode())
                # The first process answers at its own deadline, which may be a little later.
                connection.settimeout(left + 5)
                message = connection.recv(4096).decode(errors="replace")
        except OSError:
            message = ""
        if message == _ALL_STARTED:
            return ""
        if re.fullmatch(r"\d+(, \d+)*", message):
            return message
        time.sleep(min(0.2, left))  # the first process does not listen yet, or an old run exits
    return "0"  # the first process is missing
