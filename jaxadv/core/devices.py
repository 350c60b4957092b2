"""Devices: set-up of JAX, and mapping over devices. No other file uses `jax.pmap`."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jaxadv.core.files import cache_folder, user_path
from jaxadv.core.types import DeviceBatch, HostBatch, UserError

AXIS = "device"
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_ARITHMETIC = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}
# Part of JAX's own cache keys, so that functions are traced again when it changes.
_platform = jax.make_user_context(default_value=None)


def platform() -> str:
    """Return the platform that programs are traced for: "cpu", "gpu" or "tpu".

    It is that of `traced_for`, of `jax.default_device` if it is set, such as a CPU beside a GPU, or
    else of JAX's default backend. Modules that choose a form of an operation ask this function.
    """
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    return (
        _platform.value
        or (device if isinstance(device, str) else getattr(device, "platform", None))
        or jax.default_backend()
    )


def traced_for(name: str) -> AbstractContextManager[None]:
    """Return a context in which programs are traced for a platform that need not be present.

    Ahead-of-time compilation needs it, as in benchmarks/accelerators.py.

    Args:
      name: "cpu", "gpu" or "tpu".
    """
    return _platform(name)


def set_up_arithmetic() -> None:
    """Set JAX's precision and promotion rules, overriding environment variables with a warning.

    With `JAX_ENABLE_X64` a run could not restore the checkpoints of a run without it.
    """
    for name, value in _ARITHMETIC.items():
        if getattr(jax.config, name) != value:
            asked = getattr(jax.config, name)
            warnings.warn(f"{name.upper()}={asked} is ignored", stacklevel=2)
            jax.config.update(name, value)


def check_devices() -> None:
    """Initialise JAX's devices.

    Raises:
      UserError: JAX cannot use the requested platform.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX raises bare assertions for some platforms
        reason = (str(error).splitlines() or ["no such device was found"])[0]
        asked = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"JAX cannot use JAX_PLATFORMS={asked} ({reason}): set JAX_PLATFORMS=cpu, or unset it"
            if asked
            else f"JAX cannot initialise its devices ({reason}): set JAX_PLATFORMS=cpu for the CPU"
        ) from error


def set_up_cpu() -> bool:
    """Create one CPU device per core, and disable YNNPACK in XLA. Call it before JAX starts.

    XLA runs a convolution on about one core, so a batch split over one device per core uses all
    cores. Without YNNPACK, PGD takes 0.88 to 0.94 times as long, on all models. Accelerators are
    not affected. Settings in XLA_FLAGS and JAX_NUM_CPU_DEVICES take precedence.

    Returns:
      False if JAX has started with another number of devices: it starts with the first array or
      computation, and then its devices are fixed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    asked = "xla_force_host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ
    current: Any = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_num_cpu_devices", current if asked else num_cores())
    except RuntimeError:  # JAX has started
        return False
    # XLA aborts on unknown flags: JAX within the bounds of pyproject.toml has this one.
    if jax.__version_info__ < (0, 13) and _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=".strip()
    return True


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache, in the user's cache directory.

    JAX's environment variables take precedence; an empty JAX_COMPILATION_CACHE_DIR disables it.
    """
    asked = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if asked == "":
        return
    folder = user_path(asked) if asked else cache_folder() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Also short compilations: each operation outside of a step is compiled by itself.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def jit_once(fn: Callable) -> Callable:
    """Compile a function that runs once, on CPUs without optimisation, which saves seconds.

    Each output is a separate array, also where `fn` returns an array twice.
    """
    options = {"xla_backend_optimization_level": 0} if platform() == "cpu" else None
    return jax.jit(fn, compiler_options=options)


def describe_devices() -> str:
    """Return the number and kind of devices, such as "2 x cpu (AMD EPYC)"."""
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
    """Put a copy of every array on every device of this process, once for all steps.

    A `HostBatch` becomes a `DeviceBatch`.
    """
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(_for_device(tree), NamedSharding(mesh, PartitionSpec()))


def pmap_batches(
    fn: Callable,
    *,
    num_replicated: int,
    num_batches: int,
    donate_first: bool = False,
    sharded_output: bool = False,
) -> Callable:
    """Map `fn(*replicated, *batches)` over all devices, along an axis named `AXIS`.

    The leading axis of each batch is interleaved over the devices: device d of D gets the examples
    d, d + D, d + 2 D, ... Thus the first half of each device's share belongs to the first half of
    the batch, for any number of devices. With several processes, each passes the whole batch and
    gets the whole output; it transfers only the shares of its devices.

    Args:
      fn: a pure function. Replicated arguments and outputs have no device axis. `fn` must make
        replicated outputs equal on all devices, by collectives over `AXIS`.
      num_replicated: number of leading arguments that each device gets whole.
      num_batches: number of following arguments that are split. In them a `HostBatch` becomes a
        `DeviceBatch`.
      donate_first: reuse the memory of the first argument for the result.
      sharded_output: the outputs are batches, which are merged in order, instead of replicated.

    Returns:
      A function of the same arguments. On CPUs it waits for its results, since queued collectives
      deadlock there; elsewhere it is asynchronous.
    """
    single_process = jax.process_count() == 1
    mapped_fn = fn if single_process or not sharded_output else _gather_outputs(fn)

    def of_trees(first: Any, rest: dict[str, tuple]) -> Any:
        return mapped_fn(*first, *rest["replicated"], *rest["batches"])

    # One tree for each kind of argument. With `in_axes` per argument, JAX 0.10 mistakes leaves for
    # arguments when both have the same number.
    mapped = jax.pmap(
        of_trees,
        axis_name=AXIS,
        in_axes=(None, {"replicated": None, "batches": 0}),
        out_axes=0 if single_process and sharded_output else None,
        donate_argnums=(0,) if donate_first else (),
    )
    num_first = int(donate_first)

    def call(*args: Any) -> Any:
        first, replicated = args[:num_first], args[num_first:num_replicated]
        batches = jax.tree.map(_split, _for_device(args[num_replicated:]))
        # The devices are those of the default backend, whatever `jax.default_device` says.
        with traced_for(_platform.value or jax.default_backend()):
            output = mapped(first, {"replicated": replicated, "batches": batches})
        if jax.default_backend() == "cpu":
            jax.block_until_ready(output)
        return jax.tree.map(_merge, output) if sharded_output else output

    return call


def divisible_size(size: int) -> int:
    """Return the largest multiple of the number of devices up to `size`, at least one multiple."""
    return max(size // jax.device_count(), 1) * jax.device_count()


def whole_batch(size: int, num_examples: int) -> int:
    """Return a batch size, or a smaller one if it holds all examples."""
    num_devices = jax.device_count()
    return min(size, max(-(-num_examples // num_devices), 1) * num_devices)


def padded_batches(ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids of examples in batches, each with a copy that repetitions fill up to full size.

    Callers drop the results of the repetitions. Without any ids there is one batch, of zeros.
    """
    for start in range(0, max(len(ids), 1), batch_size):
        batch = ids[start : start + batch_size]
        yield batch, np.resize(batch, batch_size)


def local_rows(size: int) -> Int[np.ndarray, "rows"]:
    """Return the rows of a batch that `pmap_batches` transfers to the devices of this process."""
    return np.sort(_split(np.arange(size)).ravel())


def positions(share: int, axis_name: str | None = AXIS) -> Int[Array, "share"]:
    """Return the positions of this device's examples in the whole batch.

    Keys derived from positions give the same random numbers on any number of devices.

    Args:
      share: number of examples of this device; static.
      axis_name: axis of the enclosing `pmap_batches`; None: this device has the whole batch.
    """
    if axis_name is None:
        return jnp.arange(share)
    return jnp.arange(share) * lax.axis_size(axis_name) + lax.axis_index(axis_name)


def match_varying_axes(tree: PyTree) -> PyTree:
    """Make all arrays vary over each mesh axis that any of them varies over.

    Inside `jax.shard_map`, loops and branches require this of their carried values. Elsewhere the
    arrays are returned unchanged.
    """
    leaves, structure = jax.tree.flatten(tree)
    axes = {axis for leaf in leaves for axis in _varying(leaf)}
    if axes:
        leaves = [_vary(leaf, axes) for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def _varying(array: Array) -> frozenset[Any]:
    """Return the mesh axes that an array varies over."""
    aval: Any = jax.typeof(array)
    return aval.mat.varying


def _vary(array: Array, axes: set[Any]) -> Array:
    missing = tuple(axes - _varying(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def _gather_outputs(fn: Callable) -> Callable:
    """Gather the outputs of all devices, since a process cannot read those of other processes."""

    def gathered(*args: Any) -> Any:
        return jax.tree.map(lambda array: lax.all_gather(array, AXIS), fn(*args))

    return gathered


def _for_device(tree: PyTree) -> PyTree:
    """Replace each `HostBatch` by a `DeviceBatch` of the same arrays, which JAX then transfers."""

    def convert(node: Any) -> Any:
        return DeviceBatch._make(node) if isinstance(node, HostBatch) else node

    return jax.tree.map(convert, tree, is_leaf=lambda node: isinstance(node, HostBatch))


def _split(batch: np.ndarray) -> np.ndarray:
    """Return the shares of this process's devices, along a new leading axis."""
    devices = jax.devices()
    shape = (len(batch) // len(devices), len(devices), *batch.shape[1:])
    shares = batch.reshape(shape).swapaxes(0, 1)
    if jax.process_count() == 1:
        return shares
    own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    return shares[np.array(own)]


def _merge(batch: jax.Array) -> np.ndarray:
    array = np.asarray(batch).swapaxes(0, 1)
    # A size of -1 is undefined for arrays without elements.
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])
