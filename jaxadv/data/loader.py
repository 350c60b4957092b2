"""Batches of images that do not fit into memory, read by worker processes while a model trains."""

import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from multiprocessing import parent_process, resource_tracker
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from jaxadv.core.devices import num_cores
from jaxadv.core.types import HostBatch, UserError
from jaxadv.data.datasets import epoch_order
from jaxadv.data.examples import StoredExamples

_MAX_WORKERS = 16
_BATCHES_PER_WORKER = 3  # in shared memory: being written, in the queue, being read
_SHARED_MEMORY = Path("/dev/shm")  # on Linux; containers limit it
_RANDOM_SETTINGS = ("jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class BatchRows:
    """The rows of each batch of a training: an epoch is `epoch_order`, cut into batches.

    Attributes:
      seed: seed of the run.
      num_examples: of the train split.
      batch_size: examples of a batch.
      batches_per_epoch: the last examples of the order may remain unused.
      num_epochs: of the run.
    """

    seed: int
    num_examples: int
    batch_size: int
    batches_per_epoch: int
    num_epochs: int

    def __len__(self) -> int:
        return self.num_epochs * self.batches_per_epoch

    def __getitem__(self, step: int) -> Int[np.ndarray, "batch"]:
        """Return the rows of the batch of a step, which counts from the start of the run."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        order = _cached_order(self.seed, epoch, self.num_examples)
        return order[batch * self.batch_size :][: self.batch_size]


@lru_cache(maxsize=1)
def _cached_order(seed: int, epoch: int, num_examples: int) -> Int[np.ndarray, "n"]:
    return epoch_order(seed, "shuffle", epoch, num_examples)


@contextmanager
def streamed_batches(
    examples: StoredExamples, rows: BatchRows, first: int, local: Int[np.ndarray, "local"]
) -> Iterator[Iterator[HostBatch]]:
    """Read batches in worker processes, ahead of their use. The workers end with the block.

    The batches and their order do not depend on the number of workers.

    Args:
      examples: of the train split.
      rows: of all batches.
      first: step of the first batch to read.
      local: positions in a batch that this process needs. The images at the others are black.

    Returns:
      An iterator over the batches. It raises what `examples.take` raises in a worker.

    Raises:
      UserError: the shared memory is too small for the batches.
    """
    import grain  # takes a second

    if not flags.FLAGS.is_parsed():  # outside of `run.py`; Grain reads its options from flags
        flags.FLAGS.mark_as_parsed()
    num_workers = min(max(num_cores() - 1, 2), _MAX_WORKERS)
    _check_shared_memory(num_workers, len(local), examples.image_shape)
    # A worker reads one batch at a time; without these options, Grain reads hundreds in threads.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    parallel = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=1)
    settings = {name: getattr(jax.config, name) for name in _RANDOM_SETTINGS}
    images = iter(
        grain.MapDataset.source(_LocalImages(examples, rows, local))[first:]
        .to_iter_dataset(reading)
        .mp_prefetch(parallel, worker_init_fn=partial(_set_up_worker, settings))
    )
    batches = _to_batches(chain(_start(images), images), examples, rows, first, local)
    try:
        yield batches
    finally:
        images.close()
        # A program that exits at once leaves semaphores, of which Python warns, unless they are
        # collected before. The generator and this frame have the only references.
        batches.close()
        del images
        gc.collect()
        _wait_until_freed()


@dataclass(frozen=True)
class _LocalImages:
    """The images of each batch that this process needs, as a data source of Grain."""

    examples: StoredExamples
    rows: BatchRows
    local: Int[np.ndarray, "local"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, step: int) -> UInt8[np.ndarray, "local height width channels"]:
        return self.examples.take(self.rows[step][self.local])


def _to_batches(
    images: Iterator[np.ndarray],
    examples: StoredExamples,
    rows: BatchRows,
    first: int,
    local: Int[np.ndarray, "local"],
) -> Generator[HostBatch, None, None]:
    for step in range(first, len(rows)):
        # A copy, since JAX may keep an array until the program exits, and its shared memory with it
        copied = np.zeros((rows.batch_size, *examples.image_shape), np.uint8)
        try:
            copied[local] = next(images)
        except UserError as error:
            raise error.with_traceback(None) from None  # whose frames refer to Grain's iterators
        yield HostBatch(copied, examples.labels[rows[step]])


def _start(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Start the workers and yield the first images.

    Workers inherit the blocked signals. A terminal sends Ctrl-C to all processes, but only the main
    process handles it: it ends the workers.
    """
    resource_tracker.ensure_running()  # otherwise its start unblocks the signals
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        first = next(images)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    yield first


def _set_up_worker(settings: dict[str, Any], *_: Any) -> None:
    """Give a worker the settings of the main process, from which the order of an epoch follows.

    A worker does not use accelerators, and does not run on without the main process.
    """
    for name, value in settings.items():
        jax.config.update(name, value)
    jax.config.update("jax_platforms", "cpu")
    threading.Thread(target=_exit_with_main_process, daemon=True).start()


def _exit_with_main_process() -> None:
    if main := parent_process():
        main.join()
        os._exit(1)


def _wait_until_freed() -> None:
    """Wait until Grain's thread has freed the shared memory of all batches, in their order.

    The thread ends with the program, and Python warns of shared memory that is left then.
    """
    from grain.multiprocessing import SharedMemoryArray

    last = SharedMemoryArray((1,), np.uint8)
    shared_memory = last.shm
    del last
    while shared_memory.buf is not None:
        time.sleep(0.01)
    shared_memory.unlink()


def _check_shared_memory(num_workers: int, batch_size: int, image_shape: tuple[int, ...]) -> None:
    """Check that the batches fit; otherwise the system kills a worker that writes one."""
    if not _SHARED_MEMORY.exists():
        return
    needed = num_workers * _BATCHES_PER_WORKER * batch_size * int(np.prod(image_shape))
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise UserError(
            f"{_SHARED_MEMORY} has {free / 1e6:.0f} MB free, but streaming needs "
            f"{needed / 1e6:.0f} MB there: give the container more shared memory (in Docker "
            "--shm-size), or reduce config.train.batch_size or config.data.size"
        )
