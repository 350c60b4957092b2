import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxadv.core import devices
from jaxadv.core.devices import (
    AXIS,
    enable_compilation_cache,
    platform,
    pmap_batches,
    positions,
    replicate,
    set_up_cpu,
    traced_for,
)

SET_UP = """
import jax, os
from jaxadv.core.devices import set_up_cpu
set_up_cpu()
product = jax.jit(lambda x: x @ x).lower(jax.numpy.ones((256, 256))).compile()
print(jax.device_count(), "ynn" in product.as_text(), os.environ.get("XLA_FLAGS", ""))
"""


@pytest.mark.parametrize(
    ("xla_flags", "num_devices", "uses_ynnpack"),
    [
        ("", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None, False),
        ("--xla_force_host_platform_device_count=3", 3, False),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", None, True),
    ],
)
def test_cpu_devices_and_ynnpack_follow_xla_flags_or_the_defaults(
    xla_flags, num_devices, uses_ynnpack
):
    output = subprocess.run(
        [sys.executable, "-c", SET_UP],
        env=os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split(maxsplit=2)
    assert num_devices in (None, int(output[0]))
    assert output[2].startswith(xla_flags)
    assert output[1] == str(uses_ynnpack)


def test_the_tests_have_two_devices():
    assert jax.device_count() == 2


def test_a_function_is_traced_again_for_another_platform():
    scale = jax.jit(lambda x: {"cpu": 1, "tpu": 2}[platform()] * x)
    assert scale(3) == 3
    with traced_for("tpu"):
        assert scale(3) == 6
    assert scale(3) == 3


def test_sharded_outputs_are_merged_in_order():
    step = pmap_batches(
        lambda scale, x: scale * x, num_replicated=1, num_batches=1, sharded_output=True
    )
    batch = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(step(jnp.float32(3), batch), 3 * batch)


def test_arguments_of_as_many_arrays_as_arguments_are_mapped_alike():
    step = pmap_batches(
        lambda pair, batch, nothing: batch * pair[0] + pair[1],
        num_replicated=1,
        num_batches=2,
        sharded_output=True,
    )
    pair = (jnp.float32(2), jnp.float32(3))  # two arrays, one, and none
    np.testing.assert_array_equal(step(pair, np.arange(4.0, dtype=np.float32), None), [3, 5, 7, 9])


def test_positions_refer_to_the_whole_batch():
    step = pmap_batches(
        lambda x: positions(len(x)) == x, num_replicated=0, num_batches=1, sharded_output=True
    )
    assert step(np.arange(8)).all()


def test_the_first_half_of_a_batch_is_the_first_half_of_each_share():
    step = pmap_batches(
        lambda x: jnp.arange(len(x)) < len(x) // 2,
        num_replicated=0,
        num_batches=1,
        sharded_output=True,
    )
    np.testing.assert_array_equal(step(np.arange(8)), np.arange(8) < 4)


def test_replicated_outputs_have_no_device_axis():
    step = pmap_batches(lambda w, x: w + lax.pmean(x.mean(), AXIS), num_replicated=1, num_batches=1)
    output = step(replicate(jnp.ones(3)), np.arange(4.0, dtype=np.float32))
    np.testing.assert_allclose(output, np.full(3, 2.5))
    assert len(output.sharding.device_set) == 2


def test_the_compilation_cache_is_in_the_users_cache_folder_by_default(monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    try:
        enable_compilation_cache()  # the tests set JAX's environment variables
        assert {name: getattr(jax.config, name) for name in names} == before
        monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"]
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"]
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.3
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/somewhere/jaxadv/xla"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_set_up_after_the_start_of_jax_changes_nothing_and_evaluate_says_so():
    code = """
import os
import jax
jax.devices()
flags = os.environ.get("XLA_FLAGS")
import jaxadv
from jaxadv.core import devices
devices.num_cores = lambda: 7
print(jaxadv.set_up_cpu(), os.environ.get("XLA_FLAGS") == flags)
images = jax.numpy.zeros((2, 4, 4, 1))
sums = lambda images: images.sum((1, 2)) * jax.numpy.array([[1.0, -1.0]])
search = {"a": {"attack": "random_search", "num_queries": 1}}
options = {"attacks": search, "eps": 0.1, "progress": False}
jaxadv.evaluate(sums, images, [0, 0], **options)
os.write(2, b"black box")
box = jaxadv.BlackBox(lambda images: [[1, 0]] * len(images))
jaxadv.evaluate(box, images, [0, 0], **options)
"""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert finished.stdout.split() == ["False", "True"]
    in_jax, outside = finished.stderr.split("black box")
    assert "JAX has started with 1 CPU device(s) on 7 cores" in in_jax
    assert "call jaxadv.set_up_cpu() before anything else uses JAX" in in_jax
    assert "JAX has started" not in outside  # it uses one device anyway


@pytest.mark.parametrize(
    ("version", "flags"), [((0, 12, 9), f"--{devices._YNNPACK}="), ((0, 13, 0), "")]
)
def test_a_later_version_of_jax_gets_no_flag_of_xla(monkeypatch, version, flags):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    assert set_up_cpu()
    assert os.environ["XLA_FLAGS"] == flags


def test_a_cpu_beside_an_accelerator_gets_programs_for_a_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    seen = []

    def traced(x):
        seen.append(platform())
        return x

    jitted = jax.jit(traced)
    jitted(1.0)
    for device in ("cpu", jax.devices()[0]):
        with jax.default_device(device):
            jitted(1.0)
            with traced_for("gpu"):
                jitted(1.0)
    assert seen == ["tpu", "cpu", "gpu", "cpu", "gpu"]


def test_programs_over_devices_are_those_of_the_default_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    seen = []

    def traced(x):
        seen.append(platform())
        return x

    mapped = pmap_batches(traced, num_replicated=0, num_batches=1, sharded_output=True)
    with jax.default_device("cpu"):
        mapped(np.zeros(jax.device_count()))
    assert set(seen) == {"tpu"}
