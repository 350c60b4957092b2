"""Several processes that run one program: how they meet, agree and end.

All of them run the same host code on the same values. The first alone reads and writes the
workdir, and shares what it read.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from flax import serialization

# JAX has no public name for what it finds in a cluster's environment, nor for the key-value store
# of its coordination service.
from jax._src import clusters, distributed
from jax.experimental import multihost_utils

from jaxadv.rollcall import call_the_roll
from jaxadv.types import UserError

T = TypeVar("T")

_MEETING_SECONDS = 60.0
_HEARTBEAT_SECONDS = 10  # without a sign of life: the others end about twice as long after it
_PARTING_SECONDS = 3  # that the others have to learn why it ends; the first is who they ask
_LISTENING_MILLISECONDS = 1000
_DAY_MILLISECONDS = 86_400_000
_PART = 1 << 29  # bytes that are sent at a time: the size of an array is an int32
_END = "jaxadv/end"


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Meets the other processes of a run; call it before JAX starts.

    Only the first of them shows what it does.

    Args:
      coordinator: HOST:PORT of the first process; None: as the cluster says, likewise the rest.
      num_processes: of the run.
      process_id: from 0.

    Raises:
      UserError: the cluster does not say, or a process did not come.
    """
    _be_quiet()
    # Its handler of SIGTERM would take the place of the one in `stopping`.
    jax.config.update("jax_enable_preemption_service", False)
    local_device_ids = None
    if coordinator is None or num_processes is None or process_id is None:
        coordinator, num_processes, process_id, local_device_ids = _as_the_cluster_says(
            coordinator, num_processes, process_id
        )
    call_the_roll(coordinator, num_processes, process_id, _MEETING_SECONDS)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        local_device_ids,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
    _listener.start()
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _as_the_cluster_says(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int, Sequence[int] | None]:
    """Returns what was asked for, and for the rest what JAX finds in the cluster's environment."""
    coordinator, num_processes, process_id, devices = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, num_processes, process_id, None, None, int(_MEETING_SECONDS)
        )
    )
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            "no cluster says where and how many the processes are: give --coordinator=HOST:PORT, "
            "--num_processes and --process_id"
        )
    return coordinator, num_processes, process_id, devices


def _be_quiet() -> None:
    """Keeps what the library of CPU collectives writes to stdout from the user."""
    shown = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stdout = shown


def leave() -> None:
    """Parts from the other processes of a run, if there are any, at the end of the work of all."""
    if distributed.global_state.client:
        _leaving.set()
        _listener.join()
        jax.distributed.shutdown()


def is_first() -> bool:
    """Returns whether this is the process that reads and writes the workdir."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """Returns in every process what `make` returns in the first, which alone calls it.

    The others wait as long as that takes.

    Args:
      make: returns None, or numbers, strings, numpy arrays, and lists and dicts of these.
    """
    if jax.process_count() == 1:
        return make()
    made = serialization.msgpack_serialize(make()) if is_first() else b""
    _meet()
    num_parts = multihost_utils.broadcast_one_to_all(np.int32(-(-len(made) // _PART)))
    parts = [_part_from_first(made[k * _PART :][:_PART]) for k in range(int(num_parts))]
    return serialization.msgpack_restore(b"".join(parts))


def _part_from_first(part: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(part))))
    sent = np.frombuffer(part, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def first_goes_before(make: Callable[[], T]) -> T:
    """Returns what `make` returns in this process; the others call it after the first."""
    if jax.process_count() == 1:
        return make()
    if is_first():
        made = make()
    _meet()
    return made if is_first() else make()


def _meet() -> None:
    """Waits for all processes, and unlike a collective for as long as it takes."""
    client: Any = distributed.global_state.client
    client.wait_at_barrier(f"jaxadv/{next(_meetings)}", _DAY_MILLISECONDS)


def any_process(flag: bool) -> bool:
    """Returns in every process whether the flag is set in one of them."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def end(code: int, text: str) -> NoReturn:
    """Says why the program ends, and ends it: all processes of a run, with what the first said."""
    client = distributed.global_state.client
    if client is None:
        _exit(code, text)
    # Refused where another was the first to end, or where the first process is gone.
    with suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(_END, json.dumps([jax.process_index(), code, text]))
    time.sleep(3 * _PARTING_SECONDS)
    _exit(code, text)


def _end_with_the_others() -> None:
    """Waits for one of the processes to say that it ends; runs in a thread of its own."""
    client: Any = distributed.global_state.client
    while not _leaving.is_set():
        began = time.monotonic()
        try:
            said = client.blocking_key_value_get(_END, _LISTENING_MILLISECONDS)
        except jax.errors.JaxRuntimeError:  # nothing was said, or nobody is left to ask
            time.sleep(max(0, _LISTENING_MILLISECONDS / 1000 - (time.monotonic() - began)))
            continue
        index, code, text = json.loads(said)
        if is_first():
            time.sleep(_PARTING_SECONDS)
        _exit(code, f"process {index} of {jax.process_count()}: {text}")


_leaving = threading.Event()
_meetings = itertools.count()
_listener = threading.Thread(target=_end_with_the_others, daemon=True)


def _exit(code: int, text: str) -> NoReturn:
    """Ends this process at once.

    One that waits for others can be ended in no other way, and one that computes may end in a
    segmentation fault.
    """
    # Not printed: in the handler of a signal that would fail in the middle of another print.
    try:
        with suppress(RuntimeError, OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(code)
