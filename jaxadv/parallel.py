"""Devices and pmap: the only file that knows how many devices there are."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jaxadv.files import cache_folder, user_path
from jaxadv.types import UserError

AXIS = "device"
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_ARITHMETIC = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


def set_up_arithmetic() -> None:
    """Gives JAX the types that runs are defined in, whatever its environment variables ask for.

    With `JAX_ENABLE_X64` a run would neither continue nor restore the checkpoints of one without.
    """
    for name, value in _ARITHMETIC.items():
        if getattr(jax.config, name) != value:
            asked = getattr(jax.config, name)
            warnings.warn(f"{name.upper()} is {asked}: runs ignore it", stacklevel=2)
            jax.config.update(name, value)


def check_devices() -> None:
    """Starts JAX's devices.

    Raises:
      UserError: there are none of the platform that is asked for.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX raises bare assertions for some platforms
        reason = (str(error).splitlines() or ["no such device was found"])[0]
        asked = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"JAX_PLATFORMS is {asked}, but JAX cannot use it ({reason}): set JAX_PLATFORMS=cpu, "
            "or unset it"
            if asked
            else f"JAX cannot start its devices ({reason}): set JAX_PLATFORMS=cpu to use the CPU"
        ) from error


def set_up_cpu() -> None:
    """Makes one CPU device for each core, and keeps XLA from YNNPACK; call it before JAX starts.

    XLA runs a convolution on about one core, so a batch split over devices uses them all. Its
    convolutions and matrix products by YNNPACK are slower than its own: PGD takes .88 to .94 of
    the time without, on any model. Accelerators are not affected. What is already asked for
    through XLA_FLAGS or JAX_NUM_CPU_DEVICES stands.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    asked = "xla_force_host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ
    if not asked:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
        num_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", num_cores)
    # A flag that it does not know ends XLA: only where it was looked up.
    if _YNNPACK not in flags and (0, 10) <= jax.__version_info__ < (0, 13):
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=".strip()


def keep_compilations() -> None:
    """Keeps what XLA compiles in the user's cache directory, where the next start finds it.

    A directory already asked for through JAX_COMPILATION_CACHE_DIR stands.
    """
    if asked := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(user_path(asked)))
    elif asked is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        # Also what takes little: an operation that runs outside of a step is compiled by itself.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def jit_once(fn: Callable) -> Callable:
    """Compiles a function that runs once: on a CPU without optimization, which takes seconds less.

    Its outputs are arrays of their own, also where `fn` returns one of them twice.
    """
    plain = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(fn, compiler_options=plain)


def describe_devices() -> str:
    """Returns the devices in words, as in "2 x cpu (AMD EPYC)"."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = f"cpu ({_cpu_name()})"
    return f"{jax.device_count()} x {kind}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
            names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "unknown"


def replicate(tree: PyTree) -> PyTree:
    """Puts a copy of every array on every device that this process has: no step has to send it."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def pmap_batches(
    fn: Callable,
    *,
    num_replicated: int,
    num_batches: int,
    donate_first: bool = False,
    sharded_output: bool = False,
) -> Callable:
    """Maps `fn(*replicated, *batches)` over all devices, along an axis named `AXIS`.

    The leading axis of each batch is split over the devices in turns: device d of D gets the
    examples d, d + D, d + 2 D, ... So the first half of every device's share is the first half
    of the batch, however many devices there are. Of several processes each is given the whole
    batch, sends its own devices their share, and is returned the whole output.

    Args:
      fn: a pure function. Replicated arguments and outputs have no device axis of their own;
        inside, `fn` makes replicated outputs agree with collectives over `AXIS`.
      num_replicated: how many leading arguments every device gets whole.
      num_batches: how many arguments after them are split.
      donate_first: reuse the memory of the first argument for the result.
      sharded_output: the outputs are batches, merged back in order, instead of replicated.

    Returns:
      A function of the same arguments whose results are ready on the CPU backend, where
      queued collectives deadlock, and asynchronous elsewhere.
    """
    alone = jax.process_count() == 1
    mapped = jax.pmap(
        fn if alone or not sharded_output else _gathered(fn),
        axis_name=AXIS,
        in_axes=(None,) * num_replicated + (0,) * num_batches,
        out_axes=0 if alone and sharded_output else None,
        donate_argnums=(0,) if donate_first else (),
    )

    def call(*args: Any) -> Any:
        replicated, batches = args[:num_replicated], args[num_replicated:]
        output = mapped(*replicated, *jax.tree.map(_split, batches))
        if jax.default_backend() == "cpu":
            jax.block_until_ready(output)
        return jax.tree.map(_merge, output) if sharded_output else output

    return call


def divisible(size: int) -> int:
    """Returns the largest size up to this one that divides among the devices, or one for each."""
    return max(size // jax.device_count(), 1) * jax.device_count()


def padded_batches(ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields numbers of examples, batch by batch, and the same filled up by repetition.

    What is computed of the repetitions is to be dropped. No numbers at all cannot be repeated:
    they are one batch of zeros.
    """
    for start in range(0, max(len(ids), 1), batch_size):
        batch = ids[start : start + batch_size]
        yield batch, np.resize(batch, batch_size)


def own_rows(size: int) -> Int[np.ndarray, "rows"]:
    """Returns the rows of a batch that `pmap_batches` sends to the devices of this process."""
    return np.sort(_split(np.arange(size)).ravel())


def positions(share: int, axis_name: str | None = AXIS) -> Int[Array, "share"]:
    """Returns where this device's examples stand in the whole batch.

    Keys that follow from a position give the same numbers on any count of devices.

    Args:
      share: how many examples this device has; static.
      axis_name: the axis of `pmap_batches`, inside which this is called; None: the share is all.
    """
    if axis_name is None:
        return jnp.arange(share)
    return jnp.arange(share) * lax.axis_size(axis_name) + lax.axis_index(axis_name)


def vary_alike(tree: PyTree) -> PyTree:
    """Returns the arrays, each of them varying over every axis of a mesh that one of them does.

    Inside of `jax.shard_map` loops and branches ask this of what they carry; elsewhere it changes
    nothing.
    """
    leaves, structure = jax.tree.flatten(tree)
    axes = {axis for leaf in leaves for axis in _varying(leaf)}
    if axes:
        leaves = [_vary(leaf, axes) for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def _varying(array: Array) -> frozenset[Any]:
    """Returns the axes of a mesh along which an array differs."""
    aval: Any = jax.typeof(array)
    return aval.mat.varying if hasattr(aval, "mat") else aval.vma  # as it was until JAX 0.9


def _vary(array: Array, axes: set[Any]) -> Array:
    missing = tuple(axes - _varying(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def _gathered(fn: Callable) -> Callable:
    """Returns the function with the outputs of all devices, which other processes cannot see."""

    def gathered(*args: Any) -> Any:
        return jax.tree.map(lambda array: lax.all_gather(array, AXIS), fn(*args))

    return gathered


def _split(batch: np.ndarray) -> np.ndarray:
    """Returns the shares of this process's devices."""
    devices = jax.devices()
    shape = (len(batch) // len(devices), len(devices), *batch.shape[1:])
    shares = batch.reshape(shape).swapaxes(0, 1)
    if jax.process_count() == 1:
        return shares
    mine = [place for place, d in enumerate(devices) if d.process_index == jax.process_index()]
    return shares[np.array(mine)]


def _merge(batch: jax.Array) -> np.ndarray:
    array = np.asarray(batch).swapaxes(0, 1)
    # Not -1, which has no meaning where rows are empty.
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
